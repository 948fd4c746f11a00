"""How often each namespace was cleared, as every node comes to know it. Pure.

    Clears (of one namespace)   count of each node's clears, and a floor      generation = max(floor, sum of the counts)
    Generations (a table)       first digest -> Clears; told, asked and merged page by page; one hash of all of it

Rules
- What two nodes know is merged count by count, so the order and number of tellings do not matter, and no clear is lost.
- A clear adds to its own node's count, so that the sum is more than every generation seen there. Two clears of which
  neither node knew the other's therefore merge into a generation greater than both: what was put between them is not
  of it. (With one number, of which the greater wins, two clears could make the same one, and one of them be void.)
- floor: a generation of which it is only known that there is one (a note in the object store, a list of an older
  release). It is nobody's clear, so hearing of the same clear by both ways counts once. What it cannot tell is whose
  clears it covers: nodes that share an object store and no cluster order their clears by its notes alone.
- Only what was cleared has a row, by its digest in generation 0, which every node can make from its description.
"""

from __future__ import annotations

import bisect
import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from kvstore.errors import Rejected

__all__ = ["CLEARED_MAX", "CLEARERS_MAX", "FIRST", "LAST", "Clears", "Generations", "Page", "after"]

GENERATION_MAX: Final = (1 << 32) - 1  # as a namespace's identity has it
CLEARED_MAX: Final = 16_384  # namespaces that were ever cleared: each is remembered for ever
CLEARERS_MAX: Final = 4_096  # nodes that ever cleared one namespace
PAGE_NODES: Final = 16_384  # counts and rows of one message, 20 bytes or so each
FIRST: Final = bytes(32)
LAST: Final = b"\xff" * 32


@dataclass(frozen=True, slots=True)
class Clears:
    """Of one namespace. `by`: node ids in their order, and how much each has added. ValueError says what is wrong."""

    floor: int = 0
    by: tuple[tuple[bytes, int], ...] = ()

    def __post_init__(self) -> None:
        ids = [node for node, _ in self.by]
        if ids != sorted(set(ids)):
            raise ValueError("nodes: must be in order, each once")
        if min([self.floor, *(count - 1 for _, count in self.by)]) < 0:
            raise ValueError("counts: must be at least 1, floor at least 0")
        if self.generation > GENERATION_MAX:
            raise ValueError(f"generation: {self.generation}, must be at most {GENERATION_MAX}")

    @property
    def generation(self) -> int:
        return max(self.floor, sum(count for _, count in self.by))

    def merged(self, other: Clears) -> Clears:
        if self == other:
            return self
        counts = dict(self.by)
        for node, count in other.by:
            counts[node] = max(count, counts.get(node, 0))
        return Clears(max(self.floor, other.floor), tuple(sorted(counts.items())))

    def cleared(self, me: bytes) -> Clears:
        """Once more, by this node. Raises Rejected at CLEARERS_MAX."""
        counts = dict(self.by)
        if me not in counts and len(counts) >= CLEARERS_MAX:
            raise Rejected(f"clearers_max: {CLEARERS_MAX} nodes have cleared this namespace", limit="clearers_max")
        counts[me] = counts.get(me, 0) + self.generation + 1 - sum(counts.values())
        return Clears(self.floor, tuple(sorted(counts.items())))

    @property
    def word(self) -> int:
        """The same for who knows of the same clears, 64 bits; 0 for none."""
        if not self.generation:
            return 0
        told = b"".join(struct.pack("<H", len(node)) + node + struct.pack("<Q", count) for node, count in self.by)
        return int.from_bytes(hashlib.sha256(struct.pack("<Q", self.floor) + told).digest()[:8], "little")


NEVER: Final = Clears()


@dataclass(frozen=True, slots=True)
class Page:
    """Rows of the namespaces from `first` to `last`, both among them. As an answer: those that differ from what was
    asked with, up to its `last`, which is less than asked where there was no room for more.
    """

    first: bytes
    last: bytes
    rows: tuple[tuple[bytes, Clears], ...] = ()


