"""Five nodes on machines of their own, and links that fail: cut both ways, cut one way, slow, lossy. Every byte is
compared, and every answer comes within its deadline.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.cluster_rig.conftest import Seen
from tests.cluster_rig.links import needs_network
from tests.cluster_rig.rig import Rig
from tests.etcd_server import needs_etcd
from tests.integration.nodes import eventually
from tests.integration.patience import DEAD_S, SLOW_S, WAITS_S
from tests.integration.test_cluster import seen, states

pytestmark = [needs_network, needs_etcd]

BLOCKS = 24
HOMES_MOVE_SOON = ("cluster.grace_ms=1000",)
VANISHED_S = 0.5 + SLOW_S  # half a second is the aim, and seen (the test tells); a deadline is 5 s


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("links"), *HOMES_MOVE_SOON) as rig:
        yield rig


@pytest.fixture
def five(rig: Rig) -> Iterator[Rig]:
    yield rig
    rig.mend()


def test_a_machine_that_vanishes_costs_one_deadline(five: Rig, seen_ms: Seen) -> None:
    """No packet of it, no refusal, no answer: only time tells."""
    five.put(1, "vanished", 1, BLOCKS)
    five.put(2, "vanished", 1, BLOCKS)
    five.put(1, "vanished", 2, BLOCKS)
    five.found(0, "vanished", 2, BLOCKS)
    five.found(3, "vanished", 2, BLOCKS)
    five.claimed(4, "vanished", 1, BLOCKS, 2)
    five.whole(0, "vanished", 2, BLOCKS)  # over connections that are there
    five.network.split(["n1"], ["n0", "n2", "n3", "n4", "etcd"])
    began = time.monotonic()
    met, never_met = five.get(0, "vanished", 2, BLOCKS), five.get(3, "vanished", 2, BLOCKS)
    replica = five.whole(4, "vanished", 1, BLOCKS)
    assert (met["blocks"], never_met["blocks"]) == (0, 0)
    for what, told in (
        ("a miss, of a machine that vanished", met),
        ("the same, never connected to", never_met),
        ("from the replica of a machine that vanished", replica),
    ):
        seen_ms(what, told["s"])
        assert told["s"] < VANISHED_S
    for at in (0, 2, 3, 4):
        five.found(at, "vanished", 2, 0, DEAD_S)
    assert time.monotonic() - began < DEAD_S + 2 * VANISHED_S
    seen_ms("until no node names it", time.monotonic() - began)
    assert five.get(1, "vanished", 2, BLOCKS)["blocks"] == BLOCKS  # of its own memory, for its own engine
    five.mend()
    assert five.found(4, "vanished", 2, BLOCKS)["holders"] == [five.name(1)]


@pytest.mark.parametrize("deaf", ["holder", "asker"])
def test_a_link_that_is_cut_one_way(five: Rig, deaf: str) -> None:
    """Between two of five: the others see both, and both go on."""
    five.put(1, f"one way {deaf}", 3, BLOCKS)
    five.put(3, f"one way {deaf}", 4, BLOCKS)
    five.put(2, f"one way {deaf}", 4, BLOCKS)
    five.found(0, f"one way {deaf}", 3, BLOCKS)
    five.claimed(0, f"one way {deaf}", 4, BLOCKS, 2)
    holder, asker = five.network["n1"], five.network["n0"]
    if deaf == "holder":
        holder.cut_from(asker)
    else:
        asker.cut_from(holder)
    first = five.get(0, f"one way {deaf}", 3, BLOCKS)
    assert first["blocks"] in {0, BLOCKS} and first["s"] < VANISHED_S
    five.dead_within(1, [0], DEAD_S)
    five.dead_within(0, [1], DEAD_S)
    eventually(lambda: {states(five.nodes[2])[five.name(at)] for at in (0, 1)} == {"alive"})
    five.found(0, f"one way {deaf}", 3, 0, SLOW_S)  # what cannot be fetched is not named
    five.whole(0, f"one way {deaf}", 4, BLOCKS)
    five.whole(2, f"one way {deaf}", 3, BLOCKS)
    five.mend()
    five.found(0, f"one way {deaf}", 3, BLOCKS)
    five.got(0, f"one way {deaf}", 3, BLOCKS)


def test_halves_that_do_not_hear_each_other_go_on_and_agree_again(five: Rig) -> None:
    """n0 and n1 are without etcd meanwhile. What each half has it finds, once homes beyond the cut are given up."""
    for at in range(5):
        five.put(at, "halves", 10 + at, BLOCKS)
        five.found(4 - at, "halves", 10 + at, BLOCKS)
    five.network.split(["n0", "n1"], ["n2", "n3", "n4", "etcd"])
    for at, far in ((0, 3), (1, 2), (2, 0), (3, 1), (4, 1)):
        told = five.get(at, "halves", 10 + far, BLOCKS)
        assert told["blocks"] in range(BLOCKS) and told["s"] < VANISHED_S
    for at, other in ((0, 2), (1, 3), (2, 0), (3, 1), (4, 0)):
        five.dead_within(other, [at], DEAD_S + 1)
    five.put(0, "halves", 20, BLOCKS)
    five.put(4, "halves", 21, BLOCKS)
    for at, near in ((0, 11), (1, 10), (2, 14), (3, 12), (4, 13), (1, 20), (2, 21)):
        five.found(at, "halves", near, BLOCKS)
        five.got(at, "halves", near, BLOCKS)
    five.mend()
    for seed in (10, 11, 12, 13, 14, 20, 21):
        for at in range(5):
            five.found(at, "halves", seed, BLOCKS)
    five.got(3, "halves", 20, BLOCKS)
    five.got(0, "halves", 21, BLOCKS)


def test_a_machine_that_hears_nobody_lends_nothing_and_comes_back(five: Rig) -> None:
    five.put(1, "deaf", 5, BLOCKS)
    five.found(2, "deaf", 5, BLOCKS)
    five.network["n1"].hear(deaf_to=[five.network[name].address for name in ("n0", "n2", "n3", "n4", "etcd")])
    five.dead_within(1, [0, 2, 3, 4], DEAD_S)
    five.dead_within(0, [1], DEAD_S)
    told = five.get(2, "deaf", 5, BLOCKS)
    assert told["blocks"] == 0 and told["s"] < VANISHED_S
    assert five.get(1, "deaf", 5, BLOCKS)["blocks"] == BLOCKS
    five.mend()
    five.found(2, "deaf", 5, BLOCKS)
    five.got(2, "deaf", 5, BLOCKS)


def test_etcd_that_vanishes_for_longer_than_its_leases_expires_nobody(five: Rig) -> None:
    five.network.split(["etcd"], ["n0", "n1", "n2", "n3", "n4"])
    eventually(lambda: five.listed() == [])  # etcd has expired all of them
    five.put(0, "no etcd", 6, BLOCKS)
    five.found(4, "no etcd", 6, BLOCKS)
    five.whole(4, "no etcd", 6, BLOCKS)
    five.network.mend()
    until = time.monotonic() + 2 * WAITS_S
    while len(five.listed()) < 5:
        assert time.monotonic() < until, five.listed()
        for at in range(5):  # who is late with a ping is suspected, whatever etcd says
            known = states(five.nodes[at])
            assert known.keys() == {five.name(other) for other in range(5) if other != at}
            assert "dead" not in known.values(), seen(five.nodes[at])
    five.found(3, "no etcd", 6, BLOCKS)
    five.whole(3, "no etcd", 6, BLOCKS)


def test_a_slow_link_costs_time_and_never_more_than_the_deadline(five: Rig, seen_ms: Seen) -> None:
    """2 Mbit/s: a block takes a quarter of a second, a prompt 6 s, which is not waited for."""
    five.put(1, "slow", 7, BLOCKS)
    five.put(4, "slow", 9, BLOCKS)
    five.put(2, "slow", 8, BLOCKS)
    five.put(1, "slow", 8, BLOCKS)
    five.found(0, "slow", 7, BLOCKS)
    five.claimed(3, "slow", 8, BLOCKS, 2)
    five.network["n1"].slow(2)
    told = five.get(0, "slow", 7, BLOCKS, deadline_s=1.5)
    seen_ms(f"{told['blocks']} of {BLOCKS} blocks over 2 Mbit/s, deadline 1,500 ms", told["s"])
    assert told["blocks"] < BLOCKS and told["s"] < 1.5 + SLOW_S
    five.network["n4"].slow(30)
    five.found(2, "slow", 9, BLOCKS)
    enough = five.whole(2, "slow", 9, BLOCKS)
    seen_ms(f"{enough['blocks']} of {BLOCKS} blocks over 30 Mbit/s", enough["s"])
    other = five.whole(3, "slow", 8, BLOCKS)
    seen_ms(f"{other['blocks']} of {BLOCKS} blocks where another node has them, too", other["s"])


def test_packets_that_are_lost_lose_no_byte(five: Rig, seen_ms: Seen) -> None:
    for at in (0, 1, 2):
        five.put(at, "lossy", 30 + at, BLOCKS)
        five.found(3, "lossy", 30 + at, BLOCKS)
    for name in ("n0", "n1", "n2", "n3"):
        five.network[name].lossy(0.03)
    for at in (0, 1, 2):
        told = five.get(3, "lossy", 30 + at, BLOCKS, deadline_s=5)
        seen_ms(f"{told['blocks']} of {BLOCKS} blocks, 3 of 100 packets lost", told["s"])
    five.mend()
    five.got(3, "lossy", 30, BLOCKS)
