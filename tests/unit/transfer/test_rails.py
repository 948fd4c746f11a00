"""Rails against a plain model that keeps its whole history, and the moves that a failed rail leads to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from transfer.rails import RailConfig, Rails, RailState

CONFIG = RailConfig(failures_max=3, window_s=5.0, pause_s=1.0, pause_s_max=8.0)


def paused(rails: Rails, number: int, now: float) -> None:
    assert rails.failed(number, now, severe=True)


def state(rails: Rails, number: int) -> RailState:
    return rails.reports()[number].state


def test_failures_within_the_window_pause_and_others_do_not() -> None:
    rails = Rails([1, 1], CONFIG)
    assert not rails.failed(0, 0.0)
    assert not rails.failed(0, 4.0)
    assert not rails.failed(0, 5.5)  # the first is forgotten
    assert rails.usable() == (0, 1)
    assert rails.failed(0, 6.0)
    assert rails.usable() == (1,)
    assert rails.reports()[0].failures == 4 and rails.reports()[0].pauses == 1


def test_pauses_double_to_a_limit_and_begin_anew_after_good_behaviour() -> None:
    rails, now, waits = Rails([1], CONFIG), 0.0, []
    paused(rails, 0, now)
    for _ in range(5):
        again = rails.next_due()
        assert again is not None
        waits.append(again - now)
        assert rails.due(again - 0.001) == ()
        now = again
        assert rails.due(now) == (0,)
        rails.tried(0, False, now)
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0]
    rails.tried(0, True, now)
    assert rails.usable() == (0,) and rails.next_due() is None
    paused(rails, 0, now + 7.9)  # not long enough for trust
    assert rails.next_due() == now + 7.9 + 8.0
    rails.tried(0, True, now + 20)
    paused(rails, 0, now + 28)
    assert rails.next_due() == now + 29


def test_an_echo_of_what_paused_a_rail_prolongs_nothing() -> None:
    rails = Rails([1], CONFIG)
    paused(rails, 0, 0.0)
    for i in range(10):
        assert rails.failed(0, 0.1 * i)
    assert rails.next_due() == 1.0 and rails.reports()[0].pauses == 1
    rails.tried(0, True, 1.0)
    assert not rails.failed(0, 1.1), "failures from before the pause must not count after it"


def test_a_trial_that_nobody_concludes_is_followed_by_another() -> None:
    rails = Rails([1], CONFIG)
    paused(rails, 0, 0.0)
    assert rails.due(1.0) == (0,)
    assert rails.due(1.5) == ()
    assert rails.due(2.0) == (0,)


def test_a_port_that_is_up_again_is_tried_first() -> None:
    rails = Rails([1, 1], CONFIG)
    rails.down(0)
    assert state(rails, 0) is RailState.DOWN and rails.usable() == (1,)
    rails.tried(0, True, 1.0)
    assert rails.usable() == (1,), "a trial opens no port"
    assert rails.due(100.0) == () and rails.next_due() is None
    rails.up(1, 5.0)
    rails.up(0, 5.0)
    assert rails.usable() == (1,) and rails.due(5.9) == () and rails.due(6.0) == (0,)
    rails.tried(0, True, 6.1)
    assert rails.usable() == (0, 1)


def test_slices_of_a_failed_rail_are_dealt_to_the_others() -> None:
    rails = Rails([3, 1, 2], CONFIG)
    assert rails.weights() == (3, 1, 2)
    assert sorted(rails.deal([10] * 60)) == [0] * 30 + [1] * 10 + [2] * 20
    assert set(rails.deal([10] * 60, away_from=0)) == {1, 2}
    paused(rails, 0, 0.0)
    assert rails.weights() == (1, 2)
    assert sorted(rails.deal([10] * 60)) == [1] * 20 + [2] * 40
    rails.down(1)
    assert rails.deal([5, 0], away_from=2) == [2, 2], "the only rail left"
    rails.down(2)
    assert rails.deal([5]) == []
    assert Rails([1, 1]).deal([]) == []


def test_near_rails_come_first_and_the_others_are_spare() -> None:
    rails = Rails([3, 1, 2, 7], CONFIG)
    assert rails.usable((1, 2)) == (1, 2) and rails.weights((1, 2)) == (1, 2)
    assert set(rails.deal([10] * 30, near=(1, 2))) == {1, 2}
    assert set(rails.deal([10] * 30, away_from=1, near=(1, 2))) == {2}
    paused(rails, 2, 0.0)
    assert rails.usable((1, 2)) == (1,)
    assert set(rails.deal([10] * 30, away_from=1, near=(1, 2))) == {0, 3}, "rather a spare rail than the one to avoid"
    paused(rails, 1, 0.0)
    assert rails.usable((1, 2)) == (0, 3)


@given(st.lists(st.integers(0, 1 << 21), max_size=60), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_dealing_keeps_to_the_weights(lengths: list[int], weights: list[int]) -> None:
    dealt = Rails(weights).deal(lengths)
    assert len(dealt) == len(lengths) and dealt == sorted(dealt)
    for number, weight in enumerate(weights):
        share = sum(length for length, rail in zip(lengths, dealt, strict=True) if rail == number)
        assert abs(share - sum(lengths) * weight / sum(weights)) <= max(lengths, default=0) + 1


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("failures_max", {"failures_max": 0}),
        ("window_s", {"window_s": 0.0}),
        ("pause_s", {"pause_s": 0.0}),
        ("pause_s", {"pause_s": 9.0, "pause_s_max": 8.0}),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=name):
        RailConfig(**settings)  # type: ignore[arg-type]


def test_rails_have_weights() -> None:
    for weights in ([], [1, 0], [-1]):
        with pytest.raises(ValueError, match="weights"):
            Rails(weights)


class ModelRail:
    """One rail as the rules tell it, from its whole history."""

    def __init__(self) -> None:
        self.state = "ok"
        self.failures: list[float] = []  # while ok, since it last became so
        self.pauses: list[float] = []  # how long each was
        self.back: float | None = None
        self.again = 0.0

    def pause(self, now: float, trusted: bool) -> None:
        length = min(8.0, 2 * self.pauses[-1]) if self.pauses and not trusted else 1.0
        self.pauses.append(length)
        self.state, self.again = "paused", now + length

    def failed(self, now: float, severe: bool) -> None:
        if self.state != "ok":
            return
        self.failures.append(now)
        if severe or len([then for then in self.failures if now - then <= 5.0]) >= 3:
            self.pause(now, self.back is None or now - self.back >= 8.0)

    def tried(self, worked: bool, now: float) -> None:
        if self.state != "paused":
            return
        if worked:
            self.state, self.back, self.failures = "ok", now, []
        else:
            self.pause(now, False)

    def up(self, now: float) -> None:
        if self.state == "down":
            self.state, self.again = "paused", now + 1.0
            self.pauses.append(max([1.0, *self.pauses[-1:]]))

    def due(self, now: float) -> bool:
        told = self.state == "paused" and self.again <= now
        if told:
            self.again = now + self.pauses[-1]
        return told


class RailMachine(RuleBasedStateMachine):
    @initialize(count=st.integers(1, 4))
    def begin(self, count: int) -> None:
        self.now = 0.0
        self.rails = Rails([1] * count, CONFIG)
        self.model = [ModelRail() for _ in range(count)]

    @rule(quarters=st.integers(1, 40))
    def wait(self, quarters: int) -> None:
        self.now += quarters / 4

    @rule(data=st.data(), severe=st.booleans())
    def failed(self, data: st.DataObject, severe: bool) -> None:
        number = self._rail(data)
        self.model[number].failed(self.now, severe)
        assert self.rails.failed(number, self.now, severe=severe) == (self.model[number].state != "ok")

    @rule(data=st.data())
    def down(self, data: st.DataObject) -> None:
        number = self._rail(data)
        self.model[number].state = "down"
        self.rails.down(number)

    @rule(data=st.data())
    def up(self, data: st.DataObject) -> None:
        number = self._rail(data)
        self.model[number].up(self.now)
        self.rails.up(number, self.now)

    @rule(data=st.data(), worked=st.booleans())
    def tried(self, data: st.DataObject, worked: bool) -> None:
        number = self._rail(data)
        self.model[number].tried(worked, self.now)
        self.rails.tried(number, worked, self.now)

    @precondition(lambda self: any(rail.state == "paused" for rail in self.model))
    @rule()
    def due(self) -> None:
        expected = tuple(number for number, rail in enumerate(self.model) if rail.due(self.now))
        assert self.rails.due(self.now) == expected

    def _rail(self, data: st.DataObject) -> int:
        return int(data.draw(st.integers(0, len(self.model) - 1)))

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        assert [report.state.value for report in self.rails.reports()] == [rail.state for rail in self.model]
        assert [report.pauses for report in self.rails.reports()] == [len(rail.pauses) for rail in self.model]
        waits = [rail.again for rail in self.model if rail.state == "paused"]
        assert self.rails.next_due() == min(waits, default=None)
        assert set(self.rails.deal([1] * 50)) <= {n for n, rail in enumerate(self.model) if rail.state == "ok"}


TestRails = RailMachine.TestCase
