"""The native lookup by needs against a witness that tries every boundary."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvstore import native
from kvstore.testing.models.lookup import Need, NeedKind, longest_boundary, tiers_read
from tests.model.table_pair import aligned, words

MEMORY, FILE = 1, 2
SHARDS = 3
SLAB_BYTES = 1 << 20
KEYS = [hashlib.sha256(f"block {number}".encode()).digest() for number in range(200)]
NEEDS = st.lists(
    st.builds(Need, st.integers(0, SHARDS - 1), st.sampled_from(list(NeedKind)), st.integers(0, 90)), max_size=4
)


@st.composite
def places(draw: st.DrawFn) -> list[list[int]]:
    """tiers[shard][block]: mostly long runs with a few holes, as prompts leave them. Lengths about the probe's 64."""
    length = draw(st.sampled_from([0, 1, 2, 5, 63, 64, 65, 130]))
    tiers = []
    for _ in range(SHARDS):
        row = [draw(st.sampled_from([MEMORY, FILE, 3]))] * length
        for _ in range(draw(st.integers(0, 6)) if length else 0):
            start = draw(st.integers(0, length - 1))
            end = draw(st.integers(start, length)) if draw(st.booleans()) else start + 1
            row[start:end] = [draw(st.sampled_from([0, MEMORY, FILE, 3]))] * (min(end, length) - start)
        tiers.append(row)
    return tiers


class Core:
    """A core whose two tiers hold what is asked for: 1 in memory, 2 in the file tier, 3 in both."""

    def __init__(self, tiers: list[list[int]]) -> None:
        memory = native.TableConfig(4 * SLAB_BYTES, SLAB_BYTES)
        file = native.TableConfig(8 * SLAB_BYTES, SLAB_BYTES, header_bytes=4096)
        self.meta = aligned(native.NodeCore.meta_bytes(memory))
        self.core = native.NodeCore(memory, file, meta=self.meta.ctypes.data, meta_bytes=self.meta.size, incarnation=1)
        self.ns = self.core.open_namespace(bytes(32), 0, 16, [[4096]] * SHARDS)
        self.owner = self.core.new_owner()
        for shard, row in enumerate(tiers):
            for tier in (MEMORY, FILE):
                self.put(tier, shard, [KEYS[block] for block, at in enumerate(row) if at & tier])

    def put(self, tier: int, shard: int, keys: list[bytes]) -> None:
        if not keys:
            return
        hint = native.Hint()
        status, statuses, tickets, _ = self.core.reserve(
            tier, self.owner, self.ns, shard, words(keys), b"", [], hint, False, 0
        )
        assert status == 0
        assert not statuses.any()
        assert not self.core.seal(tier, self.owner, tickets, np.zeros(len(keys), np.uint64), 0).any()


@given(places(), st.lists(NEEDS, min_size=1, max_size=6))
def test_the_longest_boundary(tiers: list[list[int]], wanted: list[list[Need]]) -> None:
    core = Core(tiers)
    length = len(tiers[0])
    nearest = [[MEMORY if at & MEMORY else at for at in row] for row in tiers]
    for needs in wanted:
        asked = [(need.shard, int(need.kind), need.blocks) for need in needs]
        status, blocks, found, *_ = core.core.lookup(core.ns, words(KEYS[:length]), asked)
        assert status == 0
        boundary = longest_boundary(nearest, needs)
        assert blocks == boundary
        assert list(found)[:blocks] == tiers_read(nearest, needs, boundary)
