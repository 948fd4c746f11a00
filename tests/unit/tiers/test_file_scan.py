"""Slots found by their headers alone: every cell of a slab is looked at, whatever else lies in it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvstore.tiers.base import Extent
from kvstore.tiers.data_dir import HEADER_BYTES, Geometry
from kvstore.tiers.file_index import split_records
from kvstore.tiers.file_scan import scan_headers
from tests.unit.tiers.test_file_index import record

CELL = HEADER_BYTES + 8192
SLAB = 5 * CELL
SLABS = Geometry(slab_bytes=SLAB, slabs_per_file=2, slabs=3)


class Medium:
    """Bytes in memory, some of which cannot be read."""

    def __init__(self) -> None:
        self.bytes = bytearray(SLABS.size)
        self.unreadable: set[int] = set()

    def put(self, at: int, *, payload: int = 8192) -> int:
        header = record(at + HEADER_BYTES, at, payload)
        self.bytes[at : at + len(header)] = header
        return at + HEADER_BYTES

    async def read(self, extents: Sequence[Extent], into: Sequence[memoryview]) -> list[Exception | None]:
        told: list[Exception | None] = []
        for extent, page in zip(extents, into, strict=True):
            bad = any(extent.offset <= at < extent.offset + extent.length for at in self.unreadable)
            told.append(OSError("bad sector") if bad else None)
            if not bad:
                page[:] = self.bytes[extent.offset : extent.offset + extent.length]
        return told


async def found(medium: Medium) -> set[int]:
    """Where the payloads of what was found lie."""
    return {offset for offset, _ in split_records(await scan_headers(medium, SLABS))}  # type: ignore[arg-type]


async def test_every_cell_of_every_slab_up_to_the_last() -> None:
    medium = Medium()
    put = {medium.put(slab * SLAB + cell * CELL) for slab in range(3) for cell in range(5)}
    assert await found(medium) == put


async def test_nothing_is_found_where_nothing_is() -> None:
    assert await found(Medium()) == set()


@pytest.mark.parametrize("first", ["never used", "cannot be read", "is damaged"])
async def test_a_slab_whose_first_page_says_nothing(first: str) -> None:
    medium = Medium()
    put = {medium.put(SLAB + cell * CELL) for cell in (1, 2, 4)}
    if first == "cannot be read":
        medium.unreadable.add(2 * SLAB)  # of another slab: a stretch that cannot be read costs what lies in it
    if first == "is damaged":
        medium.put(SLAB)
        medium.bytes[SLAB + 60] ^= 1
    assert await found(medium) == put


async def test_what_a_slab_held_when_its_cells_were_larger_is_not_taken_for_a_slot() -> None:
    medium = Medium()
    put = {medium.put(cell * CELL) for cell in (0, 1, 3)}
    medium.put(2 * CELL, payload=5 * 4096)  # left from before
    assert await found(medium) == put
