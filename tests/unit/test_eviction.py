"""The policies' Python side hands on all that it is told: the order itself is native, and has its own tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvstore.eviction import POLICIES, Hint


class Order:
    """Writes down what it is asked."""

    parameters = "of the order"

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def __getattr__(self, verb: str) -> Any:
        def ask(*arguments: Any) -> Any:
            self.asked.append((verb, *(a.tolist() if isinstance(a, np.ndarray) else a for a in arguments)))
            return np.array([9], np.uint32)

        return ask

    def __len__(self) -> int:
        return 5


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint32)


@pytest.mark.parametrize("name", POLICIES)
def test_all_that_is_told_is_handed_on(name: str) -> None:
    policy, order = POLICIES[name](16), Order()
    policy._order = order  # type: ignore[assignment]
    hint = Hint(priority=-1, end=True, return_touches=7)
    policy.added(ids(1, 2), ids(3, 4), np.array([5, 6], np.uint64), hint)
    policy.touched(ids(1), hint)
    policy.removed(ids(2))
    assert policy.victims(3, ids(4)).tolist() == [9]
    policy.released(ids(4))
    policy.check_integrity()
    assert order.asked == [
        ("added", [1, 2], [3, 4], [5, 6], -1, True, 7),
        ("touched", [1], -1, True, 7),
        ("removed", [2]),
        ("victims", 3, [4]),
        ("released", [4]),
        ("check_integrity",),
    ]
    assert (len(policy), policy.parameters) == (5, "of the order")


@pytest.mark.parametrize("name", POLICIES)
def test_each_is_the_native_order_of_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []
    monkeypatch.setattr("kvstore.eviction.base.Policy", lambda *how: made.append(how) or SimpleNamespace())
    POLICIES[name](16)
    assert made == [(name, 16)]
