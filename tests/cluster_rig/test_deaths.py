"""Five nodes on machines of their own: one dies, all die, etcd dies, one stands still. Every byte is compared."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore import Client
from kvstore.cli import EXIT_NOT_JOINED
from kvstore.tiers.file_index import read_left_index
from tests.cluster_rig.conftest import Seen
from tests.cluster_rig.links import needs_network
from tests.cluster_rig.rig import FAR_FILE, FAR_MEMORY, FILE, Rig, finish_all
from tests.etcd_server import needs_etcd
from tests.integration.nodes import eventually, layout, tokens
from tests.integration.patience import DEAD_S
from tests.integration.test_cluster import refusal, seen, states

pytestmark = [needs_network, needs_etcd]

BLOCKS = 24  # more than a window, which is a quarter of a node's memory
FILES = ("file.enabled=true", "file.bytes=32MiB", "file.admission=always")


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("deaths"), *FILES) as rig:
        yield rig


def test_what_is_put_at_one_is_got_at_all(five: Rig) -> None:
    five.put(0, "all", 1, BLOCKS)
    for at in range(1, five.count):
        assert five.found(at, "all", 1, BLOCKS)["holders"] == [five.name(0)]
        assert set(five.whole(at, "all", 1, BLOCKS)["tiers"]) == {FAR_MEMORY}
    five.quiet()


def test_one_that_is_killed_costs_milliseconds_and_is_named_no_more(five: Rig, seen_ms: Seen) -> None:
    """Its port is closed: asking it fails at once, and its replica is asked."""
    five.put(1, "killed", 2, BLOCKS)
    five.put(2, "killed", 2, BLOCKS)
    five.put(1, "killed", 3, BLOCKS)  # nobody else has this
    five.claimed(0, "killed", 2, BLOCKS, 2)
    for at in (0, 2, 3, 4):
        five.found(at, "killed", 3, BLOCKS)
    five.get(0, "killed", 3, BLOCKS)
    five.nodes[1].kill()
    began = time.monotonic()
    with_replica = five.whole(0, "killed", 2, BLOCKS)
    alone = [five.get(at, "killed", 3, BLOCKS) for at in (3, 4, 2)]  # none of these has asked it since
    assert {told["blocks"] for told in alone} == {0}
    seen_ms("from the replica of a node that was killed", with_replica["s"])
    seen_ms("a miss, of a node that was killed", alone[0]["s"])
    assert min(told["s"] for told in alone) < 0.5  # the machine may have been busy with some of them
    for at in (0, 2, 3, 4):
        five.found(at, "killed", 3, 0, DEAD_S)
    seen_ms("until no node names it", time.monotonic() - began)
    seen_ms("until all say that it is dead", five.dead_within(1, [0, 2, 3, 4], DEAD_S))
    assert five.found(4, "killed", 2, BLOCKS)["holders"] == [five.name(2)]
    five.nodes[1].start()
    five.meet()
    for at in (0, 2, 3, 4):  # its memory came back with it
        told = five.found(at, "killed", 3, BLOCKS)
        assert told["holders"] == [five.name(1)] and set(told["tiers"]) == {FAR_MEMORY}
    five.got(4, "killed", 3, BLOCKS)


def test_all_are_killed_and_what_they_held_is_found_everywhere(five: Rig) -> None:
    for at in range(five.count):
        five.put(at, "restart", 10 + at, BLOCKS)
    filler = itertools.count(100)

    def written() -> bool:
        """A machine's memory is filled with other blocks until its files have this chain alone."""
        five.put(2, "restart", next(filler), 8)
        return five.engines[2].ask("lookup", "restart", 12, BLOCKS)["tiers"] == [FILE] * BLOCKS

    eventually(written)
    eventually(lambda: indexed(five, 2, "restart", 12) == BLOCKS)
    for node in five.nodes:
        node.kill()
    lost = Path(five.nodes[2].facts["memory_at"])  # and this machine lost its memory, too: files have it
    for suffix in (".payload", ".meta"):
        lost.with_suffix(suffix).unlink()
    for node in five.nodes:
        node.process = node.spawn()
    finish_all(five.nodes)
    five.meet()
    for at in range(five.count):
        for other in range(five.count):
            five.found(other, "restart", 10 + at, BLOCKS)
        told = five.whole((at + 1) % five.count, "restart", 10 + at, BLOCKS)
        assert (told["blocks"], set(told["tiers"])) == (BLOCKS, {FAR_FILE if at == 2 else FAR_MEMORY})
    five.quiet()


def indexed(rig: Rig, at: int, model: str, seed: int) -> int:
    """How many blocks a kill leaves in files: what their index has not been told (file.checkpoint_ms) is forgotten."""
    with Client(rig.nodes[at].address) as client:
        chain = client.namespace(layout(model)).chain(tokens(BLOCKS, seed))
    left = read_left_index(rig.nodes[at].home / "data" / "files" / "index")
    return sum(key.tobytes() in left.records for key in chain) if left is not None else 0


def test_a_node_that_stands_still_is_left_and_wakes(five: Rig, seen_ms: Seen) -> None:
    five.put(1, "still", 4, BLOCKS)
    five.put(3, "still", 4, BLOCKS)
    five.put(1, "still", 5, BLOCKS)
    five.found(0, "still", 5, BLOCKS)
    five.claimed(0, "still", 4, BLOCKS, 2)
    five.nodes[1].signal(signal.SIGSTOP)
    try:
        told = five.whole(0, "still", 4, BLOCKS)
        seen_ms("from the replica of a node that stands still", told["s"])
        alone = five.get(2, "still", 5, BLOCKS)
        assert alone["blocks"] == 0
        seen_ms("a miss, of a node that stands still", alone["s"])
        five.found(4, "still", 5, 0, DEAD_S)
        five.dead_within(1, [0, 2, 3, 4], DEAD_S)
    finally:
        five.nodes[1].signal(signal.SIGCONT)
    five.meet()  # and it takes nobody for dead that is not
    for at in range(five.count):
        five.found(at, "still", 5, BLOCKS)
    five.got(0, "still", 5, BLOCKS)


def test_etcd_that_is_killed_stops_joins_and_nothing_else(five: Rig) -> None:
    """For longer than its leases live, which are 2 s here."""
    five.put(0, "etcd", 6, BLOCKS)
    five.etcd.kill()
    five.nodes[4].kill()  # dead by pings, whatever etcd says
    five.dead_within(4, [0, 1, 2, 3], DEAD_S)
    assert "not joined within cluster.join_ms" in refusal(five.nodes[4], "cluster.join_ms=1500", code=EXIT_NOT_JOINED)
    alive = {five.name(i): "alive" for i in range(4)}
    for at in range(4):
        others = {name: state for name, state in states(five.nodes[at]).items() if name != five.name(4)}
        assert others.keys() == alive.keys() - {five.name(at)} and "dead" not in others.values()
    five.put(1, "etcd", 7, BLOCKS)
    five.found(3, "etcd", 7, BLOCKS)
    five.found(3, "etcd", 6, BLOCKS)
    five.whole(3, "etcd", 6, BLOCKS)
    deaths = [died(five, at) for at in range(4)]
    five.etcd.start()
    five.nodes[4].start()
    five.meet()
    time.sleep(2.5)  # leases of before run out
    assert [died(five, at) for at in range(4)] == deaths
    five.got(4, "etcd", 7, BLOCKS)


def died(rig: Rig, at: int) -> dict[str, bool]:
    """Whom this node has for dead."""
    return {name: row["state"] == "dead" for name, row in seen(rig.nodes[at]).items() if name != rig.name(4)}
