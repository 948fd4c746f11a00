"""How fast blocks come from each other node, as measured: what a lookup's estimate rests on.

A reading is of one section of a far get, told by who read it, or of a copy that this node made. What a reading says of
speed is mostly wrong where few bytes moved, so small ones are not taken; of the others the newest counts most.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Speeds"]

LEAST_BYTES: Final = 256 << 10
NEWEST: Final = 0.25  # its share
SLOWEST: Final = float(1 << 20)  # bytes a second; whoever says less, or more than FASTEST, is taken for that
FASTEST: Final = float(1 << 40)
NODES_MAX: Final = 4_096


@dataclass(slots=True)
class Speeds:
    """first: what is taken for the speed before anything was measured, in bytes a second."""

    first: float
    _known: OrderedDict[bytes, float] = field(default_factory=OrderedDict)

    def read(self, node: bytes, moved: int, elapsed_s: float) -> None:
        """So many bytes came from a node in this time."""
        if moved < LEAST_BYTES or elapsed_s <= 0:
            return
        now = min(max(moved / elapsed_s, SLOWEST), FASTEST)
        before = self._known.pop(node, now)
        self._known[node] = before + NEWEST * (now - before)
        while len(self._known) > NODES_MAX:
            self._known.popitem(last=False)

    def of(self, node: bytes) -> float:
        return self._known.get(node, self.first)
