"""Batches cut into windows of a staging buffer, and what the windows answered put together: bytes are where they
belong, digests are those of the whole.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer.base import Batch, Landed
from transfer.devices.windows import BUFFER_BYTES_MIN, Gathered, Window, slice_bytes_for, windows_of
from transfer.errors import Failure, Reason, TransferFailed
from transfer.pending import NO_DIGESTS
from transfer.plan import Plan, plan
from transfer.testing.wire import digests_of

BUFFER = BUFFER_BYTES_MIN
DEVICE, HOST = 7, 3


def planned(rows: list[tuple[int, int, int]], parts: list[int] | None = None) -> Plan:
    """Rows of (local region, remote region, length), each at places of its own; every third touches the one before."""
    table, here, there = [], 0, 0
    for i, (local, remote, length) in enumerate(rows):
        table.append((local, here, remote, there, length))
        here, there = here + length + (0 if i % 3 else 11), there + length + (0 if i % 3 else 64)
    batch = Batch(np.array(table, dtype=np.int64).reshape(-1, 5))
    return plan(batch, slice_bytes=slice_bytes_for(BUFFER), parts=parts)


def stream_of(made: Plan) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, made.batch.bytes, dtype=np.uint8)


def told(window: Window, stream: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> Landed:
    checksums, leaves = NO_DIGESTS, NO_DIGESTS
    if window.parts:
        checksums, leaves = digests_of(stream[window.position : window.position + window.bytes], window.parts)
    return Landed(window.bytes, checksums, leaves)


rows_of = st.lists(
    st.tuples(
        st.sampled_from((DEVICE, DEVICE, HOST)),
        st.sampled_from((1, 1, 1, 2)),
        st.sampled_from((0, 1, 4095, 4096, 4097, 30_000, BUFFER, BUFFER + 1, 3 * BUFFER + 5)),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(rows_of)
def test_every_byte_is_in_one_window_and_every_copy_in_its_place(rows: list[tuple[int, int, int]]) -> None:
    made = planned(rows)
    stream = stream_of(made)
    size = int((made.batch.table[:, 1] + made.batch.table[:, 4]).max(initial=0))
    wanted = {DEVICE: np.zeros(size, np.uint8), HOST: np.zeros(size, np.uint8)}
    found = {DEVICE: np.zeros(size, np.uint8), HOST: np.zeros(size, np.uint8)}
    for (local, here, _, _, length), start in zip(made.batch.table.tolist(), made.starts.tolist(), strict=False):
        wanted[local][here : here + length] = stream[start : start + length]
    position = 0
    for window in windows_of(made, {DEVICE}, BUFFER):
        assert window.position == position and 0 < window.bytes <= BUFFER
        buffer = np.zeros(BUFFER, np.uint8)
        batch = window.batch({DEVICE}, 99)
        at = window.position
        for local, here, _, _, length in batch.table.tolist():
            (buffer if local == 99 else found[local])[here : here + length] = stream[at : at + length]
            at += length
        for local, here, into, length in window.copies.tolist():
            assert local == DEVICE
            found[local][here : here + length] = buffer[into : into + length]
        position += window.bytes
    assert position == made.batch.bytes
    for region in (DEVICE, HOST):
        assert (found[region] == wanted[region]).all()


@settings(deadline=None)
@given(rows_of, st.lists(st.integers(0, 5 * BUFFER), max_size=8), st.booleans())
def test_digests_are_those_of_the_whole(rows: list[tuple[int, int, int]], cuts: list[int], runs: bool) -> None:
    rows = [(local, 1 if runs else remote, length) for local, remote, length in rows]
    total = sum(length for _, _, length in rows)
    # Cut where regions change, and elsewhere as it comes.
    borders, position = {0, total}, 0
    for (_, before, length), (_, after, _) in itertools.pairwise(rows):
        position += length
        if before != after:
            borders.add(position)
    bounds = sorted([*borders, *(min(cut, total) for cut in cuts)])  # with parts of no bytes
    parts = [b - a for a, b in itertools.pairwise(bounds)]
    made = planned(rows, parts)
    stream = stream_of(made)
    windows = windows_of(made, {DEVICE}, BUFFER)
    gathered = Gathered(made, windows)
    for window in reversed(windows):
        gathered.landed(window, told(window, stream))
    report = gathered.report(Reason.LATE)
    checksums, leaves = digests_of(stream, parts)
    assert report.reasons is None
    assert report.leaves.tolist() == leaves.tolist()
    assert report.checksums.tolist() == checksums.tolist()


def test_what_failed_is_told_extent_by_extent_and_part_by_part() -> None:
    rows = [(DEVICE, 1, 10), (DEVICE, 1, 0), (DEVICE, 1, 2 * BUFFER), (HOST, 1, 100), (DEVICE, 1, 3 * BUFFER)]
    parts = [10, BUFFER, BUFFER + 100, 3 * BUFFER]
    made = planned(rows, parts)
    stream = stream_of(made)
    windows = windows_of(made, {DEVICE}, BUFFER)
    gathered = Gathered(made, windows)
    for window in windows[:-2]:
        gathered.landed(window, told(window, stream))
    last = windows[-2]
    error = TransferFailed(
        "no",
        failures=[Failure(Reason.REVOKED, tuple(range(len(last.rows))))],
        arrived=np.zeros(len(last.rows), np.bool_),
        checksums=NO_DIGESTS,
    )
    gathered.failed(last, error)
    report = gathered.report(Reason.LATE)
    assert report.reasons is not None
    assert report.reasons.tolist()[:4] == [Reason.LANDED] * 4
    assert report.reasons[4] == Reason.LATE  # the later window speaks last
    checksums, _ = digests_of(stream, parts)
    assert report.checksums.tolist() == [*checksums.tolist()[:3], 0]
    assert not len(report.leaves)


def test_a_row_that_failed_marks_its_extents_alone() -> None:
    rows = [(DEVICE, 1, 100), (DEVICE, 2, 100), (DEVICE, 1, 100)]
    made = planned(rows)
    (window,) = windows_of(made, {DEVICE}, BUFFER)
    arrived = np.array([True, False, True])
    error = TransferFailed("no", failures=[Failure(Reason.EXPIRED, (1,))], arrived=arrived, checksums=NO_DIGESTS)
    gathered = Gathered(made, [window])
    gathered.failed(window, error)
    report = gathered.report(Reason.LATE)
    assert report.reasons is not None
    assert report.reasons.tolist() == [Reason.LANDED, Reason.EXPIRED, Reason.LANDED]
    assert window.copies_of(arrived, {DEVICE})[:, 2].tolist() == [0, 200]


def test_copies_are_joined_where_they_touch_on_both_sides_only() -> None:
    """Device rows that touch, with a host's row between them in the buffer."""
    table = [(DEVICE, 0, 1, 0, 100), (DEVICE, 100, 1, 200, 50), (HOST, 0, 1, 300, 70), (DEVICE, 150, 1, 400, 30)]
    made = plan(Batch(np.array(table, dtype=np.int64)), slice_bytes=slice_bytes_for(BUFFER))
    (window,) = windows_of(made, {DEVICE}, BUFFER)
    assert window.copies.tolist() == [[DEVICE, 0, 0, 150], [DEVICE, 150, 220, 30]]


def test_an_extent_without_bytes_never_fails() -> None:
    made = planned([(DEVICE, 1, 100), (DEVICE, 1, 0), (DEVICE, 1, 100)])
    gathered = Gathered(made, windows_of(made, {DEVICE}, BUFFER))
    report = gathered.report(Reason.LATE)
    assert report.reasons is not None
    assert report.reasons.tolist() == [Reason.LATE, Reason.LANDED, Reason.LATE]


def test_small_buffers_are_refused() -> None:
    with pytest.raises(ValueError, match="buffer_bytes"):
        slice_bytes_for(BUFFER_BYTES_MIN - 1)
