"""A prompt that lies below memory comes up whole at the first get, window after window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvstore import Client
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, layout, tokens
from tests.integration.patience import written_behind

FILES = ("file.enabled=true", "file.bytes=16MiB", "file.slab_bytes=4MiB", "file.admission=always")


@pytest.mark.parametrize("blocks", [40, 90])
def test_a_get_waits_for_what_is_read_ahead(tmp_path: Path, blocks: int) -> None:
    """Memory is 64 blocks of 128, so windows are a quarter of them: each is being read ahead when it is asked for.

    A second promotion of the same blocks finds them reserved; it must wait for the first and not end the run.
    """
    with NodeProcess(tmp_path, *FILES, "object.url=none", memory="8MiB") as node, Client(node.address) as client:
        ns = client.namespace(layout())
        chains = [ns.chain(tokens(blocks, seed)) for seed in range(3)]
        for at, chain in enumerate(chains):
            for first in range(0, blocks, 16):  # no faster than write-behind: nothing is to be lost here
                part = chain[first : first + 16]
                ns.put(part, blocks_of(part), position=first, parent=chain[first - 1].tobytes() if first else None)
                stored = at * blocks + first + len(part)
                written_behind(node, stored, 8 << 20)
        into = np.empty((blocks, SIZE), np.uint8)
        for _ in range(3):
            for chain in chains:
                there = ns.lookup(chain).blocks
                into[:] = 0
                got = ns.get(chain, into)
                assert got.blocks >= there, f"{there} were there, {got.blocks} came, {got.ended}"
                assert (into[: got.blocks] == blocks_of(chain[: got.blocks])).all()
                assert (got.tiers == 2).any() or there <= 64
