"""A follow, step by step: asked what is new, told which parts are ready and where they lie, read one-sidedly, compared.

  FOLLOW --> the node (kvstore/node/follows.py) --> new parts of a holder's blocks: granted, with their checksums
  those: read, compared -- FOLLOW: what came is read, what is next? ... until all is sealed, or given up -- RELEASE

By the ways of a get of what other nodes have, also where the node itself is the holder and its memory is mapped: so
parts arrive alike wherever they come from, on devices too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from kvstore.client.calls import WAIT_MARGIN_S
from kvstore.client.conducts import STOPPED, Awaited, Called, Conduct, Mover, ended_by, failed
from kvstore.client.held import Grip
from kvstore.client.hints import hints_of
from kvstore.client.holders import read_within
from kvstore.client.steps import Answer, Follow, Status, Told
from kvstore.client.ways import Reached
from kvstore.errors import Unavailable
from kvstore.wire import framed, store
from transfer.batch import EXTENTS_MAX

if TYPE_CHECKING:
    from kvstore.client.calls import Times
    from kvstore.client.followed import Followed
    from kvstore.client.landed import Read
    from kvstore.client.space import Space
    from kvstore.native import Result

__all__ = ["following"]

ASK_S_MAX: Final = 20.0  # that one question may wait at the node; then the next one


class _New(NamedTuple):
    """Parts [begin, until) of blocks [first, end). sums: (blocks, parts of a shard), of these parts."""

    first: int
    end: int
    begin: int
    until: int
    sums: np.ndarray[tuple[int, int], np.dtype[np.uint64]]


def following(mover: Mover, space: Space, step: Follow, times: Times) -> Conduct[Answer]:
    """One question, and what it brings. What came is in step.followed, whatever the answer's status."""
    followed, left = step.followed, times.left()
    begun = followed.line is not None
    if left <= 0:
        return Told(Status.LATE, reason="the deadline passed")
    if begun and followed.line is not mover.line:
        return Told(Status.UNAVAILABLE, reason="the node was restarted, and knows nothing of what was followed")
    try:
        told = yield from _asked(mover, space, step, left)
        if told.status != Status.OK:
            return _refused(followed, told, begun=begun)
        answer, before = framed.FollowResponse.FromString(told.body), followed.arrived.copy()
        if not followed.told(answer):
            raise DecodeError
        failure = ""
        if answer.checksums:
            failure = yield Awaited(partial(_read, mover, space, step, times, answer, before))
    except STOPPED as error:
        return ended_by(error, "into")
    except DecodeError:
        return Told(Status.UNAVAILABLE, field="follow", reason="the node's answer does not fit the request")
    if failure and not followed.corrupt:
        followed.abandoned = followed.abandoned or failure
    return Told(reason=failure, blocks_corrupt=int(followed.corrupt))


def _refused(followed: Followed, told: Result, *, begun: bool) -> Answer:
    if told.status != Status.BAD_INPUT or not begun:
        return failed(told)
    followed.abandoned = told.reason or "it has lapsed"  # nobody asked for so long that the node let go
    return Told(reason=told.reason)


def _asked(mover: Mover, space: Space, step: Follow, left: float) -> Conduct[Result]:
    request = framed.FollowRequest()
    if step.followed.line is None:
        request.carriers.extend(map(int, mover.ways.carriers or (yield Awaited(mover.ways.start))))
        _begin(mover, space, step, request)
    request.lease = step.followed.number
    request.wait_ms = round(min(ASK_S_MAX, max(left - WAIT_MARGIN_S, left / 2)) * 1e3)
    told: Result = yield Called(store.METHOD_FOLLOW, request.SerializeToString())
    return told


def _begin(mover: Mover, space: Space, step: Follow, request: framed.FollowRequest) -> None:
    followed = step.followed
    followed.line, followed.number = mover.line, next(mover.line.numbers)
    release = followed.release
    release.lease = followed.number
    followed.grip = Grip(
        mover.line.reach, lambda session: session.tell_call(store.METHOD_RELEASE, release.SerializeToString())
    )
    request.namespace, request.shard = space.known.digest, step.shard
    request.chain.CopyFrom(store.Chain(keys=step.keys.tobytes(), position=step.hint.position))
    request.hints.CopyFrom(hints_of(step.hint))


def _new(answer: framed.FollowResponse, before: list[int], part_count: int, most: int) -> Iterator[_New]:
    """Blocks of which the same parts are new, at most `most` of them together."""
    old = before + [0] * (len(answer.ready) - len(before))
    sums, at = np.frombuffer(answer.checksums, "<u8"), 0
    rows = enumerate(zip(old, answer.ready, strict=True))
    for (begin, until), group in groupby(rows, key=lambda row: row[1]):
        blocks = [i for i, _ in group]
        if begin == until:
            continue
        for first in range(blocks[0], blocks[-1] + 1, most):
            end = min(first + most, blocks[-1] + 1)
            table = np.zeros((end - first, part_count), np.uint64)
            count = (end - first) * (until - begin)
            table[:, begin:until] = sums[at : at + count].reshape(end - first, -1)
            at += count
            yield _New(first, end, begin, until, table)


async def _read(
    mover: Mover, space: Space, step: Follow, times: Times, answer: framed.FollowResponse, before: list[int]
) -> str:
    """Why not all of it arrived; "" where it did. Raises NotTaken, Poisoned."""
    followed, holders = step.followed, mover.ways.holders
    part_bytes = space.part_bytes[step.shard]
    starts = [0, *accumulate(part_bytes)]
    section = answer.section
    try:
        way, carrier, descriptor = await holders.granted(
            section.incarnation, section.offer, section.grants, times.left()
        )
    except Unavailable as error:
        return str(error)
    count = followed.release.reads[0] if followed.release.reads else followed.release.reads.add()
    count.carrier = carrier
    most = max(1, EXTENTS_MAX // step.places.pieces)
    with holders.reading(section.incarnation):
        for new in _new(answer, before, followed.part_count, most):
            size = starts[new.until] - starts[new.begin]
            lease = framed.LeaseResponse(
                offsets=followed.offsets[new.first : new.end],
                checksums=new.sums.astype("<u8").tobytes(),
                descriptor=descriptor,
            )
            read: Read = await mover.ways.read(
                Reached(way, way),
                lease,
                step.places.of(new.first, new.end).cut(starts[new.begin], starts[new.until]),
                part_bytes,
                range(new.begin, new.until),
                space.registry.kept,
                verify=mover.verify,
                deadline_s=read_within((new.end - new.first) * size, times.left()),
            )
            for block in range(new.first, new.first + read.blocks):
                followed.arrived[block] = new.until
            count.bytes += read.blocks * size
            if read.corrupt is not None:
                followed.corrupt = True
                followed.release.corrupt.append(followed.tickets[new.first + read.corrupt])
                return "a part did not verify"
            if read.failure:
                return read.failure
    return ""
