"""A node that starts without a tier that it had: what was below is not below any more, and is not lost for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from kvstore import Client
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, eventually, layout, tokens

BLOCKS = 40
FILES = ("file.enabled=true", "file.bytes=16MiB", "file.slab_bytes=1MiB", "file.admission=always")
FILE = 2


def put(node: NodeProcess) -> None:
    with Client(node.address) as client:
        ns = client.namespace(layout())
        chain = ns.chain(tokens(BLOCKS))
        assert ns.put(chain, blocks_of(chain)).stored == BLOCKS


def came(node: NodeProcess) -> int:
    with Client(node.address) as client:
        ns = client.namespace(layout())
        chain = ns.chain(tokens(BLOCKS))
        ns.prefetch(chain)
        into = np.zeros((BLOCKS, SIZE), np.uint8)
        got = ns.get(chain, into, wait_s=10)
        assert np.array_equal(into[: got.blocks], blocks_of(chain[: got.blocks]))
        return got.blocks


def objects_at(path: Path) -> tuple[str, ...]:
    path.mkdir(exist_ok=True)
    return (f"object.url=file://{path}", "object.flush_ms=20000")


def forget_above(node: NodeProcess) -> None:
    """All but the packs and who the node is."""
    for suffix in (".payload", ".meta"):
        Path(node.facts["memory_at"]).with_suffix(suffix).unlink(missing_ok=True)
    shutil.rmtree(node.home / "data" / "files", ignore_errors=True)


def test_each_life_knows_what_lies_below_it(tmp_path: Path) -> None:
    """What a node writes to packs when it stops is what lies in none yet: here all of it, whatever was clean before."""
    here, there = tmp_path / "here", tmp_path / "there"
    lives: list[NodeProcess] = []

    def life(*sets: str) -> NodeProcess:
        lives.append(NodeProcess(tmp_path, *sets, memory="3MiB"))
        return lives[-1].start()

    try:
        with_files = life(*FILES)
        put(with_files)
        eventually(lambda: with_files.counters(FILE)["used"] >= SIZE * 4)
        assert with_files.stop() == 0
        # Files are switched off: of what they made clean, memory has the only copy.
        without = life(*objects_at(here))
        assert came(without) == BLOCKS
        assert without.stop() == 0
        forget_above(without)
        # That is below now, and stays so over a start; but not in a store at another place.
        again = life(*FILES, *objects_at(here))
        assert came(again) == BLOCKS
        assert again.stop() == 0
        elsewhere = life(*FILES, *objects_at(there))
        assert elsewhere.stop() == 0
        forget_above(elsewhere)
        alone = life(*objects_at(there))
        assert came(alone) == BLOCKS
        assert alone.stop() == 0
    finally:
        for node in lives:
            node.close()
