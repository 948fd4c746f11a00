"""Where in which pack a block lies, of the packs that this node has seen: the other half of the core's hints.

Rules
- Bounded by blocks and by bytes of heads; the packs used longest ago are forgotten first, and the core is told. What is
  forgotten is found again by a probe.
- A block that lies in several packs is known by the one seen last.
- A hint: the store may have lost the pack meanwhile. Then it is forgotten, and that was a miss; and what lies above it
  is not clean any more (native/core/node_core_marks.cpp).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from kvstore import native
from kvstore.tiers.packs import PackHead, pack_name

if TYPE_CHECKING:
    import numpy.typing as npt

    from kvstore.tiers.base import Keys

__all__ = ["PackIndex", "Stretch"]

HEAD_BYTES_MAX: Final = 64 << 20  # of all heads that are kept
READ_LATELY_MAX: Final = 65_536
_NAME: Final = 16  # bytes of a key that are kept, beside namespace and shard

Name = tuple[int, int, bytes]  # namespace handle, shard, the first bytes of a key


@dataclass(frozen=True, slots=True)
class Stretch:
    """Blocks [first, first + count) of a pack."""

    head: PackHead
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class _Known:
    ns: int
    head: PackHead


class PackIndex:
    """Lives on one event loop."""

    def __init__(self, core: native.NodeCore, blocks_max: int) -> None:
        self._core = core
        self._blocks_max = blocks_max
        self._packs: OrderedDict[str, _Known] = OrderedDict()  # by the pack's name; used longest ago first
        self._where: dict[Name, tuple[str, int]] = {}
        self._head_bytes = 0
        self._read_lately: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        """Blocks known."""
        return len(self._where)

    @property
    def packs(self) -> int:
        return len(self._packs)

    def add(self, ns: int, head: PackHead) -> None:
        name = pack_name(head.digest, head.shard, head.keys[-1].tobytes())
        if name in self._packs:
            self._packs.move_to_end(name)
        else:
            self._packs[name] = _Known(ns, head)
            self._head_bytes += head.head_bytes
        for i, key in enumerate(head.keys):
            self._where[ns, head.shard, key[:_NAME].tobytes()] = (name, i)
        self._core.object_known(ns, head.shard, head.keys)
        while len(self._packs) > 1 and (len(self._where) > self._blocks_max or self._head_bytes > HEAD_BYTES_MAX):
            self.forget(next(iter(self._packs)))

    def knows(self, ns: int, shard: int, keys: Keys) -> npt.NDArray[np.bool_]:
        return np.fromiter(
            ((ns, shard, key[:_NAME].tobytes()) in self._where for key in keys), dtype=np.bool_, count=len(keys)
        )

    def stretches(self, ns: int, shard: int, keys: Keys, blocks_max: int) -> list[Stretch]:
        """The longest run from keys[0] that is known, at most `blocks_max` long, as pieces of packs in order."""
        found: list[Stretch] = []
        at = 0
        while at < min(len(keys), blocks_max):
            place = self._where.get((ns, shard, keys[at, :_NAME].tobytes()))
            if place is None:
                break
            name, first = place
            head = self._packs[name].head
            count = _in_common(keys[at:blocks_max], head.keys[first:])
            if count == 0:  # another key of the same beginning
                break
            found.append(Stretch(head, first, count))
            at += count
        return found

    def used(self, stretches: list[Stretch]) -> None:
        """Read just now: stays known, and is swept last."""
        for one in stretches:
            name = pack_name(one.head.digest, one.head.shard, one.head.keys[-1].tobytes())
            if name in self._packs:
                self._packs.move_to_end(name)
            self._read_lately[name] = None
            self._read_lately.move_to_end(name)
            if len(self._read_lately) > READ_LATELY_MAX:
                self._read_lately.popitem(last=False)

    def read_lately(self) -> set[str]:
        return set(self._read_lately)

    def gone(self, name: str, swept: bool) -> None:
        """The pack is not there any more: swept for room, or else deleted, missing or of no use."""
        self.forget(name, native.PacksGone.SWEPT if swept else native.PacksGone.LOST)

    def forget(self, name: str, why: native.PacksGone = native.PacksGone.FORGOTTEN) -> None:
        """Has to make way here, if nothing else is said. Unknown names are none of ours."""
        known = self._packs.pop(name, None)
        self._read_lately.pop(name, None)
        if known is None:
            return
        self._head_bytes -= known.head.head_bytes
        gone = []
        for i, key in enumerate(known.head.keys):
            place = (known.ns, known.head.shard, key[:_NAME].tobytes())
            if self._where.get(place, ("", 0))[0] == name:
                del self._where[place]
                gone.append(i)
        self._core.object_gone(known.ns, known.head.shard, known.head.keys[gone], why)

    def packs_of(self, ns: int, keys: Keys, shards: int) -> list[str]:
        """Names of the known packs that have any of these blocks."""
        wanted = {(ns, shard, key[:_NAME].tobytes()) for key in keys for shard in range(shards)}
        return sorted({self._where[place][0] for place in wanted if place in self._where})

    def drop(self, ns: int) -> None:
        """Forgets a namespace."""
        for name in [name for name, known in self._packs.items() if known.ns == ns]:
            self.forget(name)


def _in_common(keys: Keys, others: Keys) -> int:
    """How many from the start are the same."""
    count = min(len(keys), len(others))
    same = (keys[:count] == others[:count]).all(axis=1)
    return count if same.all() else int(same.argmin())
