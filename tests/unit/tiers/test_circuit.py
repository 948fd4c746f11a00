"""When a store that does not answer is left alone, on a clock of the test's own."""

from __future__ import annotations

from kvstore.tiers.circuit import NANOS, Circuit


def test_it_opens_after_failures_in_a_row_and_not_before() -> None:
    circuit = Circuit()
    for _ in range(2):
        circuit.failed(0)
        assert circuit.may_ask(0)
    circuit.answered()
    for _ in range(2):
        circuit.failed(0)
    assert not circuit.is_open
    circuit.failed(0)
    assert circuit.is_open and circuit.opened == 1
    assert not circuit.may_ask(NANOS - 1)


def test_one_trial_a_pause_and_pauses_grow() -> None:
    circuit = Circuit(pause_max_s=4.0)
    for _ in range(3):
        circuit.failed(0)
    now, pauses = 0, []
    for _ in range(4):
        before = now
        while not circuit.may_ask(now):
            now += NANOS // 10
        pauses.append((now - before) / NANOS)
        assert not circuit.may_ask(now), "one trial is enough"
        circuit.failed(now)
    assert pauses == [1.0, 2.0, 4.0, 4.0]


def test_an_answer_closes_it_and_the_next_pause_is_short_again() -> None:
    circuit = Circuit()
    for _ in range(3):
        circuit.failed(0)
    assert circuit.may_ask(NANOS)
    circuit.answered()
    assert not circuit.is_open and circuit.may_ask(NANOS)
    for _ in range(3):
        circuit.failed(NANOS)
    assert circuit.may_ask(2 * NANOS) and circuit.opened == 2


def test_what_fails_together_is_one_failure() -> None:
    circuit = Circuit()
    for _ in range(50):
        circuit.failed(0)
    assert circuit.may_ask(NANOS), "the first pause is the shortest"
    for _ in range(50):
        circuit.failed(NANOS)
    assert not circuit.may_ask(3 * NANOS - 1) and circuit.may_ask(3 * NANOS)
