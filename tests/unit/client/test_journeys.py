"""The journeys' decisions, step by step, against scripted answers: windows, ends, reopening, reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest

from kvstore.client.buffers import Places
from kvstore.client.held import Grip, Reach
from kvstore.client.journeys import (
    Ended,
    Journey,
    Load,
    Shape,
    getting,
    holding,
    looking_up,
    putting,
    reserving,
    viewing,
)
from kvstore.client.steps import (
    Answer,
    Fetch,
    FoundFar,
    Gripped,
    Hold,
    Holder,
    Lent,
    Limits,
    Look,
    Lookup,
    LookupFar,
    Put,
    PutOutcome,
    Reopen,
    Reopened,
    Report,
    Reserve,
    Status,
    Step,
    Told,
    WireHint,
)
from kvstore.errors import Rejected, Unavailable

SIZE = 100
SHAPE = Shape(16, (SIZE, 3 * SIZE), Limits(1000, 4 * SIZE, 1024, 10.0))
HINT = WireHint(family=7)
T = TypeVar("T")


def keys(count: int) -> np.ndarray:
    return np.arange(count * 32, dtype=np.uint32).astype(np.uint8).reshape(count, 32)


def places(count: int) -> Places:
    addresses = np.arange(count, dtype=np.uint64) * SIZE + 4096
    return Places(addresses, np.array([SIZE], np.uint64), 1, None)


def drive(journey: Journey[T], *answers: Answer) -> tuple[T, list[Step]]:
    """The journey's result and its steps; reports are answered by themselves."""
    left, steps = list(answers), []
    try:
        step = next(journey)
        while True:
            steps.append(step)
            step = journey.send(Told() if isinstance(step, Report) else left.pop(0))
    except StopIteration as stop:
        assert not left, "more answers than steps"
        return stop.value, steps


def ok(blocks: int, *, tier: int = 1, full: bool = False, corrupt: int = 0) -> Told:
    return Told(
        blocks=blocks, window_full=full, blocks_corrupt=corrupt, tiers=bytes([tier]) * blocks, bytes=blocks * SIZE
    )


def puts(*outcomes: PutOutcome) -> Told:
    return Told(outcomes=bytes(outcomes), blocks=sum(o == PutOutcome.STORED for o in outcomes))


S, H, P, F, L = PutOutcome.STORED, PutOutcome.HELD, PutOutcome.PENDING, PutOutcome.FULL, PutOutcome.LAPSED
SAME, CLEARED = Reopened(same=True), Reopened(same=False)
STALE, GONE, LATE = Told(Status.STALE_NAMESPACE), Told(Status.UNAVAILABLE, reason="gone"), Told(Status.LATE)


def test_a_get_asks_for_the_rest_until_the_end() -> None:
    got, steps = drive(getting(SHAPE, 0, keys(10), places(10), HINT), ok(4, full=True), ok(4, full=True), ok(2))
    assert (got.blocks, got.tokens, got.ended) == (10, 160, Ended.COMPLETE)
    fetches = [step for step in steps if isinstance(step, Fetch)]
    assert [len(step.keys) for step in fetches] == [10, 6, 2]
    assert [int(step.places.addresses[0]) for step in fetches] == [4096, 4096 + 4 * SIZE, 4096 + 8 * SIZE]
    assert [step.hint.position for step in fetches] == [0, 4, 8]
    assert steps[-1] == Report(HINT, 10, (0, 10, 0, 0), 0, 10 * SIZE)


