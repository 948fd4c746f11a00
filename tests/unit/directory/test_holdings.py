"""What the core says that it holds: shards of both tiers, once a key, and what has changed since."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from kvstore import native
from kvstore.directory.holdings import CoreHoldings
from kvstore.identity import Keys
from tests.model.table_pair import aligned

MEMORY, FILE = 1, 2
SHARDS = 3
DIGEST = hashlib.sha256(b"a namespace").digest()
KEYS = np.frombuffer(b"".join(hashlib.sha256(f"{n}".encode()).digest() for n in range(40)), np.uint8).reshape(-1, 32)


class Node:
    def __init__(self, left: Node | None = None, digest: bytes = DIGEST, part_bytes: int = 4096) -> None:
        memory = native.TableConfig(4 << 20, 1 << 20)
        file = native.TableConfig(8 << 20, 1 << 20, header_bytes=4096)
        self.meta = left.meta if left else aligned(native.NodeCore.meta_bytes(memory))
        incarnation = 2 if left else 1
        self.core = native.NodeCore(
            memory, file, meta=self.meta.ctypes.data, meta_bytes=self.meta.size, incarnation=incarnation
        )
        self.ns = self.core.open_namespace(digest, 0, 16, [[part_bytes]] * SHARDS)
        self.owner = self.core.new_owner()

    def put(self, tier: int, shard: int, keys: Keys) -> None:
        status, statuses, tickets, _ = self.core.reserve(
            tier, self.owner, self.ns, shard, keys, b"", [], native.Hint(), False, 0
        )
        assert status == 0 and not statuses.any()
        assert not self.core.seal(tier, self.owner, tickets, np.full(len(tickets), 7, np.uint64), 0).any()


class Counted:
    """A core, and how often all of it was looked at."""

    def __init__(self, core: native.NodeCore) -> None:
        self._core, self.scans = core, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def scan_held(self, after: int, *rest: int) -> Any:
        self.scans += after == 0
        return self._core.scan_held(after, *rest)


def scanned(holdings: CoreHoldings, slots: int = 7) -> dict[bytes, tuple[int, int]]:
    found: dict[bytes, tuple[int, int]] = {}
    after = 0
    while True:
        after, pages = holdings.scan(after, slots)
        for ns, keys, shards, tiers in pages:
            assert ns == DIGEST
            for key, bits, tier in zip(keys, shards, tiers, strict=True):
                assert key.tobytes() not in found, "a key twice"
                found[key.tobytes()] = (int(bits), int(tier))
        if not after:
            return found


def test_both_tiers_are_one_claim() -> None:
    node = Node()
    holdings = CoreHoldings(node.core)
    node.put(MEMORY, 0, KEYS[:10])
    node.put(MEMORY, 2, KEYS[5:12])
    node.put(FILE, 1, KEYS[8:20])
    want: dict[bytes, tuple[int, int]] = {}
    for n in range(20):
        bits = (n < 10) | (n >= 8) << 1 | (5 <= n < 12) << 2
        want[KEYS[n].tobytes()] = (bits, MEMORY if n < 12 else FILE)
    assert scanned(holdings) == want
    shards, tiers = holdings.held(DIGEST, KEYS)
    assert [(int(s), int(t)) for s, t in zip(shards, tiers, strict=True)] == [*want.values(), *[(0, 0)] * 20]
    assert not holdings.held(bytes(32), KEYS)[0].any()


def test_what_was_never_used_costs_no_step() -> None:
    """An id stands for 4 KiB, so a tier of large blocks has hundreds of them for each block, and many empty slabs."""
    node = Node(part_bytes=512 << 10)
    holdings = CoreHoldings(node.core)
    assert holdings.scan(0, 1) == (0, [])
    node.put(MEMORY, 0, KEYS[:5])
    node.put(FILE, 0, KEYS[5:8])
    steps, after, found = 0, 0, 0
    while steps == 0 or after:
        after, pages = holdings.scan(after, 4)
        steps, found = steps + 1, found + sum(len(keys) for _, keys, *_ in pages)
    assert (found, steps) == (8, 3)
    rows, after = node.core.scan(MEMORY, 0, 4)
    assert (len(rows.tickets), after >= 0) == (4, True)
    rows, after = node.core.scan(MEMORY, after, 4)
    assert (len(rows.tickets), after) == (1, -1)


def test_changes_are_told_once_and_a_clear_is_the_last() -> None:
    node = Node()
    holdings = CoreHoldings(node.core)
    assert not holdings.changes().keys
    node.put(MEMORY, 0, KEYS[:4])
    node.put(FILE, 0, KEYS[2:6])
    changes = holdings.changes()
    assert [ns for ns, _ in changes.keys] == [DIGEST] and not changes.gap and not changes.cleared
    assert {key.tobytes() for key in changes.keys[0][1]} == {key.tobytes() for key in KEYS[:6]}
    assert not holdings.changes().keys
    node.core.retire_keys(node.ns, KEYS[:1])
    assert [len(keys) for _, keys in holdings.changes().keys] == [1]
    node.core.drop_namespace(node.ns)
    assert holdings.changes().cleared == [DIGEST]
    assert not holdings.held(DIGEST, KEYS)[0].any() and not scanned(holdings)


def test_what_lay_there_before_is_told_when_its_namespace_opens() -> None:
    node = Node()
    node.put(MEMORY, 0, KEYS[:9])
    (opened,) = CoreHoldings(node.core).changes().keys
    assert opened[0] == DIGEST and len(opened[1]) == 9


def test_what_lay_there_of_many_namespaces_is_looked_for_in_one_pass() -> None:
    node = Node()
    node.put(MEMORY, 0, KEYS[:5])
    digests = [hashlib.sha256(bytes([n])).digest() for n in range(8)]
    for n, digest in enumerate(digests):
        node.ns = node.core.open_namespace(digest, 0, 16, [[4096]] * SHARDS)
        node.put(FILE if n % 2 else MEMORY, 0, KEYS[n : n + 3])
    core: Any = Counted(node.core)
    told = dict(CoreHoldings(core).changes().keys)
    want = {DIGEST: KEYS[:5], **{digest: KEYS[n : n + 3] for n, digest in enumerate(digests)}}
    assert {ns: {key.tobytes() for key in keys} for ns, keys in told.items()} == {
        ns: {key.tobytes() for key in keys} for ns, keys in want.items()
    }
    assert core.scans == 1


def test_what_was_left_of_a_namespace_that_nobody_opened_goes_without_a_word() -> None:
    before = Node()
    before.put(MEMORY, 0, KEYS)
    other = hashlib.sha256(b"another namespace").digest()
    node = Node(before, other)
    assert node.core.recovered == len(KEYS)
    holdings = CoreHoldings(node.core)
    many = np.random.default_rng(1).integers(0, 256, (1024, 32), np.uint8)  # all of memory
    for at in range(0, len(many), 64):
        node.put(MEMORY, 0, many[at : at + 64])
    told = holdings.changes().keys
    assert {digest for digest, _ in told} == {other}
    assert {key.tobytes() for _, keys in told for key in keys} == {key.tobytes() for key in many}