@dataclass(slots=True)
class Generations:
    """`hash`: the same at nodes whose tables are, 0 of an empty one."""

    rows: dict[bytes, Clears] = field(default_factory=dict)
    hash: int = 0
    _order: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows, self.rows = self.rows, {}
        for origin, clears in rows.items():
            self._put(origin, clears)

    def of(self, origin: bytes) -> Clears:
        return self.rows.get(origin, NEVER)

    def clear(self, origin: bytes, me: bytes) -> Clears:
        """Once more, by this node. Raises Rejected at CLEARED_MAX, CLEARERS_MAX."""
        if origin not in self.rows and len(self.rows) >= CLEARED_MAX:
            raise Rejected(f"cleared_max: {CLEARED_MAX} namespaces have been cleared", limit="cleared_max")
        self._put(origin, self.of(origin).cleared(me))
        return self.rows[origin]

    def undo(self, origin: bytes, former: Clears) -> None:
        """A clear that nobody was told of is none."""
        self._drop(origin)
        if former.generation:
            self._put(origin, former)

    def raise_to(self, origin: bytes, generation: int) -> bool:
        """There is such a generation. Whether that is news."""
        known = self.of(origin)
        if known.generation >= generation:
            return False
        self._put(origin, Clears(generation, known.by))
        return True

    def merge(self, rows: Iterable[tuple[bytes, Clears]]) -> list[bytes]:
        """What another node knows. The namespaces of which that is news."""
        merged = {origin: self.of(origin).merged(clears) for origin, clears in rows}
        changed = [origin for origin, clears in merged.items() if clears != self.of(origin)]
        for origin in changed:
            self._put(origin, merged[origin])
        return changed

    # ---- pages ----------------------------------------------------------------------------------------------------

    def page(self, first: bytes) -> Page:
        """What is known from `first` on, as much as one message has room for."""
        rows, full = self._from(first, LAST, {})
        return Page(first, rows[-1][0] if full else LAST, tuple(rows))

    def one(self, origin: bytes) -> Page:
        return Page(origin, origin, ((origin, self.of(origin)),))

    def answer(self, told: Page) -> Page:
        """To a page that was merged here before: what the other does not know yet."""
        rows, full = self._from(told.first, told.last, dict(told.rows))
        return Page(told.first, rows[-1][0] if full else told.last, tuple(rows))

    def _from(self, first: bytes, last: bytes, known: dict[bytes, Clears]) -> tuple[list[tuple[bytes, Clears]], bool]:
        """Rows that are not known so, and whether there was no room for more."""
        out: list[tuple[bytes, Clears]] = []
        room = PAGE_NODES
        for at in range(bisect.bisect_left(self._order, first), len(self._order)):
            origin = self._order[at]
            if origin > last:
                break
            clears = self.rows[origin]
            if known.get(origin) == clears:
                continue
            room -= 1 + len(clears.by)
            if room < 0 and out:
                return out, True
            out.append((origin, clears))
        return out, False

    # ---- how ------------------------------------------------------------------------------------------------------

    def _put(self, origin: bytes, clears: Clears) -> None:
        if not clears.generation:
            return
        if origin in self.rows:
            self.hash ^= _word(origin, self.rows[origin])
        else:
            bisect.insort(self._order, origin)
        self.rows[origin] = clears
        self.hash ^= _word(origin, clears)

    def _drop(self, origin: bytes) -> None:
        clears = self.rows.pop(origin, None)
        if clears is not None:
            self.hash ^= _word(origin, clears)
            del self._order[bisect.bisect_left(self._order, origin)]


def after(origin: bytes) -> bytes | None:
    """The digest that comes next; None behind the last."""
    return None if origin == LAST else (int.from_bytes(origin, "big") + 1).to_bytes(len(origin), "big")


def _word(origin: bytes, clears: Clears) -> int:
    return int.from_bytes(hashlib.sha256(origin + struct.pack("<Q", clears.word)).digest()[:8], "little")