@pytest.mark.parametrize(
    ("answers", "blocks", "ended"),
    [
        ([ok(0)], 0, Ended.MISS),
        ([ok(3)], 3, Ended.MISS),
        ([ok(3, corrupt=1)], 3, Ended.CORRUPT),
        ([ok(4, full=True), ok(0, corrupt=1)], 4, Ended.CORRUPT),
        ([ok(4, full=True), ok(0)], 4, Ended.MISS),
        ([ok(0, full=True)], 0, Ended.MISS),
        ([LATE], 0, Ended.LATE),
        ([ok(4, full=True), LATE], 4, Ended.LATE),
        ([ok(4, full=True), GONE, GONE], 4, Ended.UNAVAILABLE),
        ([ok(4, full=True), GONE, SAME, GONE], 4, Ended.UNAVAILABLE),
        ([ok(4, full=True), GONE, SAME, ok(6)], 10, Ended.COMPLETE),
        ([ok(4, full=True), STALE, CLEARED], 4, Ended.CLEARED),
        ([STALE, SAME, ok(10)], 10, Ended.COMPLETE),
        ([Told(Status.UNAVAILABLE, blocks=10, tiers=b"\1" * 10), SAME], 10, Ended.COMPLETE),
        ([STALE, SAME, STALE], None, Unavailable),
        ([STALE, CLEARED], 0, Ended.CLEARED),
        ([GONE, GONE], None, Unavailable),
        ([Told(Status.REJECTED, field="holds_per_connection_max")], None, Rejected),
        ([ok(4, full=True), Told(Status.REJECTED)], 4, Ended.FULL),
        ([Told(Status.BAD_INPUT, field="keys", reason="are odd")], None, ValueError),
        ([ok(4, full=True), Told(Status.BAD_INPUT)], None, ValueError),
        ([Told(Status.DENIED)], None, Rejected),
    ],
)
def test_how_a_get_ends(answers: list[Told], blocks: int | None, ended: Ended | type[Exception]) -> None:
    journey = getting(SHAPE, 0, keys(10), places(10), HINT)
    if isinstance(ended, type):
        with pytest.raises(ended):
            drive(journey, *answers)
        return
    got, steps = drive(journey, *answers)
    assert (got.blocks, got.ended, len(got.tiers)) == (blocks, ended, blocks)
    reports = [step for step in steps if isinstance(step, Report)]
    assert len(reports) == (0 if ended is Ended.UNAVAILABLE else 1), "a get is counted once, where anybody counts"


def test_a_get_among_nodes_asks_others_at_each_hole_and_its_own_again_behind_it() -> None:
    journey = getting(SHAPE, 0, keys(10), places(10), HINT, clustered=True)
    answers = [ok(3), ok(4, tier=9, full=True), ok(2), ok(1, tier=10)]
    got, steps = drive(journey, *answers)
    assert (got.blocks, got.ended) == (10, Ended.COMPLETE)
    assert got.tiers.tolist() == [1] * 3 + [9] * 4 + [1] * 2 + [10]
    fetches = [step for step in steps if isinstance(step, Fetch)]
    assert [(step.far, len(step.keys)) for step in fetches] == [(False, 10), (True, 7), (False, 3), (True, 1)]
    above = [keys(10)[10 - len(step.keys) - 1].tobytes() for step in fetches if step.far]
    assert [step.parent for step in fetches if step.far] == above, "a copy of it is to have its place in the chain"
    # Hits by the tier there; what moved by the node's own tiers apart from it.
    assert steps[-2:] == [Report(HINT, 10, (0, 9, 1, 0)), Report(HINT, moved=5 * SIZE)]


@pytest.mark.parametrize(
    ("answers", "blocks", "ended"),
    [
        ([ok(0), ok(0)], 0, Ended.MISS),
        ([ok(3), ok(2, tier=9)], 5, Ended.MISS),
        ([ok(3), ok(2, tier=9, full=True), ok(0), ok(0)], 5, Ended.MISS),
        ([ok(3), ok(2, tier=9, corrupt=1)], 5, Ended.CORRUPT),
        ([ok(3), ok(0, full=True), ok(7)], 10, Ended.COMPLETE),
        ([ok(3), ok(0, full=True), ok(2), ok(0, full=True), ok(5)], 10, Ended.COMPLETE),
        ([ok(3), ok(0, full=True), ok(0), ok(0, full=True)], 3, Ended.MISS),
        ([ok(3, corrupt=1)], 3, Ended.CORRUPT),
        ([ok(3), LATE], 3, Ended.LATE),
        ([ok(3), GONE, SAME, ok(7)], 10, Ended.COMPLETE),
    ],
)
def test_how_a_get_among_nodes_ends(answers: list[Told], blocks: int, ended: Ended) -> None:
    got, _ = drive(getting(SHAPE, 0, keys(10), places(10), HINT, clustered=True), *answers)
    assert (got.blocks, got.ended) == (blocks, ended)


