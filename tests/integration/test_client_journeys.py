"""Both faces of the client against a real node process: every verb, every kind of memory, every refusal. And by every
way that bytes take: the node's memory mapped, or moved by transfers, over shared memory or TCP.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from kvstore import Client, Ended, Extents, Hints, KVLayout, Namespace, Need, NeedKind, PutOutcome
from kvstore.client.views import View
from kvstore.errors import Rejected, Unavailable
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, eventually, layout, tokens
from tests.integration.patience import SLOW_S

only_mapped = pytest.mark.only_mapped


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node"), "limits.keys_per_call_max=1000", address="127.0.0.1:0") as node:
        yield node


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, deadline_s=20) as client:
        yield client


@pytest.fixture
def beside(node: NodeProcess, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """The same namespace, the node's memory mapped."""
    with Client(node.address) as client:
        yield client.namespace(layout(request.node.name[:200]))


@pytest.fixture
def ns(client: Client, request: pytest.FixtureRequest) -> Namespace:
    """A namespace of the test's own."""
    return client.namespace(layout(request.node.name[:200]))


def test_what_was_put_is_found_and_fetched(ns: Namespace) -> None:
    chain = ns.chain(tokens(10))
    assert ns.lookup(chain).blocks == 0
    stored = ns.put(chain[:7], blocks_of(chain[:7]))
    assert (stored.stored, stored.held, stored.rejected, stored.ended) == (7, 0, 0, Ended.COMPLETE)
    found = ns.lookup(chain)
    assert (found.blocks, found.tokens, found.tiers.tolist()) == (7, 28, [1] * 7)
    assert 0 < found.fetch_s < 10
    into = np.zeros((10, SIZE), np.uint8)
    got = ns.get(chain, into)
    assert (got.blocks, got.tokens, got.tiers.tolist(), got.ended) == (7, 28, [1] * 7, Ended.MISS)
    assert np.array_equal(into[:7], blocks_of(chain[:7]))
    assert not into[7:].any()


def test_putting_what_is_held_is_a_no_op_that_says_so(ns: Namespace) -> None:
    chain = ns.chain(tokens(4))
    ns.put(chain[:2], blocks_of(chain[:2]))
    again = ns.put(chain, np.full((4, SIZE), 9, np.uint8))
    assert again.outcomes.tolist() == [PutOutcome.HELD, PutOutcome.HELD, PutOutcome.STORED, PutOutcome.STORED]
    into = np.zeros((2, SIZE), np.uint8)
    ns.get(chain[:2], into)
    assert np.array_equal(into, blocks_of(chain[:2])), "a held block never changes"


def test_a_key_given_twice_is_stored_once(ns: Namespace) -> None:
    chain = ns.chain(tokens(1)).repeat(2, axis=0)
    done = ns.put(chain, blocks_of(chain))
    assert (done.stored, done.held + done.pending) == (1, 1)


