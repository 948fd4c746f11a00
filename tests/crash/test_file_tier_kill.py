"""A real node with files, killed without a goodbye: while it writes, with its index lost or damaged, with rotten slots.

Memory is taken away with the node, so that what comes back comes from files. Every block is compared.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore import Client
from kvstore.tiers.file_index import read_left_index
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, eventually, layout, tokens
from tests.integration.patience import written_behind

FILE = 2  # kvstore.v1.Tier
CHAINS, BLOCKS, MEMORY_BYTES = 40, 8, 8 << 20
SETS = ("file.bytes=96MiB", "file.slab_bytes=2MiB", "file.admission=always", "file.checkpoint_ms=20")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path, "file.enabled=true", *SETS, memory=str(MEMORY_BYTES)) as started:
        yield started


def put(address: str, chains: range) -> None:
    with Client(address) as client:
        ns = client.namespace(layout())
        for seed in chains:
            chain = ns.chain(tokens(BLOCKS, seed))
            ns.put(chain, blocks_of(chain))


def put_to_files(node: NodeProcess) -> list[list[bytes]]:
    """Every chain, at the pace of write-behind on whatever machine this is: memory never drops what is not written.
    Returns the chains' keys.
    """
    chains = []
    with Client(node.address) as client:
        ns = client.namespace(layout())
        for seed in range(CHAINS):
            chain = ns.chain(tokens(BLOCKS, seed))
            ns.put(chain, blocks_of(chain))
            chains.append([key.tobytes() for key in chain])
            written_behind(node, len(chains) * BLOCKS, MEMORY_BYTES)
    return chains


def told(node: NodeProcess, chains: list[list[bytes]]) -> int:
    """How many of the blocks a get can bring: the chains as far as the index of the files was told of them. The rest is
    forgotten in a kill (file.checkpoint_ms)."""
    left = read_left_index(files(node) / "index")
    assert left is not None
    return sum(next((i for i, key in enumerate(keys) if key not in left.records), BLOCKS) for keys in chains)


def get_all(address: str) -> int:
    """Blocks that came back, each compared."""
    came = 0
    with Client(address) as client:
        ns = client.namespace(layout())
        for seed in range(CHAINS):
            chain = ns.chain(tokens(BLOCKS, seed))
            into = np.zeros((BLOCKS, SIZE), np.uint8)
            got = ns.get(chain, into, wait_s=10, deadline_s=30)
            np.testing.assert_array_equal(into[: got.blocks], blocks_of(chain[: got.blocks]))
            came += got.blocks
    return came


def lose_memory(node: NodeProcess) -> None:
    for suffix in (".payload", ".meta"):
        Path(node.facts["memory_at"]).with_suffix(suffix).unlink()


def files(node: NodeProcess) -> Path:
    return node.home / "data" / "files"


def test_blocks_are_found_after_a_kill(node: NodeProcess) -> None:
    chains = put_to_files(node)
    eventually(lambda: told(node, chains) > CHAINS * BLOCKS // 2)
    node.kill()
    lose_memory(node)
    left = told(node, chains)
    node.start()
    assert get_all(node.address) == left


@pytest.mark.parametrize("seed", range(3))
def test_killed_while_it_writes(node: NodeProcess, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(3):
        writer = threading.Thread(target=_put_quietly, args=(node.address,))
        writer.start()
        time.sleep(rng.uniform(0.05, 0.6))
        node.kill()
        writer.join()
        lose_memory(node)
        node.start()
        get_all(node.address)


def _put_quietly(address: str) -> None:
    try:
        put(address, range(CHAINS))
    except Exception:
        return


def test_without_its_index_the_headers_are_read(node: NodeProcess) -> None:
    chains = put_to_files(node)
    node.kill()
    lose_memory(node)
    left = told(node, chains)
    shutil.rmtree(files(node) / "index")
    node.start()
    assert get_all(node.address) >= max(left, CHAINS * BLOCKS // 2)


def test_flipped_bits_in_the_index(node: NodeProcess) -> None:
    put_to_files(node)
    rng = random.Random(3)
    for _ in range(3):
        node.kill()
        lose_memory(node)
        path = files(node) / "index" / "data.mdb"
        raw = bytearray(path.read_bytes())
        for _ in range(50):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
        node.start()
        get_all(node.address)


def test_flipped_bits_in_headers_and_payloads(node: NodeProcess) -> None:
    chains = put_to_files(node)
    eventually(lambda: told(node, chains) > 0)
    node.kill()
    lose_memory(node)
    rng = random.Random(4)
    for path in files(node).glob("slots-*"):
        with path.open("r+b") as file:
            for at in range(rng.randrange(1 << 20), path.stat().st_size, 1 << 20):
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 1]))
    node.start()
    came = get_all(node.address)
    assert 0 < came < CHAINS * BLOCKS


def test_two_nodes_on_one_file_directory(node: NodeProcess, tmp_path: Path) -> None:
    other = NodeProcess(tmp_path / "other", "file.enabled=true", f"file.directory={files(node)}", memory="8MiB")
    (tmp_path / "other").mkdir()
    process = other.spawn()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "another node uses this directory" in said