def test_a_get_of_nothing_asks_nothing_but_is_counted() -> None:
    got, steps = drive(getting(SHAPE, 0, keys(0), places(0), HINT))
    assert (got.blocks, got.ended) == (0, Ended.COMPLETE)
    assert [type(step) for step in steps] == [Report]


def test_blocks_that_arrived_beside_a_failure_count() -> None:
    late = Told(Status.LATE, blocks=2, tiers=b"\1\1", bytes=2 * SIZE)
    got, steps = drive(getting(SHAPE, 0, keys(10), places(10), HINT), late)
    assert (got.blocks, got.ended) == (2, Ended.LATE)
    assert steps[-1] == Report(HINT, 10, (0, 2, 0, 0), 0, 2 * SIZE)


def test_a_put_goes_window_by_window_with_the_right_parents() -> None:
    load = Load(keys(10), places(10), b"p" * 32, tuple(bytes([i]) for i in range(10)))
    stored, steps = drive(putting(SHAPE, 0, load, HINT), puts(S, S, H, S), puts(H, P, S, L), puts(S, S))
    assert (stored.stored, stored.held, stored.pending, stored.rejected) == (6, 2, 1, 1)
    assert stored.ended is Ended.COMPLETE
    windows = [step for step in steps if isinstance(step, Put)]
    assert [len(step.keys) for step in windows] == [4, 4, 2]
    assert [step.parent for step in windows] == [b"p" * 32, keys(10)[3].tobytes(), keys(10)[7].tobytes()]
    assert [step.metas for step in windows] == [load.metas[:4], load.metas[4:8], load.metas[8:]]
    assert [step.hint.position for step in windows] == [0, 4, 8]


def test_a_put_stops_where_there_is_no_room() -> None:
    stored, steps = drive(putting(SHAPE, 0, Load(keys(10), places(10)), HINT), puts(S, S, F, F))
    assert (stored.stored, stored.rejected, stored.ended) == (2, 8, Ended.FULL)
    assert len(steps) == 1


def test_a_block_larger_than_a_window_is_put_alone() -> None:
    stored, steps = drive(
        putting(Shape(16, (9 * SIZE,), SHAPE.limits), 0, Load(keys(2), places(2)), HINT), puts(S), puts(S)
    )
    assert (stored.stored, len(steps)) == (2, 2)


def test_a_block_too_large_for_a_slab_is_refused_by_name() -> None:
    with pytest.raises(Rejected, match="does not fit a slab") as refused:
        drive(putting(SHAPE, 0, Load(keys(1), places(1)), HINT), puts(PutOutcome.TOO_LARGE))
    assert refused.value.limit == "slab_bytes"


@pytest.mark.parametrize(
    ("answers", "stored", "ended"),
    [
        ([GONE, SAME, puts(H, S, S, S), puts(S)], 4, Ended.COMPLETE),
        ([puts(S, S, S, S), STALE, CLEARED], 4, Ended.CLEARED),
        ([STALE, CLEARED], 0, Ended.CLEARED),
        ([LATE], 0, Ended.LATE),
        ([puts(S, S, S, S), GONE, GONE], 4, Ended.UNAVAILABLE),
    ],
)
def test_how_a_put_ends(answers: list[Told], stored: int, ended: Ended) -> None:
    done, _ = drive(putting(SHAPE, 0, Load(keys(5), places(5)), HINT), *answers)
    assert (done.stored, done.ended) == (stored, ended)
    assert done.stored + done.held + done.pending + done.rejected == 5


