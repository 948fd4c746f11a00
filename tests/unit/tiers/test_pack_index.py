"""Where blocks lie in packs: forks, bounds, and that the core is told of all that is known and nothing else."""

from __future__ import annotations

import numpy as np

from kvstore import native
from kvstore.tiers.pack_index import PackIndex
from kvstore.tiers.packs import PackHead, head_bytes_of, pack_name

NS, SHARD, SIZE = 3, 0, 4096


class Told:
    """A core that only hears of objects."""

    def __init__(self) -> None:
        self.known: set[bytes] = set()
        self.why: list[native.PacksGone] = []

    def object_known(self, ns: int, shard: int, keys: np.ndarray) -> None:
        assert (ns, shard) == (NS, SHARD)
        self.known |= {key.tobytes() for key in keys}

    def object_gone(self, ns: int, shard: int, keys: np.ndarray, why: native.PacksGone) -> None:
        self.why.append(why)
        self.known -= {key.tobytes() for key in keys}


def chain(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, 32), dtype=np.uint8)


def pack(keys: np.ndarray, position: int = 0) -> PackHead:
    count = len(keys)
    metas = (b"",) * count
    sums = np.zeros((count, 1), np.uint64)
    return PackHead(b"d" * 32, SHARD, position, bytes(32), SIZE, keys, sums, metas, head_bytes_of(count, 1, metas))


def name_of(head: PackHead) -> str:
    return pack_name(head.digest, head.shard, head.keys[-1].tobytes())


def lengths(index: PackIndex, keys: np.ndarray, most: int = 1000) -> list[tuple[int, int]]:
    return [(one.first, one.count) for one in index.stretches(NS, SHARD, keys, most)]


def test_a_run_goes_over_packs_until_the_first_hole() -> None:
    index, keys = PackIndex(Told(), 1000), chain(12)
    index.add(NS, pack(keys[:4]))
    index.add(NS, pack(keys[4:8], 4))
    assert lengths(index, keys) == [(0, 4), (0, 4)]
    assert lengths(index, keys[2:]) == [(2, 2), (0, 4)]
    assert lengths(index, keys, 5) == [(0, 4), (0, 1)]
    assert lengths(index, keys[8:]) == []
    assert index.knows(NS, SHARD, keys).tolist() == [True] * 8 + [False] * 4
    assert not index.knows(NS + 1, SHARD, keys).any() and not index.knows(NS, 1, keys).any()


def test_chains_that_part_within_a_group_share_what_they_share() -> None:
    index, keys, other = PackIndex(Told(), 1000), chain(4), chain(4, seed=1)
    forked = np.concatenate([keys[:2], other[:2]])
    first, second = pack(keys), pack(forked)
    index.add(NS, first)
    index.add(NS, second)
    assert sum(count for _, count in lengths(index, keys)) == 4
    assert sum(count for _, count in lengths(index, forked)) == 4


def test_the_core_knows_what_the_index_knows() -> None:
    core = Told()
    index = PackIndex(core, 10)
    heads = [pack(chain(4, seed)) for seed in range(5)]
    for head in heads:
        index.add(NS, head)
        assert len(index) <= 10
        known = {key.tobytes() for one in heads for key in one.keys if index.knows(NS, SHARD, key.reshape(1, 32)).all()}
        assert core.known == known
    assert not index.knows(NS, SHARD, heads[0].keys).any(), "the oldest makes way"
    assert index.knows(NS, SHARD, heads[4].keys).all()
    index.used(index.stretches(NS, SHARD, heads[3].keys, 100))
    assert index.read_lately() == {name_of(heads[3])}
    index.add(NS, pack(chain(4, 9)))
    assert index.knows(NS, SHARD, heads[3].keys).all(), "what was read stays longer"
    index.forget(name_of(heads[3]))
    index.forget("never heard of")
    index.drop(NS)
    assert len(index) == 0 and index.packs == 0 and not core.known
    assert set(core.why) == {native.PacksGone.FORGOTTEN}, "they are there, whoever knows of them"


def test_the_core_is_told_why_a_pack_is_not_known_any_more() -> None:
    core, heads = Told(), [pack(chain(2, seed)) for seed in range(2)]
    index = PackIndex(core, 1000)
    for head in heads:
        index.add(NS, head)
    index.gone(name_of(heads[0]), True)
    index.gone(name_of(heads[1]), False)
    assert core.why == [native.PacksGone.SWEPT, native.PacksGone.LOST]
    assert not core.known


def test_what_lies_in_two_packs_outlives_the_one_seen_first() -> None:
    core, keys, other = Told(), chain(4), chain(4, seed=1)
    index = PackIndex(core, 1000)
    first, second = pack(keys), pack(np.concatenate([keys[:2], other[:2]]))
    index.add(NS, first)
    index.add(NS, second)
    index.forget(name_of(first))
    assert index.knows(NS, SHARD, keys).tolist() == [True, True, False, False]
    assert keys[0].tobytes() in core.known and keys[3].tobytes() not in core.known
