"""A tenant's share of what a node has for all of them. Pure: counts, no clock, no I/O.

Rules
- A tenant leaves a quarter of what the others have left: it may take while it has less than three quarters of the limit
  less what the others have. So whoever comes first never has it all, and whoever comes next finds room.
- Only where tenants are told apart: a node whose settings name one tenant gives it everything, and so is everything
  given to those who may use every tenant (the node's own user, `tenants = ["*"]`).
- Whoever may use the same tenants is one: two tokens of a tenant have one share between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from kvstore.errors import Rejected

__all__ = ["Shares", "Tenants", "check_share", "share"]

KEPT: Final = 4  # one in so many of what the others have left stays free

Tenants = frozenset[str] | None  # None: every tenant


def share(most: int, others: int) -> int:
    """How many of `most` one tenant may have while the others have so many."""
    left = max(0, most - others)
    return left - left // KEPT


def check_share(name: str, most: int, mine: int, others: int) -> None:
    """Raises Rejected, naming the limit, where a tenant that has `mine` already may have no more."""
    if mine >= share(most, others):
        raise Rejected(f"{name}: this tenant's share of the node's {most} is used up", limit=name)


class Shares:
    """What is taken of one limit, by whom. `several`: whether tenants are told apart at this node, asked each time."""

    def __init__(self, name: str, most: int, several: Callable[[], bool]) -> None:
        self._name, self._most, self._several = name, most, several
        self._taken: Counter[Tenants] = Counter()

    def take(self, who: Tenants) -> None:
        """One more, until `give`. Raises Rejected, naming the limit, where there is none for these."""
        total = self._taken.total()
        if total >= self._most:
            raise Rejected(f"{self._name}: {self._most} are under way", limit=self._name)
        if who is not None and self._several():
            check_share(self._name, self._most, self._taken[who], total - self._taken[who])
        self._taken[who] += 1

    def give(self, who: Tenants) -> None:
        self._taken[who] -= 1
        if not self._taken[who]:
            del self._taken[who]

    @contextmanager
    def taken(self, who: Tenants) -> Iterator[None]:
        self.take(who)
        try:
            yield
        finally:
            self.give(who)
