"""put(replicas=n): which nodes are asked to copy, and when another one is asked instead."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np

from kvstore.directory.base import Member
from kvstore.errors import KvStoreError, Misconfigured, Unavailable
from kvstore.node.bringing import Brought
from kvstore.node.spreading import Spreading, in_turn
from kvstore.node.streams import Prefix
from kvstore.wire import framed

KEYS = np.random.default_rng(1).integers(0, 256, (4, 32), np.uint8)
OPENED: Any = SimpleNamespace(handle=0, digest=b"n" * 32)


def node(name: str, host: str) -> Member:
    return Member(f"{name}:1", name.encode() * 16, 1, host=host)


class World:
    """answers: of each node, how many blocks it has then, or what it raises, after so many turns of the loop."""

    def __init__(self, nodes: list[Member], **answers: tuple[int, int | KvStoreError]) -> None:
        self.answers, self.asked = answers, list[str]()
        self.order = in_turn((7).to_bytes(8, "little") + OPENED.digest, nodes, "me")
        cluster: Any = SimpleNamespace(me=Member("me:1", b"m" * 16, 1, host="me"), members=lambda: nodes)
        core: Any = SimpleNamespace(find=lambda *asked: np.ones(len(asked[-1]), np.bool_))
        self.spreading = Spreading(cluster, core, self, has_files=False)  # type: ignore[arg-type]

    async def bring(self, member: Member, *asked: object, **more: object) -> Brought:
        name = member.address[0]
        self.asked.append(name)
        turns, told = self.answers[name]
        for _ in range(turns):
            await asyncio.sleep(0)
        if isinstance(told, KvStoreError):
            raise told
        return Brought(told, 0)

    async def replicas(self, wanted: int, keys: Any = KEYS, family: int = 7) -> list[int]:
        request = framed.ReplicateRequest(replicas=wanted, deadline_ms=5000)
        hint: Any = SimpleNamespace(family=family)
        hosts = await self.spreading.replicate(OPENED, 0, Prefix(keys, b"", lambda _: hint), request)
        return list(map(int, hosts))


async def test_two_nodes_of_a_host_do_not_stand_for_two_hosts() -> None:
    """While one host's first node copies, the other host's fails, and the next in turn is of the one that copies."""
    nodes = [node(name, host) for host, names in (("x", "ab"), ("y", "cd")) for name in names]
    one, other, third, _ = World(nodes).order
    slow, fails = (one, other) if one.host == third.host else (other, one)
    answers: dict[str, tuple[int, int | KvStoreError]] = dict.fromkeys("abcd", (5, 4))
    answers |= {slow.address[0]: (50, 4), fails.address[0]: (1, Unavailable("gone"))}
    world = World(nodes, **answers)
    assert await world.replicas(3) == [3] * 4
    assert len(world.asked) == 4, "the last of them is asked, too"


async def test_a_node_that_may_not_be_spoken_to_makes_way_like_any_that_fails() -> None:
    nodes = [node("a", "x"), node("b", "y"), node("c", "z")]
    answers: dict[str, tuple[int, int | KvStoreError]] = dict.fromkeys("abc", (1, 4))
    answers[World(nodes).order[0].address[0]] = 1, Misconfigured("another secret")
    world = World(nodes, **answers)
    assert await world.replicas(3) == [3] * 4


async def test_what_is_of_no_known_family_does_not_all_go_to_one_node() -> None:
    """The rest of a prompt, put without its beginning and without a label."""
    world = World([node(name, name) for name in "abc"], **dict.fromkeys("abc", (1, 4)))
    for seed in range(20):
        await world.replicas(2, np.random.default_rng(seed).integers(0, 256, (4, 32), np.uint8), family=0)
    assert set(world.asked) == set("abc")
    world.asked.clear()
    for seed in range(20):
        await world.replicas(2, np.random.default_rng(seed).integers(0, 256, (4, 32), np.uint8), family=9)
    assert len(set(world.asked)) == 1, "one that is named stays together"
