"""Finds a file tier's slots by their headers, where the index was lost.

A slab serves one size class at a time, so its first header tells where the others are: a page a slot is read. But that
header may be an old one: the slab was given to another class since, whose first cell never landed. So it is believed
only if every cell that it tells of has a header of its class. Else the slab is read whole, and the latest header in it
says what it is; what does not fit that is forgotten. Cells are taken from the start of a slab: what could hide still
is less than one cell of an old class. That is forgotten too, but wins over nothing that is written from now on, since
the next life counts from far above (file_index.py, EPOCHS_AHEAD).

Headers are claims: payloads are verified when they are read.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from kvstore import native
from kvstore.tiers.base import Extent
from kvstore.tiers.data_dir import HEADER_BYTES

if TYPE_CHECKING:
    from kvstore.tiers.base import Medium
    from kvstore.tiers.data_dir import Geometry

__all__ = ["scan_headers"]

PAGE: Final = 4096
PAGES_AT_ONCE: Final = 1024
WHOLE_BYTES: Final = 4 << 20  # of a slab read whole, at once
SLABS_AT_ONCE: Final = 4

Found = tuple[int, int, int, bytes]  # where the header lies, payload bytes, sequence, record


async def scan_headers(medium: Medium, geometry: Geometry) -> bytes:
    """Records of the slots found, end to end."""
    turn = asyncio.Semaphore(SLABS_AT_ONCE)

    async def one(slab: int) -> bytes:
        async with turn:
            found = await _scan_slab(medium, slab * geometry.slab_bytes, geometry.slab_bytes)
            return b"".join(record for _, _, _, record in found)

    return b"".join(await asyncio.gather(*(one(slab) for slab in range(geometry.slabs))))


async def _scan_slab(medium: Medium, start: int, length: int) -> list[Found]:
    first = await _pages(medium, [start])
    found: list[Found] = []
    if first:
        cell = _cell_bytes(first[0][1])
        found = first + await _pages(medium, range(start + cell, start + length - PAGE, cell))
    if not found or not _is_full(found, length):
        for at in range(start, start + length, WHOLE_BYTES):
            found += await _stretch(medium, at, min(WHOLE_BYTES, start + length - at))
    if not found:
        return []
    cell = _cell_bytes(max(found, key=lambda one: one[2])[1])  # the newest says what the slab is
    return [one for one in dict.fromkeys(found) if _cell_bytes(one[1]) == cell and (one[0] - start) % cell == 0]


def _is_full(found: list[Found], length: int) -> bool:
    """Whether every cell that the first header tells of has a header of its class."""
    cell = _cell_bytes(found[0][1])
    return sum(_cell_bytes(payload) == cell for _, payload, _, _ in found) == length // cell


def _cell_bytes(payload: int) -> int:
    return HEADER_BYTES + -(-payload // PAGE) * PAGE


async def _pages(medium: Medium, offsets: Iterable[int]) -> list[Found]:
    """Headers at these offsets, where there are any."""
    every = list(offsets)
    found: list[Found] = []
    for at in range(0, len(every), PAGES_AT_ONCE):
        some = every[at : at + PAGES_AT_ONCE]
        memory = memoryview(mmap.mmap(-1, PAGE * len(some)))
        pages = [memory[i * PAGE : (i + 1) * PAGE] for i in range(len(some))]
        errors = await medium.read([Extent(offset, PAGE) for offset in some], pages)
        for offset, page, error in zip(some, pages, errors, strict=True):
            if error is None:
                found += native.find_records(page, offset, PAGE)
    return found


async def _stretch(medium: Medium, offset: int, length: int) -> list[Found]:
    memory = memoryview(mmap.mmap(-1, length))
    errors = await medium.read([Extent(offset, length)], [memory])
    if errors[0] is not None:  # what is bad is a page of it, not the megabytes around
        return await _pages(medium, range(offset, offset + length, PAGE))
    found: list[Found] = native.find_records(memory, offset, PAGE)
    return found
