"""Least recently used, leaves first: the order, written down as one sort.

- A batch is one touch, and all in it has its stamp. The order is by stamp; of one stamp, who was listed last goes
  first, so that a chain leaves leaf by leaf.
- Only who has no children is a candidate. When its last child goes, a parent is one, with the stamp it has.
- Who was refused to victims() is set aside until released(), and keeps its stamp.
- Hints shift a stamp by parts of the present span: from the coldest candidate to now. A priority step is an eighth, at
  most half; an end is half a span colder, for the tail that nobody else's chain runs through; an expected return is as
  many touches warmer, at most one span. Nothing is shifted into the coldest quarter, nor beyond `ahead_max`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kvstore.testing.models.policy import Hint

PRIORITY_STEPS = 8
PRIORITY_STEPS_MAX = 4


@dataclass(slots=True)
class _Node:
    parent: int | None
    stamp: int
    listed_at: int  # of two with one stamp the later listed goes first
    children: int = 0
    aside: bool = False


class LeafLruModel:
    """`ahead_max`: how far a stamp may lie ahead of now."""

    def __init__(self, ahead_max: int = 256) -> None:
        self._ahead_max = ahead_max
        self._nodes: dict[int, _Node] = {}
        self._now = 0
        self._listings = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def added(self, slot: int, parent: int | None, ghost: int, hint: Hint) -> None:
        """One that is there already is only given its parent anew."""
        if slot not in self._nodes:
            self._nodes[slot] = _Node(None, self._now + self._shift(hint, own=True), 0)
            self._list(slot)
        self._give_parent(slot, parent)

    def touched(self, chain: Sequence[int], hint: Hint) -> None:
        """An empty chain starts a new batch."""
        self._now += 1
        own = self._own_tail(chain) if hint.end else len(chain)
        shared_stamp = self._now + self._shift(hint, own=False)
        own_stamp = self._now + self._shift(hint, own=True)
        for i, slot in enumerate(chain):
            node = self._nodes.get(slot)
            if node is None:
                continue
            node.stamp = own_stamp if i >= own else shared_stamp
            if self._is_candidate(node):
                self._list(slot)

    def removed(self, slot: int) -> None:
        node = self._nodes.pop(slot, None)
        if node is None:
            return
        self._leave(node.parent)
        for other in self._nodes.values():
            if other.parent == slot:
                other.parent = None

    def victims(self, count: int, usable: Callable[[int], bool]) -> list[int]:
        """As if the caller removed one after the other; nothing is removed, but candidates refused are set aside."""
        out: list[int] = []
        refused: list[int] = []
        for slot in self._leaving(usable, refused) if count else ():
            out.append(slot)
            if len(out) == count:
                break
        for slot in refused:
            self._nodes[slot].aside = True
        return out

    def leaving(self, usable: Callable[[int], bool]) -> list[int]:
        """All that can go, in the order in which they would; sets nobody aside."""
        return list(self._leaving(usable, []))

    def _leaving(self, usable: Callable[[int], bool], refused: list[int]) -> Iterator[int]:
        children = {slot: node.children for slot, node in self._nodes.items()}
        order = [(node.stamp, -node.listed_at, slot) for slot, node in self._nodes.items() if self._is_candidate(node)]
        listings = self._listings
        while order:
            order.sort()
            _, listed, slot = order.pop(0)
            if not usable(slot):
                if -listed <= self._listings:  # a candidate already, not one foreseen
                    refused.append(slot)
                continue
            yield slot
            parent = self._nodes[slot].parent
            if parent is not None:
                children[parent] -= 1
                if children[parent] == 0:
                    listings += 1
                    order.append((self._nodes[parent].stamp, -listings, parent))

    def coldest(self, usable: Callable[[int], bool]) -> list[int]:
        """All usable candidates of the lowest stamp, last listed first; sets nobody aside."""
        found = [slot for slot, node in self._nodes.items() if self._is_candidate(node) and usable(slot)]
        low = min((self._nodes[slot].stamp for slot in found), default=0)
        cold = [slot for slot in found if self._nodes[slot].stamp == low]
        return sorted(cold, key=lambda slot: -self._nodes[slot].listed_at)

    def released(self, slot: int) -> None:
        node = self._nodes.get(slot)
        if node is not None and node.aside:
            node.aside = False
            self._list(slot)

    def _is_candidate(self, node: _Node) -> bool:
        return node.children == 0 and not node.aside

    def _list(self, slot: int) -> None:
        self._listings += 1
        self._nodes[slot].listed_at = self._listings

    def _give_parent(self, slot: int, parent: int | None) -> None:
        node = self._nodes[slot]
        if parent in (slot, node.parent):
            return
        before, node.parent = node.parent, None
        self._leave(before)
        if parent is None or parent not in self._nodes:
            return
        node.parent = parent
        self._nodes[parent].children += 1
        self._nodes[parent].aside = False

    def _leave(self, parent: int | None) -> None:
        if parent is None:
            return
        self._nodes[parent].children -= 1
        if self._nodes[parent].children == 0:
            self._list(parent)

    def _own_tail(self, chain: Sequence[int]) -> int:
        """Where the tail begins of which each block has one child at most, the next."""
        start = len(chain)
        while start > 0:
            node = self._nodes.get(chain[start - 1])
            if (node.children if node else 0) > (0 if start == len(chain) else 1):
                break
            start -= 1
        return start

    def _span(self) -> int:
        stamps = [node.stamp for node in self._nodes.values() if self._is_candidate(node)]
        return max(0, self._now - min(stamps)) if stamps else 0

    def _shift(self, hint: Hint, *, own: bool) -> int:
        ends = hint.end and own
        if not ends and hint.priority == 0 and hint.return_touches == 0:
            return 0
        span = self._span()
        steps = max(-PRIORITY_STEPS_MAX, min(PRIORITY_STEPS_MAX, hint.priority))
        by = _toward_zero(span * steps, PRIORITY_STEPS)
        if ends:
            by -= span // 2
        if not hint.end:
            by += min(hint.return_touches, span)
        return max(-(span - span // 4), min(by, span, self._ahead_max))


class AnyLeaf(LeafLruModel):
    """Leaves first, and of those whoever may go: for holding a table to its rules where hints move the order."""

    def coldest(self, usable: Callable[[int], bool]) -> list[int]:
        return [slot for slot, node in self._nodes.items() if self._is_candidate(node) and usable(slot)]


def _toward_zero(value: int, by: int) -> int:
    return value // by if value >= 0 else -(-value // by)
