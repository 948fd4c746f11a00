"""Blocks whose bytes lie in several buffers, as keys and values with memory of their own: a part's in two of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from kvstore import Client, Extents, Namespace, native
from kvstore.wire import framed
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, layout, tokens
from tests.integration.test_moving import Stranger
from transfer.offers import Carrier

BLOCKS = 3


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path, address="127.0.0.1:0") as node:
        yield node


@pytest.fixture
def ns(address: str) -> Iterator[Namespace]:
    with Client(address, deadline_s=20) as client:
        yield client.namespace(layout())


@pytest.fixture
async def stranger(node: NodeProcess) -> AsyncIterator[Stranger]:
    stranger = Stranger(node, by_tcp=True)
    try:
        yield stranger
    finally:
        await stranger.close()


@pytest.mark.parametrize("step", [SIZE // 8, 1000, SIZE // 4])
def test_a_part_lies_in_two_buffers(ns: Namespace, step: int) -> None:
    """A buffer ends where a leaf does, anywhere, and where a part does."""
    chain = ns.chain(tokens(BLOCKS))
    expected = blocks_of(chain)
    buffers = [np.zeros(BLOCKS * SIZE + 64, np.uint8)[64:] for _ in range(2)]
    cuts = [*range(0, SIZE, step), SIZE]
    rows = [[(i % 2, block * SIZE + a, b - a) for i, (a, b) in enumerate(pairwise(cuts))] for block in range(BLOCKS)]
    for block, row in enumerate(rows):
        for which, at, length in row:
            buffers[which][at : at + length] = expected[block, at - block * SIZE :][:length]
    scattered = Extents(buffers, np.array(rows, dtype=np.int64))
    assert ns.put(chain, scattered).stored == BLOCKS
    whole = np.zeros((BLOCKS, SIZE), np.uint8)
    assert ns.get(chain, whole).blocks == BLOCKS
    assert np.array_equal(whole, expected)
    for buffer in buffers:
        buffer[:] = 0
    assert ns.get(chain, scattered).blocks == BLOCKS
    back = [np.concatenate([buffers[which][at : at + length] for which, at, length in row]) for row in rows]
    assert np.array_equal(np.stack(back), expected)


def test_a_layer_at_a_time(ns: Namespace) -> None:
    chain = ns.chain(tokens(BLOCKS))
    expected, part = blocks_of(chain), SIZE // 4
    keys, values = (np.ascontiguousarray(expected.reshape(BLOCKS, 4, 2, part // 2)[:, :, i]) for i in range(2))
    at = np.arange(BLOCKS) * (SIZE // 2)
    with ns.reserve(chain) as slots:
        for layer in range(4):
            table = np.zeros((BLOCKS, 2, 3), np.int64)
            for which in range(2):
                table[:, which] = np.stack(
                    (np.full(BLOCKS, which), at + layer * part // 2, np.full(BLOCKS, part // 2)), 1
                )
            slots.write(layer, Extents([keys, values], table))
            slots.publish(layer)
        slots.seal()
    into = np.zeros((BLOCKS, SIZE), np.uint8)
    assert ns.get(chain, into).blocks == BLOCKS and np.array_equal(into, expected)


async def test_what_did_not_arrive_is_not_stored(node: NodeProcess, stranger: Stranger) -> None:
    """One of the two grants has ended: blocks of the other alone are whole."""
    chain = np.random.default_rng(1).integers(256, size=(BLOCKS, 32), dtype=np.uint8)
    expected = blocks_of(chain)
    memory = [expected.copy(), expected.copy()]
    grants = []
    for one in memory:
        region = await stranger.transport.register(one, writable=False)
        grants.append(await stranger.transport.grant(region, [(0, one.nbytes)], lifetime_s=60))
    half = SIZE // 2 - 100
    pieces = [
        [(which, block * SIZE, half), (other, block * SIZE + half, SIZE - half)]
        for block, (which, other) in enumerate([(0, 0), (0, 1), (0, 0)])
    ]
    await stranger.connected()
    await stranger.transport.revoke(grants[1:])
    told = await stranger.pull(
        chain,
        framed.Source(
            carrier=int(Carrier.TCP),
            incarnation=stranger.transport.incarnation,
            descriptors=[grant.descriptor for grant in grants],
            pieces=np.array(pieces, "<i8").tobytes(),
        ),
    )
    assert list(told.outcomes) == [0, 5, 0] and "revoked" in told.failure
    assert (node.tier()["sealed"], node.tier()["reserved"]) == (2, 0)
    for block in (0, 2):
        lease = stranger.lease(chain[block : block + 1])
        assert lease.checksums == checksums(expected[block])


def checksums(block: np.ndarray) -> bytes:
    return np.array([native.part_checksum(part) for part in block.reshape(4, -1)], "<u8").tobytes()
