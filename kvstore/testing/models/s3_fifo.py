"""S3-FIFO (Yang et al., SOSP 2023) with lists.

New ids enter `small`, or `main` if their content is remembered. A touch counts, to three. The next to go comes from
small while that has at least a tenth of all, else from main. From small, one touched twice moves to main, its count
forgotten; from main, one touched at all goes round again with one less. Who leaves from small is remembered: as many as
nine tenths of the ids, first in, first out. A touch of priority, or with a return expected, counts twice; of priority
below zero, not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvstore.testing.models.policy import Hint

TOUCHES_MAX = 3
PROMOTE_AFTER = 2


@dataclass(slots=True)
class _Node:
    ghost: int
    main: bool
    touches: int = 0
    aside: bool = False


class Ghosts:
    """Contents that left, and when, counted by how many left. Only the last `limit` of them are remembered."""

    def __init__(self) -> None:
        self._left: list[tuple[int, int]] = []
        self._count = 0
        self._limit = 0
        self._room = 0

    def add(self, ghost: int, limit: int) -> None:
        self._limit = limit
        if limit // 6 + 4 > self._room:  # the native table grows, and drops what is stale by then
            self._room = (limit + limit // 4) // 6 + 4
            self._left = [one for one in self._left if not self._stale(one)]
        self._count += 1
        self._left.append((ghost, self._count))

    def take(self, ghost: int) -> bool:
        for one in self._left:
            if one[0] == ghost and not self._stale(one):
                self._left.remove(one)
                return True
        return False

    def _stale(self, one: tuple[int, int]) -> bool:
        return self._count - one[1] >= self._limit


class S3FifoModel:
    """The cold end of a queue is its front."""

    def __init__(self) -> None:
        self._nodes: dict[int, _Node] = {}
        self._small: list[int] = []
        self._main: list[int] = []
        self._ghosts = Ghosts()

    def __len__(self) -> int:
        return len(self._nodes)

    def added(self, slot: int, parent: int | None, ghost: int, hint: Hint) -> None:
        if slot in self._nodes:
            return
        ghost = ghost >> 20 & 0x7FFFFFF
        self._nodes[slot] = _Node(ghost, self._ghosts.take(ghost))
        self._queue(slot).append(slot)

    def touched(self, chain: Sequence[int], hint: Hint) -> None:
        counts = 0 if hint.priority < 0 else 2 if hint.priority > 0 or hint.return_touches > 0 else 1
        for slot in chain:
            node = self._nodes.get(slot)
            if node is not None:
                node.touches = min(TOUCHES_MAX, node.touches + counts)

    def removed(self, slot: int) -> None:
        node = self._nodes.get(slot)
        if node is None:
            return
        if not node.main:
            self._ghosts.add(node.ghost, len(self._nodes) * 9 // 10)
        if not node.aside:
            self._queue(slot).remove(slot)
        del self._nodes[slot]

    def victims(self, count: int, usable: Callable[[int], bool]) -> list[int]:
        """Who is named goes to the cold end again, until it is removed."""
        out: list[int] = []
        while len(out) < count:
            queue = self._next_queue(out)
            if not queue:
                break
            slot = queue.pop(0)
            if self._stays(slot):
                continue
            if not usable(slot):
                self._nodes[slot].aside = True
                continue
            out.append(slot)
        for slot in reversed(out):
            self._queue(slot).insert(0, slot)
        return out

    def released(self, slot: int) -> None:
        node = self._nodes.get(slot)
        if node is not None and node.aside:
            node.aside = False
            self._queue(slot).insert(0, slot)

    def _next_queue(self, out: Sequence[int]) -> list[int]:
        left = [node for slot, node in self._nodes.items() if slot not in out]
        small_is_due = sum(not node.main for node in left) * 10 >= len(left)
        return self._small if self._small and (small_is_due or not self._main) else self._main

    def _stays(self, slot: int) -> bool:
        node = self._nodes[slot]
        if not node.main:
            if node.touches < PROMOTE_AFTER:
                return False
            node.main, node.touches = True, 0
        elif node.touches == 0:
            return False
        else:
            node.touches -= 1
        self._main.append(slot)
        return True

    def _queue(self, slot: int) -> list[int]:
        return self._main if self._nodes[slot].main else self._small
