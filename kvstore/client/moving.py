"""The steps of a client that maps no segment of its node, or that moves device memory: bytes move by transfers, control
over the framed connection.

Written once for both faces (conducts.py).

  hold  LEASE, without a grant -> RELEASE when it is closed
  get   LEASE -> read one-sidedly, compare -> RELEASE (nobody waits for it); of what other nodes hold: far.py
  put   grant our memory -> PULL: the node reads it -> revoke
        of device memory, where the segment is mapped: placing.py
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError

from kvstore.client.at_once import read_at_once
from kvstore.client.calls import times_of
from kvstore.client.conducts import STOPPED, Awaited, Called, Conduct, Movable, Mover, Run, ended_by, failed
from kvstore.client.far import fetching_far
from kvstore.client.follow import following
from kvstore.client.held import Grip
from kvstore.client.hints import hints_of
from kvstore.client.placing import publishing
from kvstore.client.steps import (
    Answer,
    Fetch,
    Follow,
    Gripped,
    Hold,
    Keys,
    Put,
    PutOutcome,
    Reserve,
    Status,
    Taken,
    Told,
)
from kvstore.errors import Rejected, Unavailable
from kvstore.wire import framed, store
from transfer.batch import EXTENTS_MAX
from transfer.offers import OfferInvalid, parse_offer

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from google.protobuf.message import Message

    from kvstore.client.buffers import Places
    from kvstore.client.calls import Times
    from kvstore.client.landed import Read
    from kvstore.client.space import Space
    from kvstore.client.ways import Loan, Reached
    from kvstore.native import Result

__all__ = ["conduct_of"]

PIECES_MAX: Final = EXTENTS_MAX // 4  # of one pull: a grant's ranges are sorted and travel
NO_VIEWS: Final = Told(
    Status.REJECTED, field="address", reason="views need the node's own machine and user: connect to unix:PATH"
)


def conduct_of(mover: Mover, space: Space, step: Movable, times: Times, run: Run) -> Conduct[Answer]:
    """run: drives what a reservation asks later, in the calling thread, within so many seconds."""
    if isinstance(step, Fetch):
        return (yield from (fetching_far if step.far else fetching)(mover, space, step, times))
    if isinstance(step, Put):
        return (yield from (publishing if mover.line.maps else putting)(mover, space, step, times))
    if isinstance(step, Hold):
        return (yield from holding(mover, space, step, times))
    if isinstance(step, Follow):
        return (yield from following(mover, space, step, times))
    if isinstance(step, Reserve):
        return (yield from reserving(mover, space, step, run))
    return NO_VIEWS


def _reached(mover: Mover, times: Times) -> Conduct[Reached]:
    """Raises Unavailable, Rejected."""
    known = mover.ways.known(mover.line)
    if known is not None:
        return known
    told = yield Called(store.METHOD_OFFER, b"")
    if told.status != Status.OK:
        raise Unavailable(told.reason or "the node is gone")
    try:
        offer = parse_offer(store.OfferResponse.FromString(told.body).offer)
    except (DecodeError, OfferInvalid) as error:
        raise Unavailable(f"the node's offer does not parse: {error}") from error
    reached: Reached = yield Awaited(partial(mover.ways.reach, mover.line, offer, times.left()))
    return reached


# ---- get ------------------------------------------------------------------------------------------------------------


def fetching(mover: Mover, space: Space, step: Fetch, times: Times) -> Conduct[Answer]:
    """One window."""
    wait_s = times.wait(times.left(), mover.line.limits)
    try:
        reached = yield from _reached(mover, times)
    except (Unavailable, Rejected) as error:
        return Told(Status.UNAVAILABLE, reason=str(error))
    most = max(1, EXTENTS_MAX // step.places.pieces)
    keys = step.keys[:most]
    request = _lease_request(mover, space, step, wait_s, reached)
    request.chain.keys = keys.tobytes()
    release = framed.ReleaseRequest(lease=request.lease)
    asked_at = time.monotonic()
    try:
        told = yield Called(store.METHOD_LEASE, request.SerializeToString())
        if told.status != Status.OK:
            return failed(told)
        lease = _lease_of(told, len(keys), len(space.part_bytes[step.shard]))
        if lease is None:
            return Told(Status.UNAVAILABLE, field="lease", reason="the node's answer does not parse")
        if not lease.offsets:
            return Told()
        until = min(times.left() + time.monotonic(), asked_at + lease.lease_ms / 1e3)
        part_bytes = space.part_bytes[step.shard]
        parts = range(*(step.parts or (0, len(part_bytes))))
        told_read = reached, lease, step.places.of(0, len(lease.offsets)), part_bytes, parts

        def work() -> Coroutine[Any, Any, Read]:
            left_s = max(0.0, until - time.monotonic())
            return mover.ways.read(*told_read, space.registry.kept, verify=mover.verify, deadline_s=left_s)

        def at_once() -> Read | None:
            return read_at_once(*told_read, verify=mover.verify, deadline_s=max(0.0, until - time.monotonic()))

        read = yield Awaited(work, at_once=at_once)
        release.bytes = read.blocks * sum(part_bytes[parts.start : parts.stop])
        if read.corrupt is not None:
            release.corrupt.append(lease.tickets[read.corrupt])
    except STOPPED as error:
        return ended_by(error, "into")
    finally:
        mover.line.session.tell_call(store.METHOD_RELEASE, release.SerializeToString())
    status = Status.OK
    if read.failure and read.corrupt is None:
        status = Status.LATE if read.late else Status.UNAVAILABLE
    return Told(
        status,
        reason=read.failure,
        blocks=read.blocks,
        blocks_corrupt=int(read.corrupt is not None),
        window_full=lease.window_full or len(keys) < len(step.keys),
        bytes=release.bytes,
        tiers=lease.tiers[: read.blocks],
    )


def holding(mover: Mover, space: Space, step: Hold, times: Times) -> Conduct[Answer]:
    """One window. Of a node whose bytes are out of reach nothing is held: it could not be read."""
    wait_s = times.wait(times.left(), mover.line.limits)
    reached: Reached | None = None
    try:
        if not mover.line.maps:
            reached = yield from _reached(mover, times)
    except (Unavailable, Rejected) as error:
        return Told(Status.UNAVAILABLE, reason=str(error))
    request = _lease_request(mover, space, step, wait_s, reached)
    request.hold_only, request.far, request.chain.parent = True, step.far, step.parent
    release = framed.ReleaseRequest(lease=request.lease).SerializeToString()
    grip = Grip(mover.line.reach, lambda session: session.tell_call(store.METHOD_RELEASE, release))
    asked_at = time.monotonic()
    try:
        told = yield Called(store.METHOD_LEASE, request.SerializeToString())
    except BaseException:
        grip.release()  # whatever the node answers yet
        raise
    if told.status != Status.OK:
        return failed(told)
    try:
        lease = framed.LeaseResponse.FromString(told.body)
    except DecodeError:
        return Told(Status.UNAVAILABLE, field="lease", reason="the node's answer does not parse")
    blocks = len(lease.tiers)
    if blocks > len(step.keys):
        return Told(Status.UNAVAILABLE, field="lease", reason="the node's answer does not fit the request")
    expires_s = asked_at + lease.lease_ms / 1e3
    return Gripped(
        blocks=blocks, window_full=lease.window_full, tiers=lease.tiers, grip=grip if blocks else None,
        expires_s=expires_s,
    )  # fmt: skip


def _lease_request(
    mover: Mover, space: Space, step: Fetch | Hold, wait_s: float, reached: Reached | None
) -> framed.LeaseRequest:
    return framed.LeaseRequest(
        namespace=space.known.digest,
        shard=step.shard,
        chain=store.Chain(keys=step.keys.tobytes(), position=step.hint.position),
        hints=hints_of(step.hint),
        wait_ms=max(0, round(wait_s * 1e3)),
        carrier=int(reached.fetching.chosen.path.carrier) if reached is not None else 0,
        lease=next(mover.line.numbers),
    )


def _lease_of(told: Result, keys: int, parts: int) -> framed.LeaseResponse | None:
    """None for one that does not fit what was asked."""
    try:
        lease = framed.LeaseResponse.FromString(told.body)
    except DecodeError:
        return None
    blocks = len(lease.offsets)
    sizes = (len(lease.tiers), len(lease.tickets), len(lease.checksums))
    good = blocks <= keys and sizes == (blocks, blocks, blocks * parts * 8) and all(at < 2**62 for at in lease.offsets)
    return lease if good else None


# ---- put ------------------------------------------------------------------------------------------------------------


def putting(mover: Mover, space: Space, step: Put, times: Times) -> Conduct[Answer]:
    """One window, in as many pulls as its pieces need."""
    blocks, most = step.keys.shape[0], max(1, PIECES_MAX // step.places.pieces)
    outcomes = bytearray()
    for at in range(0, blocks, most):
        end = min(at + most, blocks)
        request = framed.PullRequest(
            namespace=space.known.digest,
            shard=step.shard,
            chain=store.Chain(
                keys=step.keys[at:end].tobytes(),
                parent=step.parent if at == 0 else step.keys[at - 1].tobytes(),
                position=step.hint.position + at,
            ),
            hints=hints_of(step.hint),
            meta=step.metas[at:end],
        )
        try:
            told = yield from _pulled(mover, space, step.places.of(at, end), times, request)
            if told.status != Status.OK:
                return failed(told, outcomes)
            response = framed.PullResponse.FromString(told.body)
        except STOPPED as error:
            return ended_by(error, "source", outcomes)
        except DecodeError:
            return Told(Status.UNAVAILABLE, field="pull", reason="the node's answer does not parse")
        if len(response.outcomes) != end - at:
            return Told(Status.UNAVAILABLE, field="pull", reason="the node's answer does not fit the request")
        outcomes += response.outcomes
        if response.failure:
            return Told(Status.UNAVAILABLE, reason=response.failure, outcomes=bytes(outcomes))
        if PutOutcome.FULL in response.outcomes:  # what is behind would be of no use
            outcomes += bytes((PutOutcome.FULL,)) * (blocks - end)
            break
    return Told(blocks=outcomes.count(PutOutcome.STORED), outcomes=bytes(outcomes))


_Sourced = framed.PullRequest | framed.FillRequest


def _pulled(mover: Mover, space: Space, places: Places, times: Times, request: _Sourced) -> Conduct[Result]:
    """Asks with our memory granted, and takes it back whatever comes of it. Raises Unavailable, Rejected, Poisoned."""
    reached = yield from _reached(mover, times)
    lent: list[Loan] = []  # also where whoever waits for it is interrupted just as it is there

    async def lend() -> Loan:
        lent.append(await mover.ways.lend(reached, places, space.registry.kept, times.left()))
        return lent[0]

    loan: Loan | None = None
    try:
        loan = yield Awaited(lend)
        assert loan is not None
        request.source.CopyFrom(loan.source)
        request.deadline_ms = round(times.left() * 1e3)
        pull = isinstance(request, framed.PullRequest)
        told: Result = yield Called(store.METHOD_PULL if pull else store.METHOD_FILL, request.SerializeToString())
    except BaseException:
        for one in lent if loan is None else [loan]:
            yield Awaited(partial(mover.ways.take_back, one), whole=True)
        raise
    yield Awaited(partial(mover.ways.take_back, loan), whole=True)
    return told


# ---- part by part ---------------------------------------------------------------------------------------------------


def reserving(mover: Mover, space: Space, step: Reserve, run: Run) -> Conduct[Answer]:
    request = framed.ReserveRequest(
        namespace=space.known.digest,
        shard=step.shard,
        chain=store.Chain(keys=step.keys.tobytes(), parent=step.parent, position=step.hint.position),
        hints=hints_of(step.hint),
        meta=step.metas,
        reservation=next(mover.line.numbers),
    )
    try:
        told = yield Called(store.METHOD_RESERVE, request.SerializeToString())
    except BaseException:
        give_up(mover, request.reservation)
        raise
    if told.status == Status.LATE:
        give_up(mover, request.reservation)
    if told.status != Status.OK:
        return failed(told)
    try:
        response = framed.ReserveResponse.FromString(told.body)
    except DecodeError:
        return Told(Status.UNAVAILABLE, field="reserve", reason="the node's answer does not parse")
    if len(response.outcomes) != step.keys.shape[0]:
        return Told(Status.UNAVAILABLE, field="reserve", reason="the node's answer does not fit the request")
    held = AwaySlots(mover, space, request.reservation, response.outcomes, run)
    return Taken(outcomes=response.outcomes, held=held)


def filling(mover: Mover, space: Space, request: framed.FillRequest, places: Places, times: Times) -> Conduct[Answer]:
    """One part of every granted block."""
    try:
        told = yield from _pulled(mover, space, places, times, request)
        if told.status != Status.OK:
            return failed(told)
        failure = framed.FillResponse.FromString(told.body).failure
    except STOPPED as error:
        return ended_by(error, "sources")
    return Told(Status.UNAVAILABLE, reason=failure) if failure else Told()


def give_up(mover: Mover, reservation: int) -> None:
    body = framed.AbortRequest(reservation=reservation).SerializeToString()
    mover.line.session.tell_call(store.METHOD_ABORT, body)


class AwaySlots:
    """Slots at a node whose memory is not mapped here. As kvstore.client.steps.Reservation. run: drives a conduct, in
    the calling thread.
    """

    def __init__(self, mover: Mover, space: Space, number: int, outcomes: bytes, run: Run) -> None:
        self._mover, self._space, self._number, self._run = mover, space, number, run
        self.granted = [i for i, outcome in enumerate(outcomes) if outcome == PutOutcome.STORED]

    def array(self, index: int) -> Keys:
        raise ValueError(f"block: {index} lies at the node, whose memory is not mapped here; write() its parts")

    def write(self, part: int, places: Places, deadline_s: float) -> Answer:
        if not self.granted:
            return Told()
        request = framed.FillRequest(reservation=self._number, part=part)
        times = times_of(deadline_s, None)
        return self._run(filling(self._mover, self._space, request, places, times), times.left)

    def publish(self, part: int, deadline_s: float) -> Answer:
        request = framed.PublishRequest(reservation=self._number, part=part)
        return self._asked(store.METHOD_PUBLISH, request, deadline_s) or Told()

    def seal(self, deadline_s: float) -> Answer:
        told = self._asked(store.METHOD_SEAL, framed.SealRequest(reservation=self._number), deadline_s)
        if told is None or told.status != Status.OK:
            return told or Told()
        return Told(outcomes=framed.SealResponse.FromString(told.body).outcomes)

    def abort(self) -> None:
        if self.granted:
            give_up(self._mover, self._number)

    def _asked(self, method: int, request: Message, deadline_s: float) -> Result | None:
        """None where nothing was granted: the node knows of no such reservation."""
        if not self.granted:
            return None
        return self._mover.line.session.call(method, request.SerializeToString(), deadline_s)
