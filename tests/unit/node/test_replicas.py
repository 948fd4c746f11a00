"""What a node that copies others' blocks does about ways that break, and about who writes the same ones."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvstore.client import holders
from kvstore.client.steps import PutOutcome
from kvstore.config import LimitsConfig
from kvstore.directory.base import Member
from kvstore.errors import Rejected
from kvstore.node.far import FarCounts, Lent
from kvstore.node.pulls import Slots
from kvstore.node.replicas import Replicas
from kvstore.node.streams import Prefix
from kvstore.wire import framed
from transfer.errors import Failure, GrantInvalid, PeerUnreachable, Reason, TransferFailed, TransferFault
from transfer.offers import Carrier

BLOCKS, SIZE = 2, 64
KEYS = np.random.default_rng(1).integers(0, 256, (BLOCKS, 32), np.uint8)
NO_HINT: Any = lambda at: SimpleNamespace(family=1)  # noqa: E731 - of a prefix
OPENED: Any = SimpleNamespace(handle=0, digest=b"n" * 32, shards=[SimpleNamespace(part_bytes=[SIZE])])


class Way:
    def __init__(self) -> None:
        self.chosen = SimpleNamespace(path=SimpleNamespace(carrier=Carrier.TCP))
        self.closed = False

    async def close(self) -> None:
        self.closed = True


class World:
    """A holder that has all blocks, and reads of it that end with `fault`; None: never, though all is here by then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fault: TransferFault | None = None) -> None:
        self.fault, self.ways = fault, list[Way]()
        monkeypatch.setattr(holders, "parse_offer", lambda offer: offer)
        self.statuses, self.here = np.zeros(BLOCKS, np.uint8), False
        world = self

        def reserve(slots: Slots, *_: object) -> None:
            slots.statuses, slots.granted = world.statuses, np.flatnonzero(world.statuses == 0)

        monkeypatch.setattr(Slots, "reserve", reserve)
        monkeypatch.setattr(Slots, "_landed", self.landed)
        core = SimpleNamespace(
            new_owner=lambda: 1,
            owner_gone=lambda _: None,
            find=lambda *asked: np.full(len(asked[-1]), self.here),
        )
        host: Any = SimpleNamespace(
            bridge=SimpleNamespace(core=core),
            clock=SimpleNamespace(now_ns=lambda: 0),
            limits=LimitsConfig(),
            transfers=SimpleNamespace(connector=self),
            regions={Carrier.TCP: None},
            region=lambda *_: (Carrier.TCP, None),
        )
        lender: Any = SimpleNamespace(
            counts=FarCounts(),
            speeds=SimpleNamespace(read=lambda *_: None),
            give_back=lambda *_: None,
            lend=self.lend,
        )
        self.replicas = Replicas(host, lender, has_files=False)

    async def connect(self, offer: object, *, deadline_s: float) -> Way:
        self.ways.append(Way())
        return self.ways[-1]

    async def lend(self, *_: object) -> tuple[list[Lent], bool]:
        told = framed.LeaseResponse(offsets=[0] * BLOCKS, tickets=[0] * BLOCKS, checksums=bytes(8 * BLOCKS))
        told.sections.add(blocks=BLOCKS).grants.add(carrier=int(Carrier.TCP), descriptor=b"d")
        return [Lent(Member("holder:1", b"h" * 16, 5), 1, told)], False

    async def landed(self, *_: object) -> None:
        if self.fault is not None:
            raise self.fault
        self.here = True
        await asyncio.Event().wait()

    async def bring(self, wait_s: float = 5.0) -> int:
        request = framed.LeaseRequest()
        return await self.replicas.bring(OPENED, Prefix(KEYS, b"", NO_HINT), request, wait_s, loud=True)


def failed(reason: Reason) -> TransferFailed:
    return TransferFailed(
        reason.name,
        failures=[Failure(reason, tuple(range(BLOCKS)))],
        arrived=np.zeros(BLOCKS, np.bool_),
        checksums=np.zeros(BLOCKS, np.uint64),
    )


@pytest.mark.parametrize("fault", [failed(Reason.PEER_GONE), PeerUnreachable("gone")], ids=str)
async def test_a_way_that_broke_is_looked_for_anew(monkeypatch: pytest.MonkeyPatch, fault: TransferFault) -> None:
    """An endpoint gives up its connections after `reconnect_s`; the holder may be back after that, as it was."""
    world = World(monkeypatch, fault)
    assert await world.bring() == 0
    tried = len(world.ways)
    assert await world.bring() == 0 and len(world.ways) > tried
    await world.replicas.close()
    assert all(way.closed for way in world.ways)


@pytest.mark.parametrize("fault", [failed(Reason.LATE), failed(Reason.REVOKED), GrantInvalid("ended")], ids=str)
async def test_one_that_works_is_kept(monkeypatch: pytest.MonkeyPatch, fault: TransferFault) -> None:
    world = World(monkeypatch, fault)
    assert await world.bring() == 0 == await world.bring()
    assert len(world.ways) == 1


async def test_what_somebody_else_writes_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that puts the same prompt, or who brings a stretch that began before."""
    world = World(monkeypatch)
    world.statuses[:] = PutOutcome.PENDING
    bringing = asyncio.ensure_future(world.bring())
    await asyncio.sleep(0.05)
    assert not bringing.done()
    world.here = True
    assert await bringing == BLOCKS


async def test_but_no_longer_than_the_caller_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.statuses[:] = PutOutcome.PENDING
    assert await world.bring(0.05) == 0
    world.statuses[:] = PutOutcome.FULL
    with pytest.raises(Rejected, match="no room"):
        await world.bring()


async def test_what_came_before_the_time_was_over_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await World(monkeypatch).bring(0.05) == BLOCKS
