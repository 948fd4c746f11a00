"""What a node and its clients do when the other one is killed, stopped or restarted. Nothing comes back wrong."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore import Client, Ended, Namespace
from kvstore.errors import Unavailable
from tests.integration.nodes import (
    SIZE,
    START_MAX_S,
    ClientProcess,
    NodeProcess,
    block_of,
    blocks_of,
    eventually,
    layout,
    put,
    read_line,
    right,
    tokens,
)

FAST_LAPSE = "limits.reserve_lapse_ms=1500"  # where a test waits for it


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path) as node:
        yield node


@pytest.fixture
def ns(node: NodeProcess) -> Iterator[Namespace]:
    with Client(node.address, deadline_s=20) as client:
        yield client.namespace(layout())


def fill(ns: Namespace, seed: int = 1000, blocks: int = 300) -> None:
    """More than 16 MiB hold."""
    for i in range(blocks // 30):
        put(ns, seed + i, 30)


def reconnected(ns: Namespace) -> None:
    """A call after a restart connects again; while nobody answers it says so at once."""

    def answers() -> bool:
        try:
            ns.lookup(ns.chain(tokens(1)))
        except Unavailable:
            return False
        return True

    eventually(answers)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_restarted_node_finds_its_blocks(node: NodeProcess, ns: Namespace, how: str) -> None:
    assert put(ns, 1, 20) == 20
    if how == "killed":
        node.kill()
    else:
        assert node.stop() == 0
    node.start()
    assert node.facts["blocks_found_again"] == 20
    reconnected(ns)
    assert right(ns, 1, 20) == 20
    assert put(ns, 1, 20) == 0, "they are held already"


def test_a_node_told_to_forget_leaves_nothing(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, "memory.keep=false") as node:
        segment = Path(node.facts["memory_at"])
        assert segment.exists()
        assert node.stop() == 0
        assert not segment.exists()
        assert not node.socket.exists()


def test_a_cleared_namespace_stays_cleared(node: NodeProcess, ns: Namespace) -> None:
    put(ns, 1, 5)
    old = ns.chain(tokens(5, 1))
    assert ns.clear().generation == 1
    node.restart()
    reconnected(ns)
    assert ns.lookup(old).blocks == 0
    assert right(ns, 1, 5) == 0
    assert ns.generation == 1


def test_calls_without_a_node_end_at_once(node: NodeProcess, ns: Namespace) -> None:
    put(ns, 1, 5)
    node.kill()
    began = time.monotonic()
    for _ in range(50):
        with pytest.raises(Unavailable):
            right(ns, 1, 5)
    assert time.monotonic() - began < 5


def test_calls_to_a_stopped_node_end_at_their_deadline(node: NodeProcess, ns: Namespace) -> None:
    put(ns, 1, 5)
    node.signal(signal.SIGSTOP)
    try:
        chain = ns.chain(tokens(5, 1))
        began = time.monotonic()
        with pytest.raises(Unavailable, match="deadline"):
            ns.lookup(chain, deadline_s=0.3)
        got = ns.get(chain, bytearray(5 * SIZE), deadline_s=0.3)
        assert (got.blocks, got.ended) == (0, Ended.LATE)
        assert time.monotonic() - began < 5
    finally:
        node.signal(signal.SIGCONT)
    assert right(ns, 1, 5) == 5


def test_a_node_killed_again_and_again_under_live_clients(node: NodeProcess) -> None:
    """Threads put and get without pause while the node dies at moments drawn from a seed."""
    over, wrong, fetched = threading.Event(), [], [0]

    def work(number: int) -> None:
        rng = random.Random(number)
        with Client(node.address, deadline_s=5) as client:
            ns: Namespace | None = None
            while not over.is_set():
                try:
                    ns = ns or client.namespace(layout())
                    seed = rng.randrange(12)
                    put(ns, seed, 10)
                    fetched[0] += right(ns, seed, 10)
                except Unavailable:
                    time.sleep(0.01)
                except BaseException as error:
                    wrong.append(repr(error))
                    raise

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    rng = random.Random(5)
    try:
        for _ in range(6):
            time.sleep(rng.uniform(0.05, 0.4))
            node.restart()
    finally:
        time.sleep(0.3)
        over.set()
        for thread in threads:
            thread.join(30)
    assert not any(thread.is_alive() for thread in threads), "a call hangs"
    assert not wrong
    assert fetched[0] > 0


def test_a_client_killed_between_reserve_and_seal(node: NodeProcess, ns: Namespace) -> None:
    with ClientProcess(node.address) as child:
        assert child.ask("reserve", blocks=4, seed=1) == [0, 1, 2, 3]
        child.ask("fill", value=7)
        assert ns.put(ns.chain(tokens(4, 1)), blocks_of(ns.chain(tokens(4, 1)))).pending == 4
        child.kill()
        eventually(lambda: node.tier()["reserved"] == 0)
    assert right(ns, 1, 4) == 0
    assert put(ns, 1, 4) == 4
    assert right(ns, 1, 4) == 4
    eventually(lambda: node.tier()["retired"] == 0)


def test_a_client_stopped_between_reserve_and_seal_hits_nobody(tmp_path: Path) -> None:
    """Its reservation lapses; its slots are nobody's until it is gone, however full the tier is; its late bytes land in
    them and its seal comes too late.
    """
    with NodeProcess(tmp_path, FAST_LAPSE) as node, Client(node.address, deadline_s=20) as client:
        stopped_writer(node, client.namespace(layout()))


def stopped_writer(node: NodeProcess, ns: Namespace) -> None:
    with ClientProcess(node.address) as child:
        assert len(child.ask("reserve", blocks=8, seed=1)) == 8
        child.signal(signal.SIGSTOP)
        eventually(lambda: node.tier()["reserved"] == 0)
        assert node.tier()["quarantined"] == 8
        assert put(ns, 1, 8) == 8, "in other slots"
        fill(ns)
        assert node.tier()["retired"] == 8, "not reused"
        assert put(ns, 1, 8) <= 8
        assert right(ns, 1, 8) == 8
        child.signal(signal.SIGCONT)
        child.ask("fill", value=7)
        assert child.ask("seal") == [0, 8]
        assert right(ns, 1, 8) == 8
        for seed in range(1000, 1010):
            right(ns, seed, 30)
        child.kill()
    eventually(lambda: node.tier()["retired"] == 0)


@pytest.mark.parametrize("then", ["closed", "killed"])
def test_what_a_view_shows_stays(node: NodeProcess, ns: Namespace, then: str) -> None:
    put(ns, 1, 6)
    with ClientProcess(node.address) as child:
        assert child.ask("look", blocks=6, seed=1) == 6
        child.signal(signal.SIGSTOP)
        fill(ns)
        fill(ns, seed=2000)
        child.signal(signal.SIGCONT)
        assert child.ask("check"), "shown bytes changed"
        assert node.holds() == 1
        if then == "closed":
            child.ask("close")
        else:
            child.kill()
        eventually(lambda: node.holds() == 0)


def test_a_view_outlives_its_node(node: NodeProcess, ns: Namespace) -> None:
    """The mapping stays, and a node started later leaves the blocks alone until that client says it is done."""
    put(ns, 1, 6)
    chain = ns.chain(tokens(6, 1))
    view = ns.view(chain)
    node.kill()
    assert np.array_equal(np.stack(view.blocks), blocks_of(chain))
    node.start()
    reconnected(ns)
    fill(ns)
    fill(ns, seed=2000)
    assert np.array_equal(np.stack(view.blocks), blocks_of(chain)), "a new node wrote where an old client looks"
    assert ns.lookup(chain).blocks == 6, "kept from eviction"
    array = view.blocks[5]
    view.close()
    fill(ns)
    assert ns.lookup(chain).blocks == 6, "an array is still out"
    assert np.array_equal(array, blocks_of(chain)[5])
    del array
    fill(ns, seed=2000)
    fill(ns)
    assert ns.lookup(chain).blocks == 0, "the node was not told that all is back"


def test_two_writers_of_one_key(node: NodeProcess, ns: Namespace) -> None:
    """One of them wins each block; what is held is what a key stands for, and the tier has it once."""
    with ClientProcess(node.address) as one, ClientProcess(node.address) as two:
        for seed in range(5):
            for child in (one, two):
                child.tell("put", blocks=20, seed=seed)
            told = [child.answer() for child in (one, two)]
            assert sum(counts[0] for counts in told) == 20
            assert all(sum(counts) == 20 and counts[3] == 0 for counts in told)
            assert right(ns, seed, 20) == 20
    assert node.tier()["sealed"] == 100


def test_two_nodes_on_one_directory_or_segment(node: NodeProcess, tmp_path: Path) -> None:
    def refusal(*flags: str) -> str:
        command = [
            sys.executable,
            "-m",
            "kvstore",
            "node",
            "--memory",
            "16MiB",
            "--address",
            "none",
            "--grpc",
            "none",
            "--metrics",
            "none",
        ]
        command += ["--set", "file.enabled=false", "--set", "object.url=none", *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_MAX_S, check=False)
        assert done.returncode == 2
        return done.stderr

    data, other = str(tmp_path / "data"), str(tmp_path / "other")
    assert "another node uses this directory" in refusal("--data-dir", data, "--socket", f"{other}.sock")
    same_name = ("--name", node.facts["node"])
    assert "another node uses this segment" in refusal("--data-dir", other, "--socket", f"{other}.sock", *same_name)
    assert "another node listens there" in refusal(
        "--data-dir", other, "--socket", str(node.socket), "--set", "memory.keep=false"
    )
    with Client(node.address) as client:
        assert put(client.namespace(layout()), 3, 2) == 2, "and the first one goes on"


def test_a_node_started_while_its_killed_twin_leaves_a_socket(node: NodeProcess) -> None:
    node.kill()
    assert node.socket.exists()
    node.start()
    with Client(node.address) as client:
        client.namespace(layout())


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--memory", "much"], "--memory: memory.bytes = 'much': must be a size"),
        (["--set", "memory.policy=mru"], "--set: memory.policy = 'mru': must be one of"),
        (["--set", "nonsense"], "--set nonsense: must be SECTION.KEY=VALUE"),
        (["--config", "/nowhere.toml"], "/nowhere.toml"),
        (["--socket", "/" + "x" * 200], "node.socket"),
        (["--memory", "4TiB"], "memory.bytes = 4 TiB: /dev/shm has"),
        (["--grpc", "0.0.0.0:0"], "reachable from other machines"),
        (["--metrics", "0.0.0.0:0"], "reachable from other machines"),
        (["--metrics", "nowhere"], "--metrics: metrics.address = 'nowhere': must be HOST:PORT, or none"),
    ],
)
def test_bad_settings_are_refused_at_start(tmp_path: Path, flags: list[str], text: str) -> None:
    command = [sys.executable, "-m", "kvstore", "node", "--data-dir", str(tmp_path), "--memory", "16MiB"]
    command += ["--set", "file.enabled=false", "--set", "object.url=none", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_MAX_S, check=False)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_metrics_tell_what_happened(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, metrics="127.0.0.1:0") as node, Client(node.address) as client:
        ns = client.namespace(layout())
        put(ns, 1, 5)
        assert right(ns, 1, 5) == 5
        assert right(ns, 2, 5) == 0
        where = next(address for address in node.facts["addresses"] if address.endswith("/metrics"))

        def told() -> dict[str, float]:
            with urllib.request.urlopen(where, timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

        eventually(lambda: told()["kvstore_get_blocks_asked_total"] == 10)
        now = told()
        assert now['kvstore_get_blocks_hit_total{tier="memory"}'] == 5
        assert now["kvstore_get_tokens_asked_total"] == 40
        assert now["kvstore_blocks_stored_total"] == 5
        assert now['kvstore_tier_capacity_bytes{tier="memory"}'] == 16 << 20


def test_sigterm_ends_a_busy_node_in_order(node: NodeProcess) -> None:
    with ClientProcess(node.address) as child:
        child.ask("put", blocks=10, seed=1)
        child.ask("look")
        assert node.stop() == 0
        assert "Traceback" not in node.said
        assert child.ask("check"), "a view outlives its node"


def test_the_demonstration_shows_what_it_says(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kvstore", "demo", "--json", "--memory", "128MiB"], stdout=subprocess.PIPE, text=True
    )
    with process:
        first = read_line(process, START_MAX_S)
        assert process.stdout is not None
        told = json.loads(first + process.stdout.read())
    assert process.returncode == 0
    assert told["good"] and told["hit_rate"] > 0.5
    assert all(turn["equal"] for turn in told["turns"])


def test_block_of_is_what_both_sides_think() -> None:
    key = np.arange(32, dtype=np.uint8)
    assert np.array_equal(block_of(key), block_of(key.copy()))
    assert not np.array_equal(block_of(key), block_of(key + 1))