def test_a_lookup_asks_the_other_nodes_for_what_is_not_here_and_only_for_that() -> None:
    here, holder = Told(blocks=2, tiers=b"\1\1", fetch_s=0.5), Holder("n", "h:1", 0, 2, 2)
    there = FoundFar(blocks=4, tiers=b"\1\1\t\t", fetch_s=0.25, holders=(holder,))
    asked = 0

    def far() -> bytes:
        nonlocal asked
        asked += 1
        return b"request"

    found, steps = drive(looking_up(SHAPE, keys(5), (), far), here, there)
    assert (found.blocks, found.tiers.tolist(), found.fetch_s, found.holders) == (4, [1, 1, 9, 9], 0.75, (holder,))
    assert steps[1] == LookupFar(b"request") and asked == 1
    for worse in (FoundFar(blocks=1, tiers=b"\1"), Told(Status.LATE), Told(Status.UNAVAILABLE), STALE):
        found, _ = drive(looking_up(SHAPE, keys(5), (), far), here, worse)
        assert (found.blocks, found.fetch_s, found.holders) == (2, 0.5, ())
    drive(looking_up(SHAPE, keys(2), (), far), here)
    drive(looking_up(SHAPE, keys(5), ()), here)
    assert asked == 5


def test_lookup_says_tiers_tokens_and_how_long() -> None:
    found, _ = drive(looking_up(SHAPE, keys(5), ()), Told(blocks=3, tiers=b"\1\2\2", fetch_s=0.5))
    assert (found.blocks, found.tokens, found.tiers.tolist()) == (3, 48, [1, 2, 2])
    assert found.fetch_s == 0.5


def test_lookup_reopens_once() -> None:
    found, steps = drive(looking_up(SHAPE, keys(5), ()), STALE, SAME, Told(blocks=1, tiers=b"\1"))
    assert found.blocks == 1
    assert [type(step) for step in steps] == [Lookup, Reopen, Lookup]
    assert drive(looking_up(SHAPE, keys(5), ()), STALE, CLEARED)[0].blocks == 0
    with pytest.raises(Unavailable):
        drive(looking_up(SHAPE, keys(5), ()), GONE, GONE)


def test_a_view_is_one_window_and_is_counted() -> None:
    lent = Lent(blocks=2, tiers=b"\1\1", arrays=(np.zeros(1, np.uint8),) * 2)
    answer, steps = drive(viewing(SHAPE, Look(1, keys(3), HINT, False)), lent)
    assert answer is lent
    assert steps[-1] == Report(HINT, 3, (0, 2, 0, 0), 0, 6 * SIZE)
    assert drive(viewing(SHAPE, Look(1, keys(3), HINT, False)), STALE, CLEARED)[0].blocks == 0


BIG = keys(1001)


@pytest.mark.parametrize(
    "start",
    [
        lambda: looking_up(SHAPE, BIG, ()),
        lambda: getting(SHAPE, 0, BIG, places(1001), HINT),
        lambda: putting(SHAPE, 0, Load(BIG, places(1001)), HINT),
        lambda: viewing(SHAPE, Look(0, BIG, HINT, False)),
        lambda: reserving(SHAPE, Reserve(0, BIG, HINT, b"", ())),
    ],
)
def test_more_keys_than_a_call_takes_are_refused_before_anything_is_sent(start: Callable[[], Journey[object]]) -> None:
    with pytest.raises(Rejected, match="chain: 1001 keys, at most 1000 a call") as refused:
        drive(start())
    assert refused.value.limit == "keys_per_call_max"


def test_a_reservation_is_at_most_a_window() -> None:
    with pytest.raises(Rejected, match="chain: 5 blocks of 100 bytes, at most 4 a reservation") as refused:
        drive(reserving(SHAPE, Reserve(0, keys(5), HINT, b"", ())))
    assert refused.value.limit == "window_bytes"


