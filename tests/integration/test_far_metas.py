"""Copies of a prompt whose metas do not go into one answer of its holder."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from kvstore import Client, KVLayout, native
from kvstore.node.leases import METAS_ANSWER_BYTES
from kvstore.wire import store
from tests.integration.nodes import BLOCK_TOKENS, blocks_of, eventually, tokens
from tests.integration.test_cluster import Cluster, running
from tests.integration.test_far import kept, told_of

SETTLE_MS = 300
BYTES = 4096  # of a block: the least there is
META = native.META_BYTES_MAX
BLOCKS = 2 * METAS_ANSWER_BYTES // META + 100  # and in one frame there is no room for them, either
HALF = BLOCKS // 2  # puts have a frame, too


def small() -> KVLayout:
    return KVLayout.uniform(
        engine="test",
        model="metas",
        revision="1",
        dtype="bfloat16",
        block_tokens=BLOCK_TOKENS,
        layers=1,
        kv_heads=1,
        head_dim=BYTES // (BLOCK_TOKENS * 2 * 2),
    )


def test_more_metas_than_one_answer_has_room_for(tmp_path: Path) -> None:
    sets = (
        f"cluster.settle_ms={SETTLE_MS}",
        "cluster.directory_width=2",
    )
    with running(Cluster(tmp_path, 2, "", *sets, memory="160MiB")) as two:
        time.sleep(2 * SETTLE_MS / 1e3)
        with Client(two.nodes[0].address) as here, Client(two.nodes[1].address) as there:
            source, ns = here.namespace(small()), there.namespace(small())
            chain = ns.chain(tokens(BLOCKS))
            metas = [bytes(key) * (META // 32) for key in chain]
            source.put(chain[:HALF], blocks_of(chain[:HALF], BYTES), metas=metas[:HALF])
            source.put(
                chain[HALF:], blocks_of(chain[HALF:], BYTES), metas=metas[HALF:], parent=chain[HALF - 1], position=HALF
            )
            eventually(lambda: ns.lookup(chain).blocks == BLOCKS)
            with told_of(two, 1, ns) as watching:
                kept(ns, chain).close()
                told: list[store.Event] = []
                while len(told) < BLOCKS:
                    told += next(watching).events
            assert [(one.key, one.meta) for one in told] == [
                (key.tobytes(), meta) for key, meta in zip(chain, metas, strict=True)
            ]
            into = np.zeros((BLOCKS, BYTES), np.uint8)
            assert ns.get(chain, into).tiers.tolist() == [1] * BLOCKS
            assert np.array_equal(into, blocks_of(chain, BYTES))
