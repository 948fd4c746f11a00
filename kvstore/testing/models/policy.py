"""What the table model needs of an order, and what an order may be told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Hint:
    """What a caller may tell of the future; zero: nothing said. return_touches: expected_return_ms in touches."""

    family: int = 0
    session: int = 0
    turn: int = 0
    expected_return_ms: int = 0
    priority: int = 0
    end: bool = False
    return_touches: int = 0
    position: int = 0
    from_below: bool = False


NO_HINT = Hint()


class AnyOrder:
    """Whoever may go may go next: for holding a table to its rules whatever policy it runs."""

    def __init__(self) -> None:
        self._slots: dict[int, None] = {}

    def added(self, slot: int, parent: int | None, ghost: int, hint: Hint) -> None:
        self._slots[slot] = None

    def touched(self, chain: Sequence[int], hint: Hint) -> None:
        """Nothing is remembered of it."""

    def removed(self, slot: int) -> None:
        self._slots.pop(slot, None)

    def coldest(self, usable: Callable[[int], bool]) -> list[int]:
        return [slot for slot in self._slots if usable(slot)]

    def leaving(self, usable: Callable[[int], bool]) -> list[int]:
        return self.coldest(usable)


class Order(Protocol):
    """What a table needs of a policy."""

    def added(self, slot: int, parent: int | None, ghost: int, hint: Hint) -> None: ...

    def touched(self, chain: Sequence[int], hint: Hint) -> None: ...

    def removed(self, slot: int) -> None: ...

    def coldest(self, usable: Callable[[int], bool]) -> list[int]:
        """Those that may go next, equally good, of those usable; empty: the order names none."""
        ...

    def leaving(self, usable: Callable[[int], bool]) -> list[int]:
        """All that can go, in the order in which they would."""
        ...
