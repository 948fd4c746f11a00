"""Follows by a visitor rig's clients: what each answer lets them read, and what it must not."""

from __future__ import annotations

import asyncio
from itertools import accumulate
from typing import Any

import numpy as np

from kvstore.client.followed import Followed
from kvstore.tiers.base import Keys
from kvstore.wire import framed, store
from tests.model.visitor_parts import REFUSALS, Client, Follow
from tests.model.visitor_rig import BLOCK, PARTS, Rig, block_of
from transfer.batch import Batch
from transfer.errors import TransferFault
from transfer.offers import Carrier

STARTS = [0, *accumulate(PARTS)]


async def follow(rig: Rig, client: Client, keys: Keys, wait_s: float) -> None:
    number = next(client.numbers)
    client.follows[number] = one = Follow(number, keys, Followed(len(keys), len(PARTS)))
    await go_on(rig, client, one, wait_s, carriers=[int(Carrier.TCP)], **rig.named(keys))


async def go_on(rig: Rig, client: Client, one: Follow, wait_s: float, **named: Any) -> None:
    """One question: what was granted before is readable no more, and what is new is, and nothing else."""
    loop = asyncio.get_running_loop()
    began, connection, before = loop.time(), client.connection, one.followed.arrived.copy()
    request = framed.FollowRequest(lease=one.number, wait_ms=round(wait_s * 1e3), **named)
    try:
        told = framed.FollowResponse.FromString(await client.ask(store.METHOD_FOLLOW, request))
    except REFUSALS:
        rig.refused += 1
        client.follows.pop(one.number, None)
        return
    assert loop.time() - began < wait_s + 0.5, "later than it was asked to be"
    if client.connection != connection or one.number not in client.follows:
        return
    former, granted = one.granted, told.section.grants[0].descriptor if told.checksums else b""
    assert one.followed.told(told), "an answer that does not go on from those before it"
    one.granted = granted
    if former:
        assert not await read(rig, client, former, [(one.followed.offsets[0], PARTS[0])]), "readable still"
    if granted:
        await _read_new(rig, client, one, before, told, granted)
    if one.followed.abandoned:
        await leave(rig, client, one)


async def _read_new(
    rig: Rig, client: Client, one: Follow, before: list[int], told: framed.FollowResponse, granted: bytes
) -> None:
    before = before + [0] * (len(told.ready) - len(before))
    rows, right = [], []
    for i, (old, new) in enumerate(zip(before, told.ready, strict=True)):
        if new > old:
            rows.append((one.followed.offsets[i] + STARTS[old], STARTS[new] - STARTS[old]))
            right.append(block_of(one.keys[i].tobytes())[STARTS[old] : STARTS[new]])
            if new < len(PARTS):
                beyond = (one.followed.offsets[i] + STARTS[new], PARTS[new])
                assert not await read(rig, client, granted, [beyond]), "a part that is not recorded was read"
            one.followed.arrived[i] = new
    arrived = await read(rig, client, granted, rows)
    for found, expected in zip(arrived, right, strict=False):
        assert np.array_equal(found, expected), "wrong bytes"
        one.read += 1
        rig.read += 1


async def read(rig: Rig, client: Client, descriptor: bytes, rows: list[tuple[int, int]]) -> list[np.ndarray]:
    """What came, of all or nothing."""
    into = np.zeros((len(rows), BLOCK), np.uint8)
    region = await client.transport.register(into)
    try:
        way = await client.connected()
        (shown,) = await way.present([descriptor], deadline_s=1.0, fresh=True)
        table = [(region.id, i * BLOCK, shown.handle, at, length) for i, (at, length) in enumerate(rows)]
        await way.read(Batch(np.array(table, np.int64)), deadline_s=1.0)
    except TransferFault:
        return []
    finally:
        await client.transport.deregister(region)
    return [into[i, :length] for i, (_, length) in enumerate(rows)]


async def leave(rig: Rig, client: Client, one: Follow) -> None:
    client.follows.pop(one.number, None)
    try:
        await client.ask(store.METHOD_RELEASE, framed.ReleaseRequest(lease=one.number))
    except REFUSALS:  # its connection ended meanwhile, and all follows with it
        rig.refused += 1
    assert one.number not in client.visitor.follows._open, "left, and followed"
