"""The journey of a follow: first what is there already, as a get; then what somebody publishes, part by part. No I/O.

Rules
- A part is told of when it has arrived and verified of *every* block: what the engine may begin to compute with, at its
  own risk, since blocks that are not sealed yet may still be given up.
- Only sealed blocks count in the result. A follow that ends otherwise says so, whatever parts it told of before.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from kvstore.client.buffers import Places
from kvstore.client.followed import Followed
from kvstore.client.journeys import Ended, Got, Shape, Tiers, check_count, count_tiers, getting
from kvstore.client.steps import Answer, Follow, Keys, PartReady, Report, Status, Step, Told, WireHint, fail
from kvstore.errors import Rejected

__all__ = ["FollowDone", "FollowJourney", "following"]


@dataclass(frozen=True, slots=True)
class FollowDone:
    """What a follow came to. blocks: the contiguous prefix that is sealed, arrived and verified. parts: how many parts
    of every block had arrived; of blocks beyond `blocks` they are nobody's word. tiers: as a get's, of `blocks`.
    """

    blocks: int
    tokens: int
    parts: int
    tiers: Tiers
    ended: Ended
    why: str = ""


FollowJourney: TypeAlias = Generator[Step | PartReady, Answer, FollowDone]


def following(
    shape: Shape, shard: int, keys: Keys, places: Places, hint: WireHint, part_count: int, *, clustered: bool
) -> FollowJourney:
    check_count(keys, shape.limits)
    most = max(1, shape.limits.window_bytes // shape.shard_bytes[shard])
    if keys.shape[0] > most:
        size = shape.shard_bytes[shard]
        raise Rejected(
            f"chain: {keys.shape[0]} blocks of {size} bytes, at most {most} of a follow", limit="window_bytes"
        )
    got = yield from _what_is_there(shape, shard, keys, places, hint, clustered=clustered)
    followed = Followed(keys.shape[0] - got.blocks, part_count)
    ended: Ended | None = Ended.COMPLETE if not followed.count else None
    if got.ended not in {Ended.COMPLETE, Ended.MISS, Ended.LATE}:
        ended = got.ended
    step = Follow(shard, keys[got.blocks :], places.of(got.blocks, keys.shape[0]), hint.at(got.blocks), followed)
    told, failed = part_count if ended is Ended.COMPLETE else 0, ""
    try:
        for part in range(told):
            yield PartReady(part)
        while ended is None:
            answer = yield step
            failed = answer.reason
            for part in range(told, followed.parts):
                yield PartReady(part)
            told = max(told, followed.parts)
            ended = _ended(answer, followed, begun=bool(got.blocks or followed.arrived))
    finally:
        followed.end()
    blocks = got.blocks + followed.blocks
    tiers = np.frombuffer(got.tiers.tobytes() + followed.tiers[: followed.blocks], dtype=np.uint8)
    if ended is not Ended.UNAVAILABLE:
        yield Report(hint, keys.shape[0], count_tiers(tiers.tobytes()), int(ended is Ended.CORRUPT))
    return FollowDone(blocks, blocks * shape.block_tokens, told, tiers, ended, followed.abandoned or failed)


def _what_is_there(
    shape: Shape, shard: int, keys: Keys, places: Places, hint: WireHint, *, clustered: bool
) -> Generator[Step | PartReady, Answer, Got]:
    """A get that does not count itself: the follow counts once, at its end."""
    journey = getting(shape, shard, keys, places, hint, clustered=clustered)
    try:
        step = next(journey)
        while True:
            step = journey.send(Told() if isinstance(step, Report) else (yield step))
    except StopIteration as stop:
        got: Got = stop.value
        return got


def _ended(answer: Answer, followed: Followed, *, begun: bool) -> Ended | None:
    """Where nothing came of anything, what the caller got wrong, or a node that refuses, is raised."""
    if followed.blocks == followed.count:
        return Ended.COMPLETE
    if followed.corrupt:
        return Ended.CORRUPT
    if answer.status == Status.LATE:
        return Ended.LATE
    if answer.status == Status.STALE_NAMESPACE:
        return Ended.CLEARED
    if answer.status != Status.OK:
        if answer.status in {Status.BAD_INPUT, Status.DENIED} or not begun:
            raise fail(answer)
        return Ended.FULL if answer.status == Status.REJECTED else Ended.UNAVAILABLE
    return Ended.ABANDONED if followed.abandoned else None
