"""The families asked for most, in bounded room, against exact counts: what space-saving promises and no less."""

from __future__ import annotations

import ctypes
import mmap
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kvstore import native

TABLE = native.TableConfig(64 << 20, 8 << 20)
META_BYTES = native.NodeCore.meta_bytes(TABLE)
META = mmap.mmap(-1, META_BYTES)
ADDRESS = ctypes.addressof(ctypes.c_char.from_buffer(META))
INCARNATIONS = iter(range(1, 1 << 30))


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 12), st.integers(1, 50), st.integers(0, 50)), max_size=120),
)
def test_counts_are_within_their_error_and_the_large_ones_are_there(
    rows_max: int, gets: list[tuple[int, int, int, int]]
) -> None:
    core = native.NodeCore(
        TABLE, None, meta=ADDRESS, meta_bytes=META_BYTES, incarnation=next(INCARNATIONS), families_max=rows_max
    )
    namespaces = [core.open_namespace(bytes([i + 1]) * 32, 0, 16, [[4096]]) for i in range(2)]
    asked: Counter[tuple[int, int]] = Counter()
    hit: Counter[tuple[int, int]] = Counter()
    for which, family, blocks, arrived in gets:
        ns = namespaces[which]
        came = min(blocks, arrived)
        core.fetched(ns, native.Hint(family=family), blocks, (0, came, 0, 0), 0, 0, 0, 1)
        asked[ns, family] += blocks
        hit[ns, family] += came
    rows = {(row["ns"], row["family"]): row for row in core.counters()["families"]}
    assert len(rows) == min(rows_max, len(asked)), "one row each, and never more than there is room for"
    for one, row in rows.items():
        assert row["asked"] - row["error"] <= asked[one] <= row["asked"]
        assert sum(row["by_tier"]) <= hit[one], "hits are never another family's"
        assert row["gets"] >= 1
    assert sum(row["asked"] for row in rows.values()) == sum(asked.values())
    for one, count in asked.items():
        if count > sum(asked.values()) / rows_max:
            assert one in rows
    if len(asked) <= rows_max:
        assert all(row["error"] == 0 and sum(row["by_tier"]) == hit[one] for one, row in rows.items())
