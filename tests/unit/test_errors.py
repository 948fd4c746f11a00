"""The error tree, and the clocks."""

from __future__ import annotations

import pytest

from kvstore import errors
from kvstore.clock import Clock, SystemClock
from kvstore.testing.clock import VirtualClock


def test_the_tree_is_by_what_the_caller_can_do() -> None:
    for name in ("Unavailable", "Rejected", "Corrupted", "Misconfigured"):
        kind = getattr(errors, name)
        assert issubclass(kind, errors.KvStoreError) and kind.__bases__ == (errors.KvStoreError,)
        assert not issubclass(kind, ValueError | TypeError)
    assert issubclass(errors.NotJoined, errors.Misconfigured)
    kinds = ["KvStoreError", "Unavailable", "Rejected", "Corrupted", "Misconfigured", "NotJoined"]
    assert sorted(errors.__all__) == sorted(kinds)


def test_a_rejection_names_the_limit() -> None:
    error = errors.Rejected("65537 keys, keys_per_call_max is 65536", limit="keys_per_call_max")
    assert error.limit == "keys_per_call_max" and str(error).startswith("65537")
    assert errors.Rejected("not yours").limit == ""


def test_the_system_clock_never_goes_back() -> None:
    clock: Clock = SystemClock()
    readings = [clock.now_ns() for _ in range(100)]
    assert readings == sorted(readings)


def test_the_virtual_clock_moves_when_told() -> None:
    clock = VirtualClock(5)
    reader: Clock = clock
    assert reader.now_ns() == 5 == reader.now_ns()
    assert clock.advance_ns(10) == 15 and clock.advance_to_ns(20) == 20 == reader.now_ns()
    for back in (lambda: clock.advance_ns(-1), lambda: clock.advance_to_ns(19)):
        with pytest.raises(ValueError, match="duration_ns"):
            back()
