"""The planner against what its rules say, on any batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.batch import EXTENTS_MAX, Batch, Extent
from transfer.plan import LEAF_BYTES, Plan, plan

Row = tuple[int, int, int, int, int]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Extents that often follow their neighbour on both sides, of sizes around the slice and leaf borders."""
    sizes = st.sampled_from([0, 1, 100, 4095, 4096, 4097, 8192, 20_000, 70_001])
    rows: list[Row] = []
    for _ in range(draw(st.integers(0, 30))):
        size = draw(sizes)
        if rows and draw(st.booleans()):
            local, local_offset, remote, remote_offset, length = rows[-1]
            rows.append((local, local_offset + length, remote, remote_offset + length, size))
        else:
            ids, offsets = st.integers(1, 2), st.integers(0, 1 << 20)
            rows.append((draw(ids), draw(offsets), draw(ids), draw(offsets), size))
    return Batch(np.array(rows, dtype=np.int64).reshape(-1, 5))


def journeys(table: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> list[list[int]]:
    """Every byte's journey in order, as the longest stretches that go together: equal however the rows are cut."""
    found: list[list[int]] = []
    for local, offset, remote, remote_offset, length in table.tolist():
        last = found[-1] if found else None
        if last and [local, offset, remote, remote_offset] == [last[0], last[1] + last[4], last[2], last[3] + last[4]]:
            last[4] += length
        elif length:
            found.append([local, offset, remote, remote_offset, length])
    return found


def check_rules(batch: Batch, made: Plan, slice_bytes: int, rails: int) -> None:
    assert journeys(made.rows) == journeys(batch.table)
    assert made.starts.tolist() == np.cumsum([0, *batch.table[:, 4]]).tolist()
    position, row = 0, 0
    for at, first, end, rail in made.slices.tolist():
        assert (at, first) == (position, row)
        assert end > first and 0 <= rail < rails
        members = made.rows[first:end]
        assert len(set(members[:, 2].tolist())) == 1, "a slice never crosses remote regions"
        size = int(members[:, 4].sum())
        assert size <= slice_bytes * 5 // 4 + LEAF_BYTES
        position, row = position + size, end
    assert (position, row) == (batch.bytes, len(made.rows))


@given(batches(), st.sampled_from([8192, 16_384, 65_536]), st.integers(1, 4))
def test_every_byte_goes_once_in_order(batch: Batch, slice_bytes: int, rails: int) -> None:
    check_rules(batch, plan(batch, slice_bytes=slice_bytes, rails=(1,) * rails), slice_bytes, rails)


@given(batches(), st.sampled_from([8192, 16_384]), st.data())
def test_slices_begin_at_leaves_of_parts(batch: Batch, slice_bytes: int, data: st.DataObject) -> None:
    borders = {0, batch.bytes}
    ends = np.cumsum(batch.table[:, 4]).tolist()
    borders.update(
        end for end, before, after in zip(ends, batch.table[:, 2], batch.table[1:, 2], strict=False) if before != after
    )
    filled = batch.table[batch.table[:, 4] > 0]
    ends = np.cumsum(filled[:, 4]).tolist()
    borders.update(
        end for end, before, after in zip(ends, filled[:, 2], filled[1:, 2], strict=False) if before != after
    )
    borders.update(data.draw(st.lists(st.integers(0, batch.bytes), max_size=5)))
    parts = np.diff(sorted(borders)).tolist() or [0]
    made = plan(batch, slice_bytes=slice_bytes, parts=parts)
    check_rules(batch, made, slice_bytes, 1)
    leaves = {
        start + leaf
        for start, size in zip(np.cumsum([0, *parts]), parts, strict=False)
        for leaf in range(0, size, LEAF_BYTES)
    }
    assert set(made.slices[:, 0].tolist()) <= leaves


@given(batches(), st.data())
def test_extents_of_a_slice(batch: Batch, data: st.DataObject) -> None:
    made = plan(batch, slice_bytes=8192)
    marks = np.array([data.draw(st.booleans()) for _ in made.slices], dtype=np.bool_)
    ends = [*made.slices[1:, 0].tolist(), batch.bytes][: len(made.slices)]
    marked = [(start, end) for (start, *_), end, mark in zip(made.slices.tolist(), ends, marks, strict=True) if mark]
    extents = zip(made.starts[:-1].tolist(), made.starts[1:].tolist(), strict=True)
    expected = [any(start < b and a < end for start, end in marked) and a < b for a, b in extents]
    assert made.extents_of(marks).tolist() == expected


def rows_of(*rows: Row) -> Batch:
    return Batch(np.array(rows, dtype=np.int64))


def test_neighbours_are_joined_and_others_are_not() -> None:
    made = plan(rows_of((1, 0, 2, 100, 50), (1, 50, 2, 150, 50), (1, 100, 2, 300, 50), (3, 150, 2, 350, 50)))
    assert made.rows.tolist() == [[1, 0, 2, 100, 100], [1, 100, 2, 300, 50], [3, 150, 2, 350, 50]]
    assert len(made.slices) == 1


def test_small_extents_are_not_torn() -> None:
    size = 100 << 10
    made = plan(rows_of(*((1, 2 * i * size, 2, i * size, size) for i in range(100))), slice_bytes=1 << 20)
    assert len(made.rows) == 100
    assert len(made.slices) == 10


def test_rails_get_bytes_by_weight() -> None:
    made = plan(rows_of((1, 0, 2, 0, 64 << 20)), slice_bytes=1 << 20, rails=(3, 1))
    moved = [int((made.slices[:, 3] == rail).sum()) for rail in (0, 1)]
    assert moved == [48, 16]


@given(st.lists(st.sampled_from([8192, 12_000, 16_384]), min_size=2, max_size=20), st.integers(1, 3), st.booleans())
def test_extents_of_a_slices_size_are_slices(sizes: list[int], rails: int, digests: bool) -> None:
    batch = rows_of(*((1, i * 20_000, 1 + i % 2, i * 16_384, size) for i, size in enumerate(sizes)))
    made = plan(batch, slice_bytes=16_384, rails=(1,) * rails, parts=sizes if digests else None)
    check_rules(batch, made, 16_384, rails)
    assert made.slices[:, 2].tolist() == list(range(1, len(sizes) + 1))
    assert len(made.parts) == (len(sizes) if digests else 0)


def test_one_read_of_one_slice_is_itself() -> None:
    made = plan(rows_of((1, 5, 2, 7, 2 << 20)), parts=[2 << 20])
    assert made.rows.tolist() == [[1, 5, 2, 7, 2 << 20]]
    assert made.slices.tolist() == [[0, 0, 1, 0]]


def test_what_does_not_fit_is_named() -> None:
    batch = rows_of((1, 0, 2, 0, 100), (1, 100, 3, 0, 100))
    with pytest.raises(ValueError, match="parts must add up"):
        plan(batch, parts=[199])
    with pytest.raises(ValueError, match="two remote regions"):
        plan(batch, parts=[150, 50])
    with pytest.raises(ValueError, match="slice_bytes"):
        plan(batch, slice_bytes=4096)
    with pytest.raises(ValueError, match="rails"):
        plan(batch, rails=())
    with pytest.raises(ValueError, match="negative"):
        rows_of((1, 0, 2, -1, 100))
    with pytest.raises(ValueError, match="extents_max"):
        Batch(np.zeros((EXTENTS_MAX + 1, 5), dtype=np.int64))
    with pytest.raises(ValueError, match=r"pairs\[1\]"):
        Batch.of([(Extent(1, 0, 5), Extent(2, 0, 5)), (Extent(1, 0, 5), Extent(2, 0, 6))])


def test_a_batch_too_large_for_an_integer_is_counted() -> None:
    assert rows_of((1, 0, 2, 0, (1 << 63) - 1), (1, 0, 2, 0, (1 << 63) - 1)).bytes == (1 << 64) - 2
