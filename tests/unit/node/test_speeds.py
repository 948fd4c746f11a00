"""Estimates follow what was measured, slowly, and are not led astray by a reading of few bytes or a wild one."""

from __future__ import annotations

from kvstore.node.speeds import FASTEST, NODES_MAX, SLOWEST, Speeds

A, B = b"a" * 16, b"b" * 16
MIB = 1 << 20


def test_what_was_not_measured_is_taken_for_what_was_set() -> None:
    assert Speeds(1e9).of(A) == 1e9


def test_the_newest_counts_most_and_each_node_has_its_own() -> None:
    speeds = Speeds(1e9)
    speeds.read(A, 100 * MIB, 1.0)
    assert speeds.of(A) == 100 * MIB and speeds.of(B) == 1e9
    speeds.read(A, 200 * MIB, 1.0)
    assert speeds.of(A) == 125 * MIB
    for _ in range(40):
        speeds.read(A, 200 * MIB, 1.0)
    assert abs(speeds.of(A) / (200 * MIB) - 1) < 0.01


def test_few_bytes_and_no_time_say_nothing() -> None:
    speeds = Speeds(1e9)
    speeds.read(A, 64 << 10, 1.0)
    speeds.read(A, 100 * MIB, 0.0)
    assert speeds.of(A) == 1e9


def test_wild_readings_are_bounded_and_nodes_are_too() -> None:
    speeds = Speeds(1e9)
    speeds.read(A, MIB, 1e9)
    speeds.read(B, 1 << 62, 1e-9)
    assert (speeds.of(A), speeds.of(B)) == (SLOWEST, FASTEST)
    for number in range(NODES_MAX):
        speeds.read(number.to_bytes(16, "big"), MIB, 1.0)
    assert speeds.of(A) == 1e9, "the one measured longest ago makes way"