@pytest.mark.parametrize(("parts", "counts"), [(None, True), ((0, 1), True), ((0, 4), True), ((1, 4), False)])
def test_blocks_got_by_parts_are_counted_with_the_first(parts: tuple[int, int] | None, counts: bool) -> None:
    answers = ok(4, full=True), ok(1, corrupt=1)
    got, steps = drive(getting(SHAPE, 0, keys(6), places(6), HINT, parts), *answers)
    assert (got.blocks, got.ended) == (5, Ended.CORRUPT)
    assert [step.parts for step in steps if isinstance(step, Fetch)] == [parts, parts]
    report = steps[-1]
    assert isinstance(report, Report)
    assert report.moved == 5 * SIZE
    assert (report.asked, report.by_tier, report.failed) == ((6, (0, 5, 0, 0), 1) if counts else (0, (0, 0, 0, 0), 0))


# ---- holding --------------------------------------------------------------------------------------------------------


class Windows:
    """Holds as a node gives them. over: which of them have ended."""

    def __init__(self) -> None:
        self.over: list[int] = []
        self.reach = Reach(object())  # type: ignore[arg-type]

    def run(self, number: int, blocks: int, *, full: bool = False, expires_s: float = float("inf")) -> Gripped:
        grip = Grip(self.reach, lambda _: self.over.append(number))
        tiers = bytes([number]) * blocks
        return Gripped(blocks=blocks, window_full=full, tiers=tiers, grip=grip, expires_s=expires_s)


def test_a_hold_is_asked_for_window_after_window_and_is_no_hit() -> None:
    windows = Windows()
    answers = (
        windows.run(1, 4, full=True, expires_s=9.0),
        windows.run(2, 4, full=True, expires_s=7.0),
        windows.run(3, 2),
    )
    held, steps = drive(holding(SHAPE, 1, keys(11), HINT), *answers)
    del answers
    assert (held.blocks, held.tokens, held.expires_s) == (10, 160, 7.0)
    assert held.tiers.tolist() == [1] * 4 + [2] * 4 + [3] * 2
    assert all(isinstance(step, Hold) for step in steps), "nothing is reported"
    assert [(len(step.keys), step.hint.position, step.shard) for step in steps] == [(11, 0, 1), (7, 4, 1), (3, 8, 1)]  # type: ignore[union-attr]
    assert not windows.over
    held.close()
    assert windows.over == [1, 2, 3]
    held.close()
    assert windows.over == [1, 2, 3]


def test_what_was_held_before_a_restart_is_held_anew() -> None:
    windows = Windows()
    first = windows.run(1, 4, full=True)
    held, steps = drive(
        holding(SHAPE, 0, keys(6), HINT), first, GONE, SAME, windows.run(2, 4, full=True), windows.run(3, 2)
    )
    del first
    assert [len(step.keys) for step in steps if isinstance(step, Hold)] == [6, 2, 6, 2]
    assert (held.blocks, held.tiers.tolist()) == (6, [2] * 4 + [3] * 2)
    assert windows.over == [1]


def test_of_a_node_that_stays_away_nothing_is_held() -> None:
    windows = Windows()
    with pytest.raises(Unavailable):
        drive(holding(SHAPE, 0, keys(6), HINT), windows.run(1, 4, full=True), GONE, GONE)
    held, _ = drive(holding(SHAPE, 0, keys(6), HINT), windows.run(2, 4, full=True), STALE, CLEARED)
    assert (held.blocks, held.closed) == (0, True)
    assert windows.over == [1, 2]


def test_windows_that_were_held_in_time_are_held() -> None:
    windows = Windows()
    held, _ = drive(holding(SHAPE, 0, keys(6), HINT), windows.run(1, 4, full=True), LATE)
    assert held.blocks == 4
    limited = Told(Status.REJECTED, field="holds_per_connection_max")
    more, _ = drive(holding(SHAPE, 0, keys(6), HINT), windows.run(2, 4, full=True), limited)
    assert more.blocks == 4
    del held
    assert windows.over == [1]
    windows.reach.cut()
    assert windows.over == [1, 2], "a client that is closed ends them all"
    more.close()
    assert windows.over == [1, 2]