def test_blocks_are_scattered_and_gathered(ns: Namespace) -> None:
    chain, rng = ns.chain(tokens(5)), np.random.default_rng(1)
    expected = blocks_of(chain)
    layers = [np.zeros(12 * SIZE // 4, np.uint8) for _ in range(4)]
    at = rng.permutation(12)[:5] * (SIZE // 4)
    for part, layer in enumerate(layers):
        for block, offset in enumerate(at):
            layer[offset : offset + SIZE // 4] = expected[block, part * SIZE // 4 : (part + 1) * SIZE // 4]
    assert ns.put(chain, Extents.strided(layers, at, SIZE // 4)).stored == 5
    whole = np.zeros((5, SIZE), np.uint8)
    assert ns.get(chain, whole).blocks == 5
    assert np.array_equal(whole, expected)
    back = [np.zeros_like(layer) for layer in layers]
    assert ns.get(chain, Extents.strided(back, at, SIZE // 4)).blocks == 5
    assert all(np.array_equal(one, other) for one, other in zip(back, layers, strict=True))


def test_pieces_of_odd_sizes(ns: Namespace) -> None:
    """Pieces that end inside parts and leaves, the same bytes however they are cut."""
    chain = ns.chain(tokens(3))
    expected = blocks_of(chain)
    cuts = [0, 1, 4097, 5000, 20_000, 33_333, SIZE]
    rows = [[(0, block * SIZE + a, b - a) for a, b in pairwise(cuts)] for block in range(3)]
    table = np.array(rows, dtype=np.int64)
    assert ns.put(chain, Extents([expected], table)).stored == 3
    into = np.zeros(3 * SIZE + 7, np.uint8)
    shifted = table.copy()
    shifted[:, :, 1] += 7
    assert ns.get(chain, Extents([into], shifted)).blocks == 3
    assert np.array_equal(into[7:].reshape(3, SIZE), expected)


def test_memory_of_every_kind(ns: Namespace) -> None:
    chain = ns.chain(tokens(2))
    expected = blocks_of(chain)
    assert ns.put(chain, expected.tobytes()).stored == 2
    for into in (
        bytearray(2 * SIZE),
        np.zeros((2, SIZE // 4), np.float32),
        [bytearray(SIZE), np.zeros(SIZE, np.uint8)],
    ):
        assert ns.get(chain, into).blocks == 2
        flat = b"".join(bytes(memoryview(part).cast("B")) for part in (into if isinstance(into, list) else [into]))
        assert flat == expected.tobytes()


def test_torch_tensors(ns: Namespace) -> None:
    torch = pytest.importorskip("torch")
    chain = ns.chain(tokens(2))
    tensor = torch.from_numpy(blocks_of(chain)).view(torch.bfloat16)
    assert ns.put(chain, tensor).stored == 2
    into = torch.zeros_like(tensor)
    assert ns.get(chain, into).blocks == 2
    assert torch.equal(into.view(torch.uint8), tensor.view(torch.uint8))


@only_mapped
def test_a_view_is_the_memory_itself(ns: Namespace) -> None:
    chain = ns.chain(tokens(4))
    ns.put(chain[:3], blocks_of(chain[:3]))
    with ns.view(chain) as view:
        assert (len(view), view.tokens, view.tiers.tolist()) == (3, 12, [1, 1, 1])
        assert np.array_equal(np.stack(view.blocks), blocks_of(chain[:3]))
        with pytest.raises(ValueError, match="read-only"):
            view.blocks[0][0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.blocks[0].flags.writeable = True
    with pytest.raises(ValueError, match="view: it is closed"):
        _ = view.blocks
    assert len(ns.view(ns.chain(tokens(2, seed=99)))) == 0


@only_mapped
def test_an_array_of_a_view_keeps_its_block(node: NodeProcess, ns: Namespace) -> None:
    """Closing a view, or forgetting it, takes nothing away from an array that is still looked at."""
    chain = ns.chain(tokens(1))
    ns.put(chain, blocks_of(chain))
    eventually(lambda: node.holds() == 0)
    holds = 0
    array = ns.view(chain).blocks[0][100:200]
    fill(ns, rounds=3)
    assert np.array_equal(array, blocks_of(chain)[0][100:200])
    assert node.holds() == holds + 1
    del array
    eventually(lambda: node.holds() == holds)


def fill(ns: Namespace, rounds: int) -> None:
    """More than the memory tier holds, `rounds` times."""
    for i in range(rounds):
        chain = ns.chain(tokens(256, seed=1000 + i))
        assert ns.put(chain, blocks_of(chain)).rejected <= 8


def test_chains_longer_than_a_window(way: str, ns: Namespace) -> None:
    """A window is a quarter of memory, 64 blocks here."""
    chain = ns.chain(tokens(150))
    expected = blocks_of(chain)
    assert ns.put(chain, expected).stored == 150
    into = np.zeros((150, SIZE), np.uint8)
    got = ns.get(chain, into)
    assert (got.blocks, got.ended) == (150, Ended.COMPLETE)
    assert np.array_equal(into, expected)
    if way == "mapped":
        assert len(ns.view(chain)) == 64
        with ns.view(chain[64:], position=64) as view:
            assert np.array_equal(view.blocks[0], expected[64])


def test_bytes_that_changed_in_memory_are_never_handed_out(way: str, ns: Namespace, beside: Namespace) -> None:
    """A trusted client writes into a block after sealing it: the next reader notices, and the node drops it."""
    chain = ns.chain(tokens(4))
    expected = blocks_of(chain)
    ns.put(chain[:2], expected[:2])
    with beside.reserve(chain[2:], parent=chain[1], position=2) as slots:
        arrays = [slots.array(block) for block in slots.granted]
        for array, block in zip(arrays, expected[2:], strict=True):
            array[:] = block
        slots.seal()
    assert ns.get(chain, np.zeros((4, SIZE), np.uint8)).blocks == 4
    for at in (0, 40_000, SIZE - 1):
        arrays[0][at] ^= 1
    into = np.zeros((4, SIZE), np.uint8)
    got = ns.get(chain, into)
    assert (got.blocks, got.ended) == (2, Ended.CORRUPT)
    assert np.array_equal(into[:2], expected[:2])
    eventually(lambda: ns.lookup(chain).blocks == 2)
    assert ns.put(chain, expected).stored == 1
    assert ns.get(chain, into).blocks == 4
    assert np.array_equal(into, expected)
    arrays[1][7] ^= 1
    held = len(ns.view(chain)) if way == "mapped" else ns.get(chain, into).blocks
    assert held == 3, "verified before it is lent"
    eventually(lambda: ns.lookup(chain).blocks == 3)


def test_a_client_that_does_not_verify_sees_the_difference(
    address: str, ns: Namespace, beside: Namespace, request: pytest.FixtureRequest
) -> None:
    chain = ns.chain(tokens(1))
    with beside.reserve(chain) as slots:
        array = slots.array(0)
        array[:] = 0
        slots.seal()
    array[5] = 1
    with Client(address, verify=False) as careless:
        into = bytearray(SIZE)
        assert careless.namespace(layout(request.node.name[:200])).get(chain, into).blocks == 1
        assert into[5] == 1
    assert ns.get(chain, into).ended is Ended.CORRUPT


def test_slots_part_by_part(way: str, ns: Namespace) -> None:
    chain = ns.chain(tokens(3))
    expected = blocks_of(chain)
    part = SIZE // 4
    with ns.reserve(chain) as slots:
        assert slots.granted == (0, 1, 2)
        assert ns.lookup(chain).blocks == 0
        for i in range(3):
            slots.write(i, [block[i * part : (i + 1) * part] for block in expected])
            slots.publish(i)
        if way == "mapped":
            for block in range(3):
                slots.array(block)[3 * part :] = expected[block, 3 * part :]  # the last one where it lies
        else:
            with pytest.raises(ValueError, match="block: 0 lies at the node"):
                slots.array(0)
            slots.write(3, [block[3 * part :] for block in expected])
        done = slots.seal()
    assert (done.stored, done.ended) == (3, Ended.COMPLETE)
    into = np.zeros((3, SIZE), np.uint8)
    assert ns.get(chain, into).blocks == 3
    assert np.array_equal(into, expected)


@only_mapped
def test_a_view_follows_a_writer(node: NodeProcess, ns: Namespace) -> None:
    chain = ns.chain(tokens(3))
    expected, part = blocks_of(chain), SIZE // 4
    ns.put(chain[:1], expected[:1])
    with ns.reserve(chain[1:], parent=chain[0], position=1) as slots:
        assert len(ns.view(chain, follow=True)) == 1, "nothing of them is published"
        for i in range(2):
            slots.write(i, [block[i * part : (i + 1) * part] for block in expected[1:]])
            slots.publish(i)
        with ns.view(chain, follow=True) as view:
            assert view.parts[0] == 4
            assert view.parts[1] == 2
            assert np.array_equal(view.blocks[1][: 2 * part], expected[1, : 2 * part])
        assert ns.view(chain).parts == (4,)


def test_slots_left_without_seal_are_given_back(ns: Namespace) -> None:
    chain = ns.chain(tokens(2))
    with ns.reserve(chain) as slots:
        slots.write(0, bytes(2 * SIZE // 4))
        assert ns.put(chain, blocks_of(chain)).pending == 2, "somebody is writing them"
    assert ns.put(chain, blocks_of(chain)).stored == 2
    with pytest.raises(ValueError, match="slots: sealed or aborted already"):
        slots.seal()


def test_slots_of_a_chain_that_is_partly_held(ns: Namespace) -> None:
    """What is written speaks of all blocks; each granted one gets its own bytes."""
    chain = ns.chain(tokens(5))
    expected, part = blocks_of(chain), SIZE // 4
    ns.put(chain[:2], expected[:2])
    with ns.reserve(chain, metas=[bytes([i]) for i in range(5)]) as slots:
        assert slots.granted == (2, 3, 4)
        for i in range(4):
            slots.write(i, [block[i * part : (i + 1) * part] for block in expected])
        done = slots.seal()
    assert (done.stored, done.held) == (3, 2)
    into = np.zeros((5, SIZE), np.uint8)
    assert ns.get(chain, into).blocks == 5
    assert np.array_equal(into, expected)


def test_slots_refuse_what_makes_no_sense(ns: Namespace) -> None:
    chain = ns.chain(tokens(3))
    ns.put(chain[:1], blocks_of(chain[:1]))
    with ns.reserve(chain) as slots:
        assert slots.outcomes.tolist() == [PutOutcome.HELD, PutOutcome.STORED, PutOutcome.STORED]
        with pytest.raises(ValueError, match="block: 0 was not granted"):
            slots.array(0)
        with pytest.raises(ValueError, match="part: 4, must be 0 to 3"):
            slots.write(4, bytes(3 * SIZE // 4))
        with pytest.raises(ValueError, match="part: 1, parts are published in order and the next is 0"):
            slots.publish(1)
        with pytest.raises(ValueError, match="sources: 5 bytes, must be"):
            slots.write(0, bytes(5))


def test_needs(client: Client, request: pytest.FixtureRequest) -> None:
    two = KVLayout.uniform(
        engine="test", model=request.node.name, revision="1", dtype="bfloat16", block_tokens=4, layers=4, kv_heads=4,
        head_dim=64, tensor_parallel=2,
    )  # fmt: skip
    ns = client.namespace(two)
    chain, size = ns.chain(tokens(8)), ns.shard_bytes[0]
    ns.put(chain[:6], blocks_of(chain[:6], size), shard=0)
    ns.put(chain[2:4], blocks_of(chain[2:4], size), shard=1, parent=chain[1], position=2)
    assert ns.lookup(chain).blocks == 6
    assert ns.lookup(chain, [Need(0), Need(1)]).blocks == 0
    assert ns.lookup(chain, [Need(0), Need(1, NeedKind.LAST, 2)]).blocks == 4
    assert ns.lookup(chain, [Need(0), Need(1, NeedKind.STATE)]).blocks == 4
    into = bytearray(2 * size)
    assert ns.get(chain[2:4], into, shard=1).blocks == 2
    assert bytes(into) == blocks_of(chain[2:4], size).tobytes()
    with pytest.raises(ValueError, match=r"needs\[1\]\.shard: 2, must be 0 to 1"):
        ns.lookup(chain, [Need(0), Need(2)])
    with pytest.raises(ValueError, match="shard: 2, must be 0 to 1"):
        ns.get(chain, into, shard=2)


def test_clear_makes_blocks_unreachable_for_everybody(ns: Namespace, beside: Namespace) -> None:
    chain = ns.chain(tokens(3))
    ns.put(chain, blocks_of(chain))
    theirs = beside
    assert theirs.lookup(chain).blocks == 3
    assert ns.clear().generation == 1
    assert ns.generation == 1
    assert ns.lookup(chain).blocks == 0
    got = theirs.get(chain, bytearray(3 * SIZE))
    assert (got.blocks, got.ended) == (0, Ended.CLEARED)
    assert theirs.generation == 1, "opened again by itself"
    anew = theirs.chain(tokens(3))
    assert not np.array_equal(anew, chain)
    assert theirs.put(anew, blocks_of(anew)).stored == 3
    assert ns.lookup(ns.chain(tokens(3))).blocks == 3


def test_prefetch_says_how_many_there_are(ns: Namespace) -> None:
    chain = ns.chain(tokens(3))
    ns.put(chain[:2], blocks_of(chain[:2]))
    assert ns.prefetch(chain, hints=Hints(session="s")) == 2


def test_chains_go_on_from_their_last_key(ns: Namespace) -> None:
    ids = tokens(6)
    whole = ns.chain(ids)
    assert np.array_equal(ns.chain(ids[8:], parent=whole[1]), whole[2:])
    assert np.array_equal(ns.chain(ids.tolist()), whole)
    assert np.array_equal(ns.chain(ids[:-1]), whole[:-1]), "full blocks only"


CHAIN = np.zeros((2, 32), np.uint8)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda ns: ns.get(CHAIN, bytearray(SIZE)), ValueError, f"into: {SIZE} bytes, must be at least {2 * SIZE}"),
        (lambda ns: ns.get(CHAIN, bytes(2 * SIZE)), ValueError, "into: is read-only"),
        (lambda ns: ns.put(CHAIN, bytes(SIZE)), ValueError, "source: "),
        (lambda ns: ns.put(CHAIN, bytes(3 * SIZE)), ValueError, "source: "),
        (lambda ns: ns.put(CHAIN, bytes(2 * SIZE), metas=[b""]), ValueError, "metas: 1, must be one a block, 2"),
        (lambda ns: ns.put(CHAIN, bytes(2 * SIZE), metas=[b"", bytes(2000)]), ValueError, r"metas\[1\]: 2000 bytes"),
        (lambda ns: ns.put(CHAIN, bytes(2 * SIZE), parent=b"x"), ValueError, "parent: "),
        (lambda ns: ns.put(CHAIN, bytes(2 * SIZE), shard=1), ValueError, "shard: 1, must be 0 to 0"),
        (lambda ns: ns.prefetch(CHAIN, shards=[0, 7]), ValueError, "shard: 7, must be 0 to 0"),
        (lambda ns: ns.get(b"", b""), TypeError, "chain: bytes, must be"),
        (lambda ns: ns.get(CHAIN[:, :16], b""), ValueError, r"chain: uint8 \(2, 16\), must be"),
        (lambda ns: ns.get(CHAIN.astype(np.int8), b""), ValueError, "chain: int8"),
        (lambda ns: ns.lookup(CHAIN[0]), ValueError, "chain: "),
        (lambda ns: ns.lookup(CHAIN, deadline_s=0), ValueError, "deadline_s: 0"),
        (lambda ns: ns.get(CHAIN, bytearray(2 * SIZE), wait_s=-1), ValueError, "wait_s: -1"),
        (lambda ns: ns.lookup(np.zeros((1001, 32), np.uint8)), Rejected, "chain: 1001 keys, at most 1000 a call"),
        (
            lambda ns: ns.reserve(np.zeros((100, 32), np.uint8)),
            Rejected,
            "chain: 100 blocks of 65536 bytes, at most 64",
        ),
        (lambda ns: Hints(priority=2), ValueError, r"hints\.priority: 2"),
        (lambda ns: Hints(session=-1), ValueError, r"hints\.session: -1"),
        (lambda ns: Hints(expected_return_s=-1), ValueError, r"hints\.expected_return_s"),
    ],
)
def test_what_the_caller_got_wrong_is_named(ns: Namespace, call: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(ns)  # type: ignore[operator]
    assert ns.lookup(CHAIN).blocks == 0, "and the client goes on"


def test_a_block_larger_than_a_slab_is_refused_by_name(client: Client) -> None:
    huge = KVLayout.uniform(
        engine="test", model="huge", revision="1", dtype="bfloat16", block_tokens=64, layers=16, kv_heads=8,
        head_dim=128,
    )  # fmt: skip
    ns = client.namespace(huge)
    chain = ns.chain(np.arange(64, dtype=np.uint32))
    with pytest.raises(Rejected, match="does not fit a slab") as refused:
        ns.put(chain, bytes(ns.shard_bytes[0]))
    assert refused.value.limit == "slab_bytes"


def test_addresses(tmp_path: Path) -> None:
    for address in ("unix:", "unix:" + "x" * 200, "nowhere", "host:", "host:99999", ":7"):
        with pytest.raises(ValueError, match="address: "):
            Client(address)
    with Client(f"unix:{tmp_path}/none.sock") as client, pytest.raises(Unavailable, match=r"none\.sock"):
        client.namespace(layout())


def test_nobody_waits_for_another_ones_connection(tmp_path: Path) -> None:
    """Somebody listens and never says HELLO: each call ends at its own deadline."""
    with socket.socket(socket.AF_UNIX) as silent, Client(f"unix:{tmp_path}/s") as client:
        silent.bind(f"{tmp_path}/s")
        silent.listen()
        client._deadline_s = 10.0
        begun = threading.Event()
        slow = threading.Thread(target=_refused, args=(client, begun))
        slow.start()
        assert begun.wait(20)
        time.sleep(0.1)
        client._deadline_s = 0.2
        began = time.monotonic()
        _refused(client, begun)
        assert time.monotonic() - began < 0.2 + SLOW_S
        slow.join(30)
        assert not slow.is_alive()


def _refused(client: Client, begun: threading.Event) -> None:
    with pytest.raises(Unavailable):
        begun.set()
        client.namespace(layout())


def test_a_closed_client_says_so(node: NodeProcess) -> None:
    client = Client(node.address)
    ns = client.namespace(layout())
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="this client is closed"):
        ns.lookup(CHAIN)


def _in_child(client: Client, ns: Namespace, view: View, pipe: int) -> None:
    try:
        ns.lookup(CHAIN)
    except RuntimeError as error:
        os.write(pipe, str(error).encode())
    view.close()
    client.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@only_mapped
def test_a_client_is_not_used_across_a_fork(node: NodeProcess, client: Client, ns: Namespace) -> None:
    view_chain = ns.chain(tokens(1))
    ns.put(view_chain, blocks_of(view_chain))
    eventually(lambda: node.holds() == 0)
    holds = 0
    view = ns.view(view_chain)
    read, write = os.pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(client, ns, view, write))
    child.start()
    child.join(30)
    os.close(write)
    assert b"made before a fork" in os.read(read, 1000)
    os.close(read)
    assert child.exitcode == 0
    assert np.array_equal(view.blocks[0], blocks_of(view_chain)[0])
    assert ns.lookup(view_chain).blocks == 1
    assert node.holds() == holds + 1, "the child ended nothing of ours"


def test_many_threads_share_a_client(ns: Namespace) -> None:
    wrong: list[str] = []

    def work(seed: int) -> None:
        for round_ in range(8):
            chain = ns.chain(tokens(6, seed=seed * 100 + round_))
            ns.put(chain, blocks_of(chain))
            into = np.zeros((6, SIZE), np.uint8)
            got = ns.get(chain, into)
            if not np.array_equal(into[: got.blocks], blocks_of(chain[: got.blocks])):
                wrong.append(f"{seed}/{round_}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)
