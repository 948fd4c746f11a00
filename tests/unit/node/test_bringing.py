"""The asked side of PEER_BRING: what it refuses, what it opens, and what it answers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from kvstore.config import LimitsConfig
from kvstore.directory.base import Member
from kvstore.errors import Rejected
from kvstore.identity import NamespaceIdentity, namespace_digest
from kvstore.layout import Shard
from kvstore.node.bringing import BRINGS_MAX, Bringing
from kvstore.wire import convert, peers

IDENTITY = NamespaceIdentity(
    engine="e",
    model="m",
    revision="1",
    dtype="bf16",
    block_tokens=16,
    shards=(Shard("full", 0, (4096,)),),
    fingerprint=b"f" * 32,
    tenant="default",
)
KEYS = np.arange(3 * 32, dtype=np.uint8).reshape(3, 32)
ASKER = Member("127.0.0.1:1", id=b"a" * 16)


class Known:
    """Namespaces, one of which may be open, or cleared so often."""

    def __init__(self, generation: int = 0) -> None:
        self.generation = generation
        self.opened: list[NamespaceIdentity] = []

    def find(self, digest: bytes) -> None:
        return None

    def open(self, identity: NamespaceIdentity) -> SimpleNamespace:
        self.opened.append(identity)
        mine = replace(identity, generation=self.generation)
        return SimpleNamespace(
            digest=namespace_digest(mine), shards=mine.shards, seed=b"s" * 32, block_tokens=16, handle=1
        )


class Copying:
    """Replicas that have `held` blocks, and bring the rest when they are let."""

    def __init__(self, held: int = 0, brought: int = 3) -> None:
        self.held, self.brought = held, brought
        self.go = asyncio.Event()
        self.asked: list[object] = []

    def here(self, opened: object, shard: int, keys: np.ndarray) -> int:
        return self.held

    async def bring(self, opened: object, prefix: object, request: object, wait_s: float, **more: object) -> int:
        self.asked.append((wait_s, more))
        await self.go.wait()
        return self.brought


def desk(known: Known, copying: Copying, draining: bool = False) -> Bringing:
    return Bringing(None, known, copying, LimitsConfig(), 4, lambda: draining)  # type: ignore[arg-type]


def request(**changes: object) -> peers.PeerBringRequest:
    told = peers.PeerBringRequest(
        namespace=namespace_digest(IDENTITY),
        layout=convert.layout_message(IDENTITY),
        tenant="default",
        keys=KEYS.tobytes(),
        deadline_ms=500_000,
    )
    told.MergeFrom(peers.PeerBringRequest(**changes))  # type: ignore[arg-type]
    return told


async def test_it_brings_for_a_while_from_the_asker_and_says_what_it_had() -> None:
    known, copying = Known(), Copying(held=1)
    copying.go.set()
    answer = await desk(known, copying).bring(ASKER, request())
    assert (answer.blocks, answer.held) == (3, 1) and known.opened == [IDENTITY]
    assert copying.asked == [(60.0, {"source": ASKER.id, "loud": True})]


async def test_what_is_there_is_answered_at_once() -> None:
    copying = Copying(held=3)
    answer = await desk(Known(), copying).bring(ASKER, request())
    assert (answer.blocks, answer.held) == (3, 3) and not copying.asked


async def test_so_many_at_once() -> None:
    copying = Copying()
    asked = desk(Known(), copying)
    under_way = [asyncio.ensure_future(asked.bring(ASKER, request())) for _ in range(BRINGS_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(Rejected, match="brings_max"):
        await asked.bring(ASKER, request())
    copying.go.set()
    await asyncio.gather(*under_way)
    assert (await asked.bring(ASKER, request())).blocks == 3


async def test_nothing_while_it_drains_and_nothing_of_what_was_cleared() -> None:
    copying = Copying()
    with pytest.raises(Rejected, match="draining") as refused:
        await desk(Known(), copying, draining=True).bring(ASKER, request())
    assert refused.value.limit == "draining"
    answer = await desk(Known(generation=1), copying).bring(ASKER, request())
    assert (answer.blocks, answer.held) == (0, 0) and not copying.asked


async def test_a_namespace_is_that_of_its_layout_and_requests_are_checked() -> None:
    asked = desk(Known(), Copying())
    for changes, field in (
        ({"tenant": "other"}, "namespace"),
        ({"generation": 1}, "namespace"),
        ({"shard": 1}, "shard"),
        ({"keys": b"x"}, "chain.keys"),
        ({"parent": b"x"}, "chain.parent"),
    ):
        with pytest.raises(ValueError, match=field):
            await asked.bring(ASKER, request(**changes))
    none = request()
    none.keys = b""
    with pytest.raises(ValueError, match="keys: none"):
        await asked.bring(ASKER, none)
