"""What a tier and a medium promise to those who move blocks between them.

Rules
- Verbs that decide (lookup, reserve, hold, retire, seal, abort, release) are plain functions: they return at once and
  touch no medium. Only read and write are awaited, because only there bytes move.
- An answer means quiet memory: when read or write has returned, raised or been cancelled, nothing touches the buffers
  that were lent to it any more. A cancelled one waits for that before it lets the cancellation through.
- Bytes that do not verify are never handed on. A tier never repairs: it drops, counts, and answers a shorter run.
- Every verb takes a run: consecutive blocks of one chain, of one shard.
- A reservation's only exits are seal and abort; a hold's only exit is release. All three may be called twice.

Two kinds of tier keep this contract (testing/exam_tier.py: what all of them must do, then what each kind must)
- *Slots* (memory, files): each block is by itself. What is here or being written is not granted again; a hold keeps its
  blocks readable through retire and eviction; retire unlists those blocks and no others; a full tier evicts.
- *Packs* (objects): blocks come and go in aligned groups of their chain. Granted is the run's first group if the run
  begins where a group does, else nothing, whoever else writes it: of two writers one creates the pack, and both seal. A
  hold keeps nothing: a pack that goes under it brings fewer blocks, never others. Retire unlists whole packs, so
  neighbours may go too. Room is the sweeper's, not reserve's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint8]  # (n, 32)
Pieces = memoryview | tuple[memoryview, ...]  # memory of one extent; several pieces are one contiguous range, in order
Checksums = npt.NDArray[np.uint64]  # (n, parts), XXH3-64 over leaf XXH3-64s, of plain bytes


class TierKind(IntEnum):
    """As answers number them, nearest to the engine first."""

    NONE = 0
    MEMORY = 1
    FILE = 2
    OBJECT = 3


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a medium."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive blocks of a chain, of one shard, with what a tier keeps beside their bytes."""

    ns: int  # the node's handle of the namespace
    shard: int
    keys: Keys
    parent: bytes | None  # key of the block before the first; None: not known, or a chain's start
    checksums: Checksums
    metas: tuple[bytes, ...]  # one a block, b"" where there is none
    position: int = 0  # how many blocks of the prompt come before the first

    def __len__(self) -> int:
        return int(self.keys.shape[0])


@dataclass(frozen=True, slots=True)
class Shape:
    """What a namespace says of one shard."""

    digest: bytes
    part_bytes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return sum(self.part_bytes)


class Shapes(Protocol):
    def shape(self, ns: int, shard: int) -> Shape | None:
        """None: the namespace is not open (any more)."""
        ...


class Reservation(Protocol):
    """Room taken for some blocks of a run, invisible until sealed."""

    @property
    def granted(self) -> Sequence[int]:
        """Indices in the run, ascending. Those left out are held already, or there is no room; of packs, they are not
        of the first group.
        """
        ...

    async def write(self, sources: Sequence[memoryview]) -> None:
        """Moves the bytes of the granted blocks, in order, one contiguous buffer each. Raises OSError when the
        medium would not have them; then only abort is left.
        """
        ...

    def seal(self) -> int:
        """Makes the blocks visible. How many became so: fewer where one was retired or cleared meanwhile."""
        ...

    def abort(self) -> None: ...


class Hold(Protocol):
    """Blocks to be read. Those of slots cannot leave the tier until released; packs may, and then fewer arrive."""

    @property
    def run(self) -> Run:
        """What is held: the longest run from the start of what was asked."""
        ...

    async def read(self, into: Sequence[memoryview]) -> int:
        """Moves the bytes of run[0:n] into n contiguous writable buffers, n = len(into). Returns how many blocks from
        the start arrived and verify; the first that does not is dropped from the tier and counted.
        """
        ...

    def release(self) -> None: ...


class Tier(Protocol):
    """One level of storage."""

    @property
    def kind(self) -> TierKind: ...

    def lookup(self, ns: int, shard: int, keys: Keys) -> npt.NDArray[np.bool_]:
        """Which of the blocks are here. Changes nothing and touches nothing."""
        ...

    def reserve(self, run: Run) -> Reservation:
        """Takes room for what of the run is not here yet, evicting by policy and never waiting."""
        ...

    def hold(self, ns: int, shard: int, keys: Keys) -> Hold | None:
        """Keeps the longest run from the start that is here; None where the first block is not."""
        ...

    def retire(self, ns: int, keys: Keys) -> int:
        """Unlists blocks, all their shards, at once (of packs, with their neighbours). Returns how many of those asked
        for were here; their room is free at the last release.
        """
        ...


class Medium(Protocol):
    """Where a tier's bytes lie and how they move. Knows no block.

    Offsets, lengths and buffer addresses are multiples of `align`.
    """

    @property
    def name(self) -> str:
        """For people: "shared memory", "io_uring", "threads"."""
        ...

    @property
    def size(self) -> int: ...

    @property
    def align(self) -> int: ...

    async def open(self) -> None:
        """Allocates in full. Raises Misconfigured naming the path where that cannot be."""
        ...

    async def read(
        self, extents: Sequence[Extent], into: Sequence[Pieces], *, background: bool = False
    ) -> Sequence[OSError | None]:
        """One result an extent: None when all its bytes arrived. A short read is an OSError. background: lets those
        that somebody waits for go first.
        """
        ...

    async def write(
        self, extents: Sequence[Extent], sources: Sequence[Pieces], *, background: bool = False
    ) -> Sequence[OSError | None]:
        """One result an extent, as read. Durable only after sync."""
        ...

    async def sync(self) -> None: ...

    async def close(self) -> None:
        """Waits for what is under way, though not for ever: a device that does not answer keeps the memory that it was
        given until the process ends, and who waits for it is not answered.
        """
        ...
