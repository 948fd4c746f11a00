"""The object tier over stores that need no server: in memory, and a directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import obstore
import pytest
from obstore.store import LocalStore, MemoryStore

from kvstore import native
from kvstore.errors import Misconfigured
from kvstore.testing.clock import VirtualClock
from kvstore.tiers.object import ObjectTier, Probed
from kvstore.tiers.packs import PackHead, head_bytes_of, pack_name

DIGEST, SHARD, PER_PACK = b"d" * 32, 1, 4
PARTS = np.array([4096, 5000, 3192], dtype=np.uint64)
BLOCK_BYTES = int(PARTS.sum())


def chain(count: int, seed: int = 0) -> tuple[np.ndarray, list[bytes]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32), dtype=np.uint8), [rng.bytes(BLOCK_BYTES) for _ in range(count)]


def pack(keys: np.ndarray, blocks: list[bytes], position: int) -> tuple[PackHead, list[memoryview]]:
    checksums = np.stack([native.part_checksums(block, PARTS) for block in blocks])
    metas = tuple(f"meta {position + i}".encode() for i in range(len(blocks)))
    parent = bytes(32) if position == 0 else b"p" * 32
    size = head_bytes_of(len(blocks), len(PARTS), metas)
    head = PackHead(DIGEST, SHARD, position, parent, BLOCK_BYTES, keys, checksums, metas, size)
    return head, [memoryview(block) for block in blocks]


async def write_all(tier: ObjectTier, keys: np.ndarray, blocks: list[bytes]) -> None:
    for first in range(0, len(blocks), PER_PACK):
        assert await tier.write(*pack(keys[first : first + PER_PACK], blocks[first : first + PER_PACK], first))


@pytest.fixture(params=["memory", "directory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> MemoryStore | LocalStore:
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "objects", mkdir=True)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9, 40])
async def test_a_chain_is_found_and_read_by_a_tier_that_never_saw_it(store: MemoryStore, count: int) -> None:
    keys, blocks = chain(count)
    await write_all(ObjectTier(store), keys, blocks)
    other = ObjectTier(store)
    heads = (await other.find(DIGEST, SHARD, keys, PER_PACK)).packs
    assert [head.position for head in heads] == list(range(0, count, PER_PACK))
    assert sum(head.blocks for head in heads) == count
    for head in heads:
        into = [bytearray(BLOCK_BYTES) for _ in range(head.blocks)]
        assert await other.read(head, 0, [memoryview(buffer) for buffer in into], PARTS) == head.blocks
        assert [bytes(buffer) for buffer in into] == blocks[head.position : head.position + head.blocks]
    one = bytearray(BLOCK_BYTES)
    assert await other.read(heads[0], heads[0].blocks - 1, [memoryview(one)], PARTS) == 1
    assert bytes(one) == blocks[heads[0].blocks - 1]


async def test_a_longer_chain_finds_the_partial_pack_of_a_shorter_one(store: MemoryStore) -> None:
    keys, blocks = chain(6)
    await write_all(ObjectTier(store), keys, blocks)
    longer = np.concatenate([keys, chain(9, seed=1)[0]])
    heads = (await ObjectTier(store).find(DIGEST, SHARD, longer, PER_PACK)).packs
    assert [(head.position, head.blocks) for head in heads] == [(0, 4), (4, 2)]


async def test_the_second_writer_finds_it_there(store: MemoryStore) -> None:
    keys, blocks = chain(4)
    tier = ObjectTier(store)
    await write_all(tier, keys, blocks)
    await write_all(tier, keys, blocks)
    assert (tier.counts.packs_written, tier.counts.packs_there_already) == (1, 1)


@pytest.mark.parametrize("where", ["head", "block"])
async def test_a_damaged_pack_is_a_miss_and_is_deleted(store: MemoryStore, where: str) -> None:
    keys, blocks = chain(4)
    tier = ObjectTier(store)
    await write_all(tier, keys, blocks)
    name = pack_name(DIGEST, SHARD, keys[-1].tobytes())
    data = bytearray((await obstore.get_async(store, name)).bytes())
    head = (await tier.find(DIGEST, SHARD, keys, PER_PACK)).packs[0]
    data[100 if where == "head" else head.head_bytes + 2 * BLOCK_BYTES + 77] ^= 1
    await obstore.put_async(store, name, bytes(data))
    fresh = ObjectTier(store)
    if where == "head":
        assert await fresh.find(DIGEST, SHARD, keys, PER_PACK) == Probed([], True)
    else:
        into = [memoryview(bytearray(BLOCK_BYTES)) for _ in range(4)]
        assert await fresh.read(head, 0, into, PARTS) == 2
    assert fresh.counts.packs_damaged == 1
    assert await fresh.head(DIGEST, SHARD, keys[-1].tobytes()) is None


async def test_a_cut_object_is_a_shorter_run(store: MemoryStore) -> None:
    keys, blocks = chain(4)
    tier = ObjectTier(store)
    await write_all(tier, keys, blocks)
    head = (await tier.find(DIGEST, SHARD, keys, PER_PACK)).packs[0]
    name = pack_name(DIGEST, SHARD, keys[-1].tobytes())
    data = bytes((await obstore.get_async(store, name)).bytes())
    await obstore.put_async(store, name, data[: head.head_bytes + BLOCK_BYTES + 5])
    assert await tier.read(head, 0, [memoryview(bytearray(BLOCK_BYTES)) for _ in range(4)], PARTS) == 1


async def test_what_somebody_else_deleted_keeps_nothing_there(store: MemoryStore | LocalStore) -> None:
    """A directory stops at the first that is not there."""
    names = [pack_name(DIGEST, SHARD, bytes([i]) * 32) for i in range(50)]
    for name in names:
        if name not in names[3:30:9]:
            await obstore.put_async(store, name, b"x")
    tier = ObjectTier(store)
    told: list[str] = []
    tier.on_gone = lambda name, _swept: told.append(name)
    assert await tier.delete(names) == set(names)
    assert sorted(told) == sorted(names) and tier.counts.packs_deleted == 50
    assert await tier.listing(DIGEST) == []


async def test_what_the_store_did_not_delete_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.tiers.object.DELETES_AT_ONCE", 2)
    tier, told = ObjectTier(MemoryStore()), list[str]()
    tier.on_gone = lambda name, _swept: told.append(name)

    async def deleted(_: MemoryStore, names: list[str]) -> bool:
        if "3" in names:
            raise OSError("no answer")
        return True

    monkeypatch.setattr("kvstore.tiers.object._deleted", deleted)
    assert await tier.delete(["1", "2", "3", "4", "5"]) == {"1", "2", "5"}
    assert sorted(told) == ["1", "2", "5"] and tier.counts.packs_deleted == 3


async def test_a_store_that_is_left_alone_tells_nothing(store: MemoryStore) -> None:
    keys, blocks = chain(4)
    tier = ObjectTier(store, clock=VirtualClock())
    await write_all(tier, keys, blocks)
    assert await tier.namespaces() == [DIGEST] and len(await tier.listing(DIGEST) or []) == 1
    while not tier.circuit.is_open:
        tier.circuit.failed(0)
    assert await tier.namespaces() is None
    assert await tier.listing(DIGEST) is None
    assert await tier.is_cleared(DIGEST) is None
    assert not await tier.mark_cleared(DIGEST)


def test_a_bad_url_is_refused_by_name() -> None:
    with pytest.raises(Misconfigured, match="'nonsense://x'"):
        ObjectTier.open("nonsense://x", timeout_s=1, retries=0, concurrency=1, options={})
