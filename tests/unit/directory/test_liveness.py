"""Who is dead and when, on virtual time: single cases, then random networks."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.directory.liveness import Liveness, Rules, State

MS = 1_000_000
RULES = Rules(ping_ns=500 * MS, dead_after_ns=2_000 * MS, pings_per_second_max=500)
TICK = 50 * MS


@dataclass
class Network:
    """Nodes that answer, are gone, or vanish, seen by one `Liveness` that is ticked every 50 ms."""

    names: list[str]
    rules: Rules = RULES
    now: int = 1_000 * MS
    silent: set[str] = field(default_factory=set)  # packets vanish
    closed: set[str] = field(default_factory=set)  # connections are refused
    took: dict[str, int] = field(default_factory=dict)
    sent: list[tuple[int, str]] = field(default_factory=list)
    died: dict[str, int] = field(default_factory=dict)
    pings: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.liveness = Liveness(self.rules, self.now)
        self.liveness.expect(self.names, self.now)

    def step(self) -> None:
        self.now += TICK
        for at, name in [one for one in self.sent if self.now - one[0] >= self.took.get(one[1], 1 * MS)]:
            self.sent.remove((at, name))
            if name in self.closed:
                change = self.liveness.refused(name, self.now)
                if change is not None and change.after is State.DEAD:
                    self.died[name] = self.now
            elif name not in self.silent:
                self.liveness.answered(name, self.now, at)
            elif self.now - at > 1_000 * MS:
                self.liveness.unanswered(name, self.now)
            else:
                self.sent.append((at, name))
        for change in self.liveness.tick(self.now):
            if change.after is State.DEAD:
                self.died[change.address] = self.now
        for name in self.liveness.due(self.now):
            self.liveness.asked(name, self.now)
            self.sent.append((self.now, name))
            self.pings.append(self.now)

    def run(self, ms: int) -> None:
        for _ in range(ms * MS // TICK):
            self.step()

    def state(self, name: str) -> State | None:
        return self.liveness.state(name)


def test_who_answers_is_alive() -> None:
    network = Network(["a", "b"])
    assert network.state("a") is State.SUSPECT
    network.run(500)
    assert network.state("a") is network.state("b") is State.ALIVE
    network.run(60_000)
    assert not network.died
    (row, _) = network.liveness.rows(network.now)
    assert row.rtt_ns == TICK and row.for_ns > 59_000 * MS


@pytest.mark.parametrize("how", ["silent", "closed"])
def test_one_of_four_dies_within_three_seconds(how: str) -> None:
    network = Network(["a", "b", "c"])
    network.run(3_000)
    getattr(network, how).add("a")
    gone = network.now
    network.run(2_600)
    assert network.state("a") is State.DEAD
    assert network.died["a"] - gone <= (400 if how == "closed" else 2_600) * MS
    assert network.died.keys() == {"a"}


def test_a_refused_connection_is_tried_three_times() -> None:
    network = Network(["a"])
    network.run(1_000)
    network.closed.add("a")
    while network.liveness._peers["a"].refusals < 2:
        network.step()
    assert network.state("a") is not State.DEAD
    network.closed.clear()
    network.run(500)
    assert network.state("a") is State.ALIVE and network.liveness._peers["a"].refusals == 0


def test_the_dead_come_back_with_their_first_answer() -> None:
    network = Network(["a", "b", "c"])
    network.run(1_000)
    network.closed.add("a")
    network.run(10_000)
    assert network.state("a") is State.DEAD
    network.closed.clear()
    network.run(1_200)
    assert network.state("a") is State.ALIVE


def test_when_many_die_at_once_they_are_asked_for_nothing_at_once() -> None:
    network = Network(["a", "b", "c", "d"])
    network.run(1_000)
    network.silent.update("abc")
    network.run(2_600)
    assert {network.state(name) for name in "abc"} == {State.DEAD} and network.state("d") is State.ALIVE


def test_who_is_not_listed_any_more_stays_while_it_answers() -> None:
    network = Network(["a", "b", "c"])
    network.run(1_000)
    network.liveness.expect(["b", "c"], network.now)
    network.run(90_000)
    assert network.state("a") is State.ALIVE
    network.closed.add("a")
    network.run(400)
    assert network.state("a") is State.DEAD
    network.run(3_000)
    assert network.state("a") is None  # it had left


def test_who_died_and_was_unlisted_then_is_shown_for_a_minute() -> None:
    network = Network(["a", "b", "c"])
    network.run(1_000)
    network.closed.add("a")
    network.run(5_000)
    network.liveness.expect(["b", "c"], network.now)
    network.run(50_000)
    assert network.state("a") is State.DEAD
    network.run(12_000)
    assert network.state("a") is None


def test_a_long_start_is_no_pause() -> None:
    liveness = Liveness(RULES, 0)
    at = 20_000 * MS
    liveness.begin(at)
    assert not liveness.overdue(at + 900 * MS) and liveness.overdue(at + 1_100 * MS)
    liveness.expect(["a", "b"], at)
    liveness.tick(at + TICK)
    assert liveness.fit and not liveness.settled
    liveness.answered("a", at + 2 * TICK, at + TICK)
    assert not liveness.settled
    for _ in range(3):
        liveness.refused("b", at + 2 * TICK)
    assert liveness.settled


def test_who_stood_still_blames_nobody_and_is_not_fit_until_a_majority_has_answered() -> None:
    network = Network(["a", "b", "c", "d"])
    network.run(1_000)
    assert network.liveness.fit
    stale = network.now
    network.liveness.asked("a", stale)
    network.silent.update("abcd")
    network.now += 60_000 * MS  # stopped
    network.step()
    assert not network.liveness.fit and not network.died
    network.liveness.answered("a", network.now, stale)  # of before: it proves nothing
    network.step()
    network.silent.discard("b")
    network.run(900)
    assert not network.liveness.fit  # two of five
    network.silent.discard("c")
    network.run(1_200)
    assert network.liveness.fit


def test_a_short_pause_is_none() -> None:
    network = Network(["a"])
    network.run(1_000)
    network.now += 900 * MS
    network.step()
    assert network.liveness.fit
    network.run(5_000)
    assert not network.died


def test_a_pause_that_may_have_made_others_give_us_up_is_noticed_though_it_is_shorter_than_death() -> None:
    """Their last ping may have been half a second old when we stopped."""
    network = Network(["a"])
    network.run(1_000)
    network.now += 1_600 * MS
    network.step()
    assert not network.liveness.fit and not network.died
    network.run(1_000)
    assert network.liveness.fit and not network.died


def test_alone_it_is_fit_at_once() -> None:
    network = Network([])
    network.now += 60_000 * MS
    network.step()
    assert network.liveness.fit


def test_pings_have_a_limit_and_death_waits_for_three_of_them() -> None:
    names = [f"n{i:04}" for i in range(1_000)]
    network = Network(names)
    network.run(10_000)
    for begin in range(0, 10_000, 500):
        at = network.liveness.began + begin * MS
        assert sum(1 for ping in network.pings if at < ping <= at + 1_000 * MS) <= 500 + 25  # and a tick's worth
    assert not network.died
    network.silent.add("n0007")
    network.run(2_500)
    assert network.state("n0007") is not State.DEAD  # one every two seconds: it had but one chance
    network.run(6_000)
    assert network.state("n0007") is State.DEAD and network.died.keys() == {"n0007"}


@given(st.integers(0, 2**32), st.integers(2, 8))
def test_no_one_dies_who_answers_and_everyone_does_who_does_not(seed: int, count: int) -> None:
    """Random outages. The rules, looked at from outside: an answer to a ping sent within `dead_after` is life."""
    rng = random.Random(seed)
    network = Network([f"n{i}" for i in range(count)])
    network.took = {name: rng.randrange(1, 900) * MS for name in network.names}
    network.run(2_000)
    for _ in range(20):
        name = rng.choice(network.names)
        kind = rng.choice([network.silent, network.closed])
        if name in network.silent | network.closed:
            network.silent.discard(name)
            network.closed.discard(name)
        else:
            kind.add(name)
        away = network.silent | network.closed
        network.died.clear()
        dead = {one for one in network.names if network.state(one) is State.DEAD}
        network.run(rng.randrange(0, 6_000))
        settled = {one for one in network.died if one not in away}
        assert not settled - dead, "answered and was called dead"
        before = network.now
        network.run(4_000)
        for one in network.names:
            assert (network.state(one) is State.DEAD) == (one in away), (one, before)
