"""A rail's states, by a clock of the test's own."""

from __future__ import annotations

import pytest

from transfer.rdma.lanes import pairing
from transfer.rdma.rails import Rail, RailState


def rail() -> Rail:
    return Rail(backoff_s=0.1, backoff_s_max=1.0, forgive_s=5.0, down_after=4)


def test_a_fresh_rail_is_tried_at_once() -> None:
    one = rail()
    assert one.state is RailState.OK and one.due_in(0.0) == 0.0


def test_each_failure_pauses_twice_as_long_up_to_the_limit() -> None:
    one, now, pauses = rail(), 10.0, []
    for _ in range(6):
        one.failed(now)
        pauses.append(one.pause_s)
        assert one.due_in(now) == pytest.approx(one.pause_s)
        now += one.pause_s
        assert one.due_in(now) == 0.0
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_it_is_paused_then_down_then_good() -> None:
    one, now, states = rail(), 0.0, []
    for _ in range(4):
        one.failed(now)
        states.append(one.state)
        now += one.pause_s
    assert states == [RailState.PAUSED] * 3 + [RailState.DOWN]
    one.worked(now)
    assert one.state is RailState.OK and one.due_in(now) == 0.0


def test_several_lanes_that_fail_together_are_one_failure() -> None:
    one = rail()
    for _ in range(5):
        one.failed(1.0)
    assert one.pause_s == 0.1 and one.state is RailState.PAUSED


def test_a_rail_that_flaps_is_paused_longer_and_forgiven_later() -> None:
    one = rail()
    one.failed(0.0)
    one.worked(0.1)
    one.failed(1.0)
    assert one.pause_s == 0.2
    one.worked(1.2)
    one.failed(1.2 + 5.0)
    assert one.pause_s == 0.1


def test_rails_pair_devices_in_order() -> None:
    assert pairing(2, 2, 16) == [(0, 0), (1, 1)]
    assert pairing(1, 3, 16) == [(0, 0), (0, 1), (0, 2)]
    assert pairing(3, 2, 16) == [(0, 0), (1, 1), (2, 0)]
    assert pairing(4, 4, 2) == [(0, 0), (1, 1)]
    assert pairing(0, 2, 16) == []
