"""Where the pages of one of SGLang's host pools lie, as memory that the store reads and writes.

    Direct   the pool says where (get_page_buffer_meta): blocks are its bytes in that order, moved without a copy
    Flat     the pool hands out pages as flat tensors (get_data_page, set_from_flat_data_page): a copy each way. For
             pools and layouts that do not say where, and for the engine's older interface, which copies anyway

What a page's bytes mean differs between the two, and between layouts: each is another format (`Pages.form`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from engine_adapters.base.memory import Memories
from kvstore import Extents
from kvstore.layout import BLOCK_BYTES_MIN

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Direct", "Flat", "Pages", "PagesUnknown", "pages_of"]

LAYER_FIRST: Final = "layer_first"


class PagesUnknown(Exception):
    """Neither way works with this pool; the message says why."""


class Pages(Protocol):
    """form: what decides the meaning of a page's bytes. layer_bytes: of a page, one part each. slots: how many of the
    pool's indices make a page. buffers: what may be registered once.
    """

    form: str
    layer_bytes: tuple[int, ...]
    slots: int
    buffers: Sequence[object]

    def source(self, indices: torch.Tensor) -> object:
        """What a put takes."""

    def target(self, indices: torch.Tensor) -> tuple[object, Callable[[int], None]]:
        """What a get takes, and what to call with the number of pages that arrived."""


def pages_of(pool: Any, *, direct: bool) -> Pages:
    """direct: where the pool can. Raises PagesUnknown."""
    if direct and (found := Direct.of(pool)) is not None:
        return found
    return Flat(pool)


class Direct:
    """As Pages."""

    def __init__(self, pool: Any, memories: Memories, lengths: npt.NDArray[np.int64]) -> None:
        self._pool, self._memories, self._lengths = pool, memories, lengths
        self.slots = _slots(pool)
        self.buffers: Sequence[object] = memories.buffers
        layers = int(getattr(pool, "layer_num", 0) or 0)
        pieces = len(lengths)
        # Only there a layer is a run of pieces; elsewhere a piece has all layers.
        apart = getattr(pool, "layout", "") == LAYER_FIRST and layers and pieces % layers == 0
        parts = lengths.reshape(layers, -1).sum(axis=1) if apart else lengths.sum(keepdims=True)
        self.layer_bytes = tuple(int(size) for size in parts)
        self.form = f"direct/{','.join(map(str, lengths.tolist()))}"

    @classmethod
    def of(cls, pool: Any) -> Direct | None:
        """None where the pool does not say where its pages are, or says places that are not its own."""
        memories = Memories(_tensors(vars(pool)))
        try:
            addresses, sizes = _meta(pool, torch.arange(_slots(pool), dtype=torch.int64))
            memories.table(addresses, sizes)
        except (ValueError, TypeError, AttributeError, NotImplementedError, AssertionError):
            return None
        if int(sizes.sum()) < BLOCK_BYTES_MIN:
            return None
        return cls(pool, memories, sizes)

    def source(self, indices: torch.Tensor) -> Extents:
        addresses, sizes = _meta(self._pool, indices)
        shape = (indices.numel() // self.slots, len(self._lengths))
        if addresses.size != shape[0] * shape[1]:
            raise ValueError(f"{addresses.size} pieces, must be {shape[0]} pages of {shape[1]}")
        return Extents(self.buffers, self._memories.table(addresses.reshape(shape), sizes.reshape(shape)))

    def target(self, indices: torch.Tensor) -> tuple[Extents, Callable[[int], None]]:
        return self.source(indices), _nothing


class Flat:
    """As Pages. A page shorter than the store's least is filled up with zeros."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.slots = _slots(pool)
        self.buffers: Sequence[object] = ()
        try:
            page = pool.get_dummy_flat_data_page()
            pool.get_data_page(0, flat=True)
        except Exception as error:
            raise PagesUnknown(f"{type(pool).__name__}, {getattr(pool, 'layout', '?')}: {error}") from error
        self._dtype, self._bytes = page.dtype, page.nbytes
        self.layer_bytes: tuple[int, ...] = (max(self._bytes, BLOCK_BYTES_MIN),)
        self.form = f"flat/{self._bytes}"

    def source(self, indices: torch.Tensor) -> npt.NDArray[np.uint8]:
        return self.packed(self._pool.get_data_page(index, flat=True) for index in self._firsts(indices))

    def target(self, indices: torch.Tensor) -> tuple[npt.NDArray[np.uint8], Callable[[int], None]]:
        firsts = self._firsts(indices)
        into = self.room(len(firsts))

        def arrived(count: int) -> None:
            for first, page in zip(firsts[:count], self.unpacked(into), strict=False):
                self._pool.set_from_flat_data_page(first, page)

        return into, arrived

    def room(self, pages: int) -> npt.NDArray[np.uint8]:
        return np.empty((pages, self.layer_bytes[0]), np.uint8)

    def packed(self, pages: Iterator[torch.Tensor] | Sequence[torch.Tensor]) -> npt.NDArray[np.uint8]:
        """(n, bytes) of pages as the pool hands them out. ValueError for one of another size."""
        rows = []
        for page in pages:
            row = page.contiguous().reshape(-1).view(torch.uint8).numpy()
            if row.nbytes != self._bytes:
                raise ValueError(f"a page of {row.nbytes} bytes, must be {self._bytes}")
            rows.append(np.pad(row, (0, self.layer_bytes[0] - self._bytes)))
        return np.stack(rows)

    def unpacked(self, rows: npt.NDArray[np.uint8]) -> Iterator[torch.Tensor]:
        for row in rows:
            yield torch.from_numpy(row[: self._bytes]).view(self._dtype)

    def _firsts(self, indices: torch.Tensor) -> list[int]:
        firsts: list[int] = indices[:: self.slots].tolist()
        return firsts


def _nothing(_arrived: int) -> None:
    """The bytes are where they belong."""


def _slots(pool: Any) -> int:
    return int(getattr(pool, "logical_page_size", 0) or getattr(pool, "page_size", 0) or 1)


def _meta(pool: Any, indices: torch.Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    addresses, sizes = pool.get_page_buffer_meta(indices)
    return np.array(addresses, dtype=np.int64), np.array(sizes, dtype=np.int64)


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """The tensors that an object's attributes are, or have in lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
