"""Device memory put where the node's segment is mapped: RESERVE -> through staging buffers into the slots -> SEAL."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from kvstore.client.calls import as_call, told
from kvstore.client.conducts import STOPPED, Awaited, Beside, Conduct, Mover, ended_by, failed
from kvstore.client.steps import Answer, Put, PutOutcome, Reservation, Reserve, Status, Taken, Told

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore import native
    from kvstore.client.buffers import Places
    from kvstore.client.calls import Times
    from kvstore.client.space import Space

__all__ = ["placing", "publishing"]


def publishing(mover: Mover, space: Space, step: Put, times: Times) -> Conduct[Answer]:
    """One window: what is granted is filled and sealed, or nothing is."""
    line, asked = mover.line, Reserve(step.shard, step.keys, step.hint, step.parent, step.metas)
    handle = space.handle_on(line)
    if handle is None:
        return Told(Status.STALE_NAMESPACE)
    _, arguments = as_call(line, handle, asked, times)
    reserve: Callable[..., native.Reservation] = line.session.reserve
    taken = told(line, asked, (yield Beside(partial(reserve, *arguments))), space.shard_bytes)
    held = taken.held if isinstance(taken, Taken) else None
    if taken.status != Status.OK or held is None or not held.granted:
        return failed(taken, taken.outcomes)
    try:
        filled = yield from placing(mover, held, step.places.pick(held.granted), times, name="source")
    except BaseException:
        held.abort()
        raise
    if filled.status != Status.OK:
        held.abort()
        return filled
    sealed: Answer = yield Beside(partial(held.seal, times.left()))
    if sealed.status != Status.OK:
        return failed(sealed)
    outcomes = bytearray(taken.outcomes)
    for index, outcome in zip(held.granted, sealed.outcomes, strict=True):
        outcomes[index] = PutOutcome.STORED if outcome == 0 else PutOutcome.LAPSED
    return Told(blocks=outcomes.count(PutOutcome.STORED), outcomes=bytes(outcomes))


def placing(
    mover: Mover,
    held: Reservation,
    places: Places,
    times: Times,
    *,
    name: str,
    begin: int = 0,
    count: int | None = None,
) -> Conduct[Answer]:
    """Bytes begin.. of every granted slot, from places some of which lie on devices. Seals nothing. Raises Poisoned."""
    end = None if count is None else begin + count
    targets = [held.array(index)[begin:end] for index in held.granted]
    try:
        yield Awaited(partial(mover.ways.fill, places, targets, times.left()))
    except STOPPED as error:
        return ended_by(error, name)
    return Told()
