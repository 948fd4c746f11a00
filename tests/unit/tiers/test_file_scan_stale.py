"""Slots found by their headers alone, where a slab was given to other classes and not all of its headers are new."""

from __future__ import annotations

import asyncio
import mmap
import random
import struct
from collections.abc import Sequence

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvstore.testing.faulty_medium import FaultyMedium
from kvstore.tiers.base import Extent, Pieces
from kvstore.tiers.data_dir import Geometry
from kvstore.tiers.file_index import split_records
from kvstore.tiers.file_scan import scan_headers

PAGE = 4096
GEOMETRY = Geometry(slab_bytes=64 * PAGE, slabs_per_file=2, slabs=2)
Place = tuple[int, int]  # where the payload lies, the epoch of who wrote it


def record(offset: int, payload: int, epoch: int) -> bytes:
    """By the words of docs/format/slot.md."""
    rng = random.Random(offset * epoch)
    fixed = struct.pack("<IHHIHHHHIQQQ", 0x53564B01, 1, 0, 160, 0, 1, 0, 0, 0, epoch << 32 | 1, offset, payload)
    body = fixed + rng.randbytes(96) + bytes(8) + rng.randbytes(8)
    return body[:144] + struct.pack("<Q", xxhash.xxh3_64_intdigest(body)) + body[152:]


async def write(medium: FaultyMedium, pages: int, cell: int, epoch: int, slab: int = 0) -> None:
    """Cell `cell` of a class of `pages` pages of payload: header and payload."""
    at = slab * GEOMETRY.slab_bytes + cell * (pages + 1) * PAGE
    memory = memoryview(mmap.mmap(-1, (pages + 1) * PAGE))
    header = record(at + PAGE, pages * PAGE, epoch)
    memory[: len(header)] = header
    memory[PAGE:] = random.Random(at + epoch).randbytes(pages * PAGE)
    assert await medium.write([Extent(at, len(memory))], [memory]) == [None]


async def found(medium: FaultyMedium) -> set[Place]:
    records = await scan_headers(medium, GEOMETRY)
    return {(offset, struct.unpack_from("<I", row, 28)[0]) for offset, row in split_records(records)}


def of_class(pages: int, cells: Sequence[int], epoch: int, slab: int = 0) -> set[Place]:
    return {(slab * GEOMETRY.slab_bytes + (cell * (pages + 1) + 1) * PAGE, epoch) for cell in cells}


def medium_of(kind: type[FaultyMedium] = FaultyMedium) -> FaultyMedium:
    return kind(GEOMETRY.size, random.Random(1))


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 4), (4, 2), (3, 1), (7, 5), (1, 31)])
async def test_the_latest_class_of_a_slab_counts_although_its_first_cell_was_never_written(old: int, new: int) -> None:
    medium = medium_of()
    for cell in range(64 // (old + 1)):
        await write(medium, old, cell, epoch=3)
    cells = range(1, 64 // (new + 1))
    for cell in cells:
        await write(medium, new, cell, epoch=5)
    await write(medium, 2, 0, epoch=4, slab=1)
    assert await found(medium) == of_class(new, cells, 5) | of_class(2, [0], 4, slab=1)


async def test_what_another_class_left_behind_the_last_cell_is_forgotten() -> None:
    medium = medium_of()
    for cell in range(12):
        await write(medium, 4, cell, epoch=3)
    for cell in range(5):
        await write(medium, 1, cell, epoch=5)
    assert await found(medium) == of_class(1, range(5), 5)


async def test_cells_of_several_lives_of_one_class_are_all_found() -> None:
    """A slab that was restored is of a later epoch than its older cells; so is one given to its class again."""
    medium = medium_of()
    for cell in range(20):
        await write(medium, 1, cell, epoch=3)
    for cell in (0, 4, 7):
        await write(medium, 1, cell, epoch=9)
    expected = of_class(1, [0, 4, 7], 9) | of_class(1, [i for i in range(20) if i not in {0, 4, 7}], 3)
    assert await found(medium) == expected


class BadPage(FaultyMedium):
    """One page of it cannot be read."""

    bad = 0

    async def read(
        self, extents: Sequence[Extent], into: Sequence[Pieces], *, background: bool = False
    ) -> Sequence[OSError | None]:
        results = await super().read(extents, into, background=background)
        hit = [extent.offset <= self.bad < extent.offset + extent.length for extent in extents]
        return [OSError(5, "bad") if bad else result for bad, result in zip(hit, results, strict=True)]


@pytest.mark.parametrize("bad", [0, 2, 5])
async def test_a_page_that_cannot_be_read_costs_its_slot_alone(bad: int) -> None:
    medium = medium_of(BadPage)
    assert isinstance(medium, BadPage)
    medium.bad = bad * 2 * PAGE
    for cell in range(10):
        await write(medium, 1, cell, epoch=3)
    assert await found(medium) == of_class(1, [i for i in range(10) if i != bad], 3)


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 40), st.booleans()), min_size=1, max_size=5),
)
def test_whatever_a_slab_was_given_to_the_latest_claim_is_believed(given_to: list[tuple[int, int, bool]]) -> None:
    """Each class fills so many cells from the slab's start, the first of them perhaps not.

    What may be missed is a class that has not come further than one cell of the class that the first header tells of.
    """
    asyncio.run(_check(given_to))


async def _check(given_to: list[tuple[int, int, bool]]) -> None:
    medium = medium_of()
    headers: dict[int, tuple[int, int]] = {}  # by page: pages of payload, epoch
    last: tuple[int, list[int], int] | None = None
    for epoch, (pages, count, first_fails) in enumerate(given_to, 1):
        cells = list(range(int(first_fails), min(count, 64 // (pages + 1))))
        for cell in cells:
            await write(medium, pages, cell, epoch)
            at = cell * (pages + 1)
            headers = {page: it for page, it in headers.items() if not at <= page < at + pages + 1}
            headers[at] = (pages, epoch)
        if cells:
            last = (pages, cells, epoch)
    places = await found(medium)
    if last is None:
        assert places == set()
        return
    pages, cells, epoch = last
    if of_class(pages, cells, epoch) <= places:
        return
    first = headers[0][0] + 1
    assert (cells[-1] + 1) * (pages + 1) <= first, "more than one cell of an old class was believed"
    expected = {((page + 1) * PAGE, it[1]) for page, it in headers.items() if page % first == 0 and it[0] == first - 1}
    assert places == expected, "neither the latest class nor the one of the first header"
