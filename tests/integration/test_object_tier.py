"""Real nodes with an object tier: everything comes back from packs alone, and faults of the store are misses."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore import Client
from kvstore.errors import Unavailable
from tests.integration.nodes import SIZE, NodeProcess, block_of, blocks_of, eventually, layout, tokens
from tests.integration.patience import SLOW_S
from tests.ports import free_ports
from tests.s3_server import Relay, moto_server, s3_options

PER_PACK = 64  # of blocks of 64 KiB
IN_MEMORY = 256  # blocks that it holds


def object_node(home: Path, objects: str, *sets: str, memory: str = "16MiB") -> NodeProcess:
    secret = home.parent / "secret"
    if not secret.exists():
        secret.write_bytes(bytes(range(32)))
        secret.chmod(0o600)
    home.mkdir(exist_ok=True)
    return NodeProcess(
        home,
        f"object.url={objects}",
        f"cluster.secret_file={secret}",
        "object.probe_again_ms=200",
        *sets,
        memory=memory,
    )


def publish(node: NodeProcess, client: Client, prompt: np.ndarray) -> None:
    """In slices that write-behind keeps up with: a put waits for nobody, and what is not written in time is dropped."""
    ns = client.namespace(layout())
    chain = ns.chain(prompt)
    for at in range(0, len(chain), 24):
        piece = chain[at : at + 24]
        done = ns.put(piece, blocks_of(piece), position=at, parent=chain[at - 1] if at else None)
        assert int(done.stored) == len(piece)
        quiet(node)
        if "file.enabled=true" not in node._flags:
            memory = node.counters(1)
            put = memory["used"] // SIZE + memory["evicted_clean"] + memory["evicted_dirty"]
            least = put + 24 - IN_MEMORY  # what the next slice pushes out, whatever a disk was busy with for a while
            eventually(lambda least=least: node.counters(3)["object_blocks_written"] >= least)


def quiet(node: NodeProcess, for_s: float = 0.6) -> None:
    """Until nothing has been written to packs for a while."""
    last, since = -1, time.monotonic()
    until = since + 30
    while time.monotonic() - since < for_s:
        now = node.counters(3)["object_blocks_written"]
        if now != last:
            last, since = now, time.monotonic()
        assert time.monotonic() < until
        time.sleep(0.02)


FILES = ["file.enabled=true", "file.bytes=12MiB", "file.slab_bytes=1064960", "file.admission=always"]


@pytest.mark.parametrize("files", [False, True], ids=["memory alone above", "files above"])
def test_with_all_local_state_gone_everything_is_read_back_from_packs(tmp_path: Path, files: bool) -> None:
    objects = f"file://{tmp_path}/bucket"
    prompts = [tokens(blocks, seed) for seed, blocks in enumerate([150, 64, 1, 63, 100, 65, 130])]
    sets = FILES if files else []
    node = object_node(tmp_path / "one", objects, "object.flush_ms=15000", *sets)
    with node, Client(node.address) as client:
        for prompt in prompts:  # 36 MiB: more than the 28 that memory and files hold
            publish(node, client, prompt)
        # A block goes from memory once it is below, and files may let one go while memory has it. Only what left the
        # last tier above before it was in a pack can be missing, and all of that is counted.
        dropped = node.counters(1)["evicted_dirty"] + (node.counters(2)["evicted_dirty"] if files else 0)
        assert files or dropped == 0
        assert node.counters(3)["object_packs_written"] >= 7
        client.close()
        assert node.stop() == 0, node.said
    shutil.rmtree(tmp_path / "one")
    with object_node(tmp_path / "two", objects, memory="64MiB") as node, Client(node.address) as client:
        ns = client.namespace(layout())
        cut = 0
        for prompt in prompts:
            chain = ns.chain(prompt)
            there = ns.prefetch(chain)
            into = np.zeros((len(chain), SIZE), np.uint8)
            assert ns.get(chain, into).blocks == there
            np.testing.assert_array_equal(into[:there], blocks_of(chain[:there]))
            cut += there < len(chain)
        assert cut <= dropped
        assert node.counters(3)["object_errors"] == 0


def fetched(client: Client, prompt: np.ndarray) -> int:
    """How many blocks a get brings; every byte of them is right."""
    ns = client.namespace(layout())
    chain = ns.chain(prompt)
    into = np.zeros((len(chain), SIZE), np.uint8)
    blocks = int(ns.get(chain, into).blocks)
    np.testing.assert_array_equal(into[:blocks], blocks_of(chain[:blocks]))
    return blocks


def filled(home: Path, objects: str, prompts: list[np.ndarray], *sets: str) -> None:
    """A node that came, published and went, and left nothing but packs."""
    with object_node(home, objects, "object.flush_ms=15000", *sets) as node, Client(node.address) as client:
        for prompt in prompts:
            ns = client.namespace(layout())
            chain = ns.chain(prompt)
            assert int(ns.put(chain, blocks_of(chain)).stored) == len(chain)
        client.close()
        assert node.stop() == 0, node.said
    shutil.rmtree(home)


def packs_in(bucket: Path) -> list[Path]:
    """While a node deletes there: os.walk passes over folders that go, where rglob would raise."""
    return [Path(folder) / name for folder, _, names in os.walk(bucket) for name in names if name != "cleared"]


def bytes_in(bucket: Path) -> int:
    total = 0
    for path in packs_in(bucket):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_a_lookup_that_ends_at_a_hole_finds_more_the_next_time(tmp_path: Path) -> None:
    prompt = tokens(100, 1)
    filled(tmp_path / "one", f"file://{tmp_path}/bucket", [prompt])
    with object_node(tmp_path / "two", f"file://{tmp_path}/bucket") as node, Client(node.address) as client:
        ns = client.namespace(layout())
        chain = ns.chain(prompt)
        assert ns.lookup(chain).blocks == 0, "nothing waits for a probe"
        eventually(lambda: ns.lookup(chain).blocks == 100)
        assert set(ns.lookup(chain).tiers) == {3}
        assert node.counters(1)["used"] == 0, "a lookup brings nothing up"
        assert fetched(client, prompt) == 100


def test_an_operator_sees_what_lies_in_packs_alone(tmp_path: Path) -> None:
    prompt = tokens(100, 1)
    filled(tmp_path / "one", f"file://{tmp_path}/bucket", [prompt])
    (tmp_path / "tokens.json").write_text(json.dumps(prompt.tolist()))
    with object_node(tmp_path / "two", f"file://{tmp_path}/bucket") as node, Client(node.address) as client:
        client.namespace(layout())
        store_admin = [sys.executable, "-m", "kvstore.admin", "--address", f"unix:{node.socket}.grpc"]
        listed = subprocess.run(
            [*store_admin, "--json", "namespaces"], capture_output=True, text=True, check=True
        ).stdout
        which = ["--namespace", json.loads(listed)[0]["namespace"], "--tokens", str(tmp_path / "tokens.json")]
        found = subprocess.run([*store_admin, "lookup", *which], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        assert "the first 100 are here; 0 in memory, 0 in files, 100 in packs" in found.stdout


def test_a_get_that_ends_at_a_hole_has_the_rest_brought_up(tmp_path: Path) -> None:
    prompt = tokens(100, 1)
    filled(tmp_path / "one", f"file://{tmp_path}/bucket", [prompt])
    with object_node(tmp_path / "two", f"file://{tmp_path}/bucket") as node, Client(node.address) as client:
        assert fetched(client, prompt) == 0
        ns = client.namespace(layout())
        eventually(lambda: set(ns.lookup(ns.chain(prompt)).tiers) == {1})
        assert fetched(client, prompt) == 100


@pytest.mark.parametrize("where", ["head", "payload", "cut", "another's"])
def test_a_damaged_pack_is_a_miss_and_goes(tmp_path: Path, where: str) -> None:
    prompt, bucket = tokens(100, 1), tmp_path / "bucket"
    filled(tmp_path / "one", f"file://{bucket}", [prompt])
    whole = max(packs_in(bucket), key=lambda path: path.stat().st_size)
    data = bytearray(whole.read_bytes())
    if where == "head":
        data[200] ^= 1
    elif where == "payload":
        data[-5 * SIZE - 77] ^= 1
    elif where == "cut":
        del data[-5 * SIZE - 77 :]
    else:
        data = bytearray(min(packs_in(bucket), key=lambda path: path.stat().st_size).read_bytes())
    whole.write_bytes(data)
    with object_node(tmp_path / "two", f"file://{bucket}") as node, Client(node.address) as client:
        ns = client.namespace(layout())
        chain = ns.chain(prompt)
        ns.prefetch(chain)
        assert fetched(client, prompt) <= (58 if where in ("payload", "cut") else 0)
        eventually(lambda: not whole.exists())
        assert node.counters(3)["object_packs_damaged"] >= 1
        client.namespace(layout()).put(chain, blocks_of(chain))
        assert fetched(client, prompt) == 100


def flip(home: Path, block: np.ndarray, by: int) -> None:
    """One bit of a block as its file has it, so many bytes from where the payload begins."""
    for path in (home / "data" / "files").rglob("*"):
        at = path.read_bytes().find(block.tobytes()) if path.is_file() else -1
        if at >= 0:
            with path.open("r+b") as file:
                file.seek(at + by)
                byte = file.read(1)[0]
                file.seek(at + by)
                file.write(bytes([byte ^ 4]))
            return
    raise AssertionError("not in the files")


@pytest.mark.parametrize(("block", "by"), [(0, 5000), (0, 90 - 4096), (17, 9)], ids=["first", "its header", "inside"])
def test_what_files_cannot_give_comes_from_a_pack_in_the_same_get(tmp_path: Path, block: int, by: int) -> None:
    """After a restart, so that no pack is known yet."""
    home, prompt = tmp_path / "one", tokens(40, 1)
    sets = ["file.enabled=true", "file.bytes=64MiB", "file.slab_bytes=4MiB", "file.admission=always"]
    with object_node(home, f"file://{tmp_path}/bucket", "object.flush_ms=15000", *sets) as node:
        with Client(node.address) as client:
            ns = client.namespace(layout())
            chain = ns.chain(prompt)
            for seed in (1, 2, 3, 4):  # memory is 256 blocks; three quarters full, it writes the coldest 64 down
                each = ns.chain(tokens(40 if seed == 1 else 64, seed))
                ns.put(each, blocks_of(each))
            eventually(lambda: node.counters(2)["used"] >= 64 * SIZE)
            for seed in (5, 6):
                each = ns.chain(tokens(64, seed))
                ns.put(each, blocks_of(each))
            assert set(ns.lookup(chain).tiers) == {2}
        assert node.stop() == 0, node.said
        flip(home, block_of(chain[block]), by)
        node.start()
        with Client(node.address) as client:
            assert set(client.namespace(layout()).lookup(chain).tiers) == {2}
            assert fetched(client, prompt) == 40
            assert set(client.namespace(layout()).lookup(chain).tiers) == {1}


def test_the_sweeper_keeps_the_limit_and_the_latest(tmp_path: Path) -> None:
    bucket, limit = tmp_path / "bucket", 12 << 20
    sets = [f"object.bytes_max={limit}", "object.sweep_ms=200"]
    prompts = [tokens(64, seed) for seed in range(9)]  # 36 MiB
    with object_node(tmp_path / "one", f"file://{bucket}", *sets) as node, Client(node.address) as client:
        for prompt in prompts:
            publish(node, client, prompt)
        eventually(lambda: node.counters(3)["object_packs_deleted"] > 0 and bytes_in(bucket) <= limit)
        assert fetched(client, prompts[-1]) == 64
        assert sum(fetched(client, prompt) for prompt in prompts) < 9 * 64


def test_a_cleared_namespace_leaves_nothing_behind(tmp_path: Path) -> None:
    bucket, prompt = tmp_path / "bucket", tokens(100, 1)
    filled(tmp_path / "one", f"file://{bucket}", [prompt])
    with object_node(tmp_path / "two", f"file://{bucket}") as node, Client(node.address) as client:
        ns = client.namespace(layout())
        assert ns.prefetch(ns.chain(prompt)) == 100
        ns.clear()
        eventually(lambda: not packs_in(bucket))
        again = client.namespace(layout())
        assert again.prefetch(again.chain(prompt)) == 0
        chain = again.chain(prompt)
        assert int(again.put(chain, blocks_of(chain)).stored) == 100


def test_what_was_cleared_stays_cleared_for_who_has_forgotten_and_for_who_was_not_asked(tmp_path: Path) -> None:
    bucket, prompt = tmp_path / "bucket", tokens(100, 1)
    objects = f"file://{bucket}"
    filled(tmp_path / "one", objects, [prompt])
    saved = {path: path.read_bytes() for path in packs_in(bucket)}
    one, two = (object_node(tmp_path / name, objects, "object.sweep_ms=300") for name in ("two", "three"))
    with one, two, Client(one.address) as first, Client(two.address) as second:
        ns, other = first.namespace(layout()), second.namespace(layout())
        assert other.prefetch(other.chain(prompt)) == 100
        ns.clear()
        eventually(lambda: not packs_in(bucket))
        eventually(lambda: int(other.get(other.chain(prompt), np.zeros((100, SIZE), np.uint8)).blocks) == 0)
        eventually(lambda: second.namespace(layout()).generation == 1)  # its packs may be gone before it is told why
    for path, data in saved.items():  # as if the deletes had never come through
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with object_node(tmp_path / "four", objects, "object.sweep_ms=300") as node, Client(node.address) as client:
        ns = client.namespace(layout())
        with contextlib.suppress(Unavailable):  # the namespace is cleared under it, at the first look
            assert ns.prefetch(ns.chain(prompt)) == 0
        eventually(lambda: client.namespace(layout()).generation == 1)
        eventually(lambda: not packs_in(bucket))


def test_what_a_clear_left_behind_goes_at_the_next_start(tmp_path: Path) -> None:
    """An upload that ended after the node was killed, or deletes that did not come through."""
    bucket, prompt = tmp_path / "bucket", tokens(64, 1)
    objects = f"file://{bucket}"
    filled(tmp_path / "one", objects, [prompt])
    saved = {path: path.read_bytes() for path in packs_in(bucket)}
    with object_node(tmp_path / "two", objects) as node:
        with Client(node.address) as client:
            client.namespace(layout()).clear()
        eventually(lambda: not packs_in(bucket))
        node.kill()
        for path, data in saved.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        node.start()
        eventually(lambda: not packs_in(bucket))


def test_two_nodes_share_a_directory(tmp_path: Path) -> None:
    objects, prompt = f"file://{tmp_path}/bucket", tokens(64, 1)
    one, two = object_node(tmp_path / "one", objects), object_node(tmp_path / "two", objects)
    with one, two, Client(one.address) as first, Client(two.address) as second:
        publish(one, first, prompt)
        for seed in range(2, 6):
            publish(one, first, tokens(64, seed))
        assert one.counters(3)["object_packs_written"] >= 1
        ns = second.namespace(layout())
        assert ns.prefetch(ns.chain(prompt)) == 64, "what one node wrote the other finds"
        assert fetched(second, prompt) == 64
        assert fetched(first, prompt) == 64


# ---- a real HTTP server between ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    pytest.importorskip("moto")
    with moto_server() as port:
        yield port


@pytest.fixture
def relay(moto: int) -> Iterator[Relay]:
    relay = Relay(("127.0.0.1", moto))
    yield relay
    relay.close()


def test_packs_travel_through_s3(tmp_path: Path, relay: Relay) -> None:
    prompts = [tokens(100, 11), tokens(65, 12)]
    filled(tmp_path / "one", "s3://kvpacks/travel", prompts, *s3_options(relay.port))
    with (
        object_node(tmp_path / "two", "s3://kvpacks/travel", *s3_options(relay.port)) as node,
        Client(node.address) as client,
    ):
        ns = client.namespace(layout())
        for prompt in prompts:
            assert ns.prefetch(ns.chain(prompt)) == len(prompt) // 4
            assert fetched(client, prompt) == len(prompt) // 4
        ns.clear()
        eventually(lambda: node.counters(3)["object_packs_deleted"] >= 3)


@pytest.mark.parametrize("mode", ["hang", "busy", "cut", "slow"])
def test_a_store_in_trouble_is_a_miss_and_no_more(tmp_path: Path, relay: Relay, mode: str) -> None:
    """Puts do not wait, gets end, lookups stop counting on it, and all is well when it answers again."""
    prompt, url = tokens(100, 21), f"s3://kvpacks/trouble-{mode}"
    sets = [*s3_options(relay.port), "object.timeout_ms=400", "object.retries=1"]
    filled(tmp_path / "one", url, [prompt], *s3_options(relay.port))
    with object_node(tmp_path / "two", url, *sets) as node, Client(node.address) as client:
        ns = client.namespace(layout())
        assert ns.prefetch(ns.chain(prompt)) == 100
        assert fetched(client, prompt) == 100
        for seed in range(30, 36):  # drives it out of memory; it is known to lie in packs
            chain = ns.chain(tokens(64, seed))
            ns.put(chain, blocks_of(chain))
        eventually(lambda: ns.lookup(ns.chain(prompt)).blocks == 100)
        relay.set(mode)
        began = time.monotonic()
        came = fetched(client, prompt)
        assert time.monotonic() - began < 5 + SLOW_S
        assert came <= 100
        took = []
        for seed in range(40, 48):
            chain = ns.chain(tokens(64, seed))
            blocks = blocks_of(chain)
            began = time.monotonic()
            assert int(ns.put(chain, blocks).stored) == 64
            took.append(time.monotonic() - began)
        assert sorted(took)[len(took) // 2] < 0.4, "puts wait for a store that takes all its time"
        if mode != "slow":
            eventually(lambda: node.counters(3)["object_unreachable"] == 1)
            eventually(lambda: 3 not in set(ns.lookup(ns.chain(prompt)).tiers))  # what cannot be had is not promised
        relay.set("pass")
        eventually(lambda: node.counters(3)["object_unreachable"] == 0, 30)

        def comes_back() -> bool:
            ns.prefetch(ns.chain(prompt))
            return fetched(client, prompt) == 100

        eventually(comes_back, 30)


def test_a_node_starts_and_stops_without_its_store(tmp_path: Path) -> None:
    sets = [*s3_options(free_ports(1)[0]), "object.timeout_ms=500", "object.flush_ms=3000"]
    with object_node(tmp_path / "one", "s3://kvpacks/x", *sets) as node, Client(node.address) as client:
        prompt = tokens(64, 1)
        ns = client.namespace(layout())
        chain = ns.chain(prompt)
        assert int(ns.put(chain, blocks_of(chain)).stored) == 64
        assert fetched(client, prompt) == 64
        client.close()
        assert node.stop() == 0, node.said


def test_a_url_nobody_speaks_is_refused_by_name(tmp_path: Path) -> None:
    node = object_node(tmp_path / "one", "gopher://x")
    process = node.spawn()
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "object.url" in said and "gopher" in said
