"""A node that dies while clients of the segment live on: what they may still touch is nobody's until they are gone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from kvstore import Client, Namespace
from tests.integration.nodes import ClientProcess, NodeProcess, eventually, layout, put, right, tokens


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path, "limits.reserve_lapse_ms=1500") as node:
        yield node


def fill(ns: Namespace, seed: int) -> None:
    """More than 16 MiB hold."""
    for i in range(10):
        put(ns, seed + i, 30)


@pytest.mark.parametrize("lapsed", [False, True], ids=["reserved", "quarantined"])
def test_a_writer_that_outlives_its_node_hits_nobody(node: NodeProcess, lapsed: bool) -> None:
    """Stopped between reserve and seal, past the node's death and into its next life; its late bytes land in its own
    slots, and those come back when it has died without a word.
    """
    with ClientProcess(node.address) as child:
        assert len(child.ask("reserve", blocks=8, seed=1)) == 8
        child.signal(signal.SIGSTOP)
        if lapsed:
            eventually(lambda: node.tier()["reserved"] == 0)
        node.restart()
        assert node.tier()["retired"] == 8, "in nobody's hands"
        with Client(node.address, deadline_s=20) as client:
            ns = client.namespace(layout())
            fill(ns, 1000)
            assert put(ns, 1, 8) == 8
            fill(ns, 2000)
            assert put(ns, 1, 8) <= 8
            assert node.tier()["retired"] == 8, "however full it is"
            child.signal(signal.SIGCONT)
            child.ask("fill", value=7)
            assert right(ns, 1, 8) == 8, "the late bytes hit a block"
            assert sum(right(ns, seed, 30) for seed in range(2001, 2010)) >= 30
            assert node.tier()["retired"] == 8
            child.kill()
            eventually(lambda: node.tier()["retired"] == 0)
            fill(ns, 3000)
            assert right(ns, 3009, 30) == 30


def test_a_view_whose_owner_dies_after_its_node_lets_go(node: NodeProcess) -> None:
    """Nobody is left to say that all is back; the node looks for the process itself."""
    with Client(node.address, deadline_s=20) as client:
        put(client.namespace(layout()), 1, 6)
    with ClientProcess(node.address) as child:
        assert child.ask("look", blocks=6, seed=1) == 6
        node.restart()
        with Client(node.address, deadline_s=20) as client:
            ns = client.namespace(layout())
            fill(ns, 1000)
            fill(ns, 2000)
            assert child.ask("check"), "shown bytes changed"
            assert ns.lookup(ns.chain(tokens(6, 1))).blocks == 6
            child.kill()

            def let_go() -> bool:
                fill(ns, 3000)
                fill(ns, 4000)
                return ns.lookup(ns.chain(tokens(6, 1))).blocks == 0

            eventually(let_go, 30)


@pytest.mark.parametrize("again", ["before", "after"])
@pytest.mark.parametrize("last", ["a view", "a slot's array"])
def test_what_a_living_client_still_has_is_kept_and_then_comes_back(
    node: NodeProcess, last: str, again: Literal["before", "after"]
) -> None:
    """Of its node's former life. It says so when the last of it is gone: at once, or when it has connected again."""
    with Client(node.address, deadline_s=20) as client:
        ns = client.namespace(layout())
        put(ns, 1, 6)
        out: dict[str, object] = {"a view": ns.view(ns.chain(tokens(6, 1)))}
        slots = ns.reserve(ns.chain(tokens(8, 2)))
        array = slots.array(0)
        out["a slot's array"] = array
        del slots  # gives them back, and nobody is there to take them
        node.kill()
        del array
        node.start()
        kept = out.pop(last)
        out.clear()
        if again == "after":
            del kept
        fill(ns, 1000)  # connects again
        if again == "before":
            assert not came_back(node, ns), "of this client nobody knows yet that it is quiet"
            del kept
        eventually(lambda: came_back(node, ns))


def came_back(node: NodeProcess, ns: Namespace) -> bool:
    """The slots that were reserved are free again, and those that were looked at can be evicted."""
    fill(ns, 2000)
    fill(ns, 3000)
    return node.tier()["retired"] == 0 and ns.lookup(ns.chain(tokens(6, 1))).blocks == 0


def test_clearing_gives_the_room_back(node: NodeProcess) -> None:
    with Client(node.address, deadline_s=20) as client:
        ns = client.namespace(layout())
        assert put(ns, 1, 20) == 20
        with ns.view(ns.chain(tokens(6, 1))) as view:
            ns.clear()
            assert (node.tier()["sealed"], node.tier()["retired"]) == (0, 6), "what is looked at stays until it is not"
            assert len(view.blocks) == 6
            fill(ns, 1000)
            shown = np.stack(view.blocks)
            fill(ns, 2000)
            assert np.array_equal(shown, np.stack(view.blocks))
            del shown
        eventually(lambda: node.tier()["retired"] == 0)


def test_the_first_call_after_a_restart_needs_no_second(node: NodeProcess) -> None:
    """Whatever it is: that the connection has ended is noticed by using it."""
    with Client(node.address, deadline_s=20) as client:
        ns = client.namespace(layout())
        put(ns, 1, 4)
        node.restart()
        assert right(client.namespace(layout()), 1, 4) == 4
        node.restart()
        assert ns.prefetch(ns.chain(tokens(4, 1))) == 4
