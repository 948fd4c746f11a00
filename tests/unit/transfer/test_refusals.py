"""What is wrong with a batch, against looking at its extents one by one."""

from __future__ import annotations

import asyncio

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from transfer.base import Batch, Presented, Region, Rights
from transfer.errors import Reason
from transfer.grants import normal_ranges
from transfer.refusals import refusals
from transfer.regions import Regions

SIZE = 64
places = st.one_of(st.integers(0, SIZE + 2), st.sampled_from([2**62, 2**63 - 1]))
ranges = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)), min_size=1, max_size=5).map(
    lambda drawn: normal_ranges([(start, min(size, SIZE - start)) for start, size in drawn], SIZE)
)


lengths = st.just(0) | st.integers(0, SIZE + 1)


def one_by_one(
    row: tuple[int, ...], regions: dict[int, Region], shown: dict[int, Presented | None], writing: bool
) -> Reason:
    local, here, handle, there, length = row
    region, presented = regions[local], shown[handle]
    if length and here + length > region.bytes:
        return Reason.OUT_OF_BOUNDS
    if not writing and not region.writable:
        return Reason.NOT_ALLOWED
    if presented is None:
        return Reason.REVOKED
    if not presented.rights & (Rights.WRITE if writing else Rights.READ):
        return Reason.NOT_ALLOWED
    inside = any(start <= there and there + length <= start + size for start, size in presented.ranges)
    return Reason.NONE if inside or length == 0 else Reason.OUT_OF_BOUNDS


@given(
    rows=st.lists(
        st.tuples(st.sampled_from([1, 2]), places, st.sampled_from([1, 2, 3]), places, lengths),
        max_size=12,
    ),
    granted=st.tuples(ranges, ranges),
    rights=st.sampled_from([Rights.READ, Rights.WRITE, Rights.READ | Rights.WRITE]),
    writing=st.booleans(),
)
def test_refusals_are_those_of_each_extent(
    rows: list[tuple[int, ...]], granted: tuple[tuple[tuple[int, int], ...], ...], rights: Rights, writing: bool
) -> None:
    async def main() -> None:
        held = Regions()
        regions = {
            1: held.add(bytearray(SIZE), name="", writable=True),
            2: held.add(bytes(SIZE - 9), name="", writable=False),
        }
        shown: dict[int, Presented | None] = {
            1: Presented(1, rights, granted[0], SIZE),
            2: Presented(2, Rights.READ | Rights.WRITE, granted[1], SIZE),
            3: None,
        }
        batch = Batch(np.array(rows, dtype=np.int64).reshape(-1, 5))
        told = refusals(batch, regions, shown, writing=writing)
        expected = [one_by_one(row, regions, shown, writing) for row in rows]
        assert (told.tolist() if told is not None else [0] * len(rows)) == expected
        for row, reason in zip(rows, expected, strict=True):  # a batch of one goes another way
            told = refusals(Batch(np.array([row], dtype=np.int64)), regions, shown, writing=writing)
            assert (told.tolist() if told is not None else [0]) == [reason]

    asyncio.run(main())


def test_an_extent_may_end_where_its_range_ends() -> None:
    async def main() -> None:
        regions = {1: Regions().add(bytearray(SIZE), name="", writable=True)}
        shown: dict[int, Presented | None] = {1: Presented(1, Rights.READ, ((8, 8), (32, 16)), SIZE)}
        for here, there, length, told in [
            (0, 8, 8, None),
            (0, 8, 9, Reason.OUT_OF_BOUNDS),
            (0, 7, 1, Reason.OUT_OF_BOUNDS),
            (0, 32, 16, None),
            (0, 47, 1, None),
            (0, 48, 1, Reason.OUT_OF_BOUNDS),
            (SIZE - 1, 8, 1, None),
            (SIZE - 1, 8, 2, Reason.OUT_OF_BOUNDS),
        ]:
            for times in (1, 2):
                batch = Batch(np.array([(1, here, 1, there, length)] * times, dtype=np.int64))
                found = refusals(batch, regions, shown, writing=False)
                assert (found.tolist() if found is not None else None) == (None if told is None else [told] * times)

    asyncio.run(main())
