"""A get of some parts of each block brings exactly these bytes, verified by themselves: by every way."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections.abc import Iterator
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore import AsyncClient, CacheGroup, Client, Ended, Extents, GroupKind, KVLayout, Namespace
from tests.integration.nodes import NodeProcess, blocks_of, eventually, tokens

PARTS = (
    4096,
    100,
    8192,
    4097,
    1,
    12_000,
    5000,
)  # in no way alike: leaves end inside them, and they begin inside leaves
SIZE = sum(PARTS)
STARTS = (0, *accumulate(PARTS))
BLOCKS = 5


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node"), address="127.0.0.1:0", metrics="127.0.0.1:0") as node:
        yield node


def uneven(model: str) -> KVLayout:
    group = CacheGroup(name="state", kind=GroupKind.STATE, layer_bytes=PARTS)
    return KVLayout(
        engine="test", model=model, revision="1", dtype="bfloat16", content_format="test/1", block_tokens=4,
        groups=(group,),
    )  # fmt: skip


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    return str(request.node.name[:200])


@pytest.fixture
def ns(address: str, model: str) -> Iterator[Namespace]:
    with Client(address, deadline_s=20) as client:
        yield client.namespace(uneven(model))


@pytest.fixture
def beside(node: NodeProcess, model: str) -> Iterator[Namespace]:
    """The same namespace, the node's memory mapped."""
    with Client(node.address) as client:
        yield client.namespace(uneven(model))


def stored(ns: Namespace, blocks: int = BLOCKS) -> tuple[np.ndarray, np.ndarray]:
    chain = ns.chain(tokens(blocks))
    expected = blocks_of(chain, SIZE)
    assert ns.put(chain, expected).rejected == 0
    return chain, expected


def size_of(first: int, end: int) -> int:
    return STARTS[end] - STARTS[first]


def cut(expected: np.ndarray, first: int, end: int) -> np.ndarray:
    return expected[:, STARTS[first] : STARTS[end]]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cuts=st.sets(st.integers(1, len(PARTS) - 1)), pieces=st.integers(1, 3))
def test_any_cut_into_ranges_brings_the_same_bytes(ns: Namespace, cuts: set[int], pieces: int) -> None:
    """Range after range into memory that is scattered otherwise each time, and nothing beside."""
    chain, expected = stored(ns)
    whole = np.zeros((BLOCKS, SIZE), np.uint8)
    assert ns.get(chain, whole).ended is Ended.COMPLETE
    assert np.array_equal(whole, expected)
    apart = np.zeros((BLOCKS, SIZE), np.uint8)
    for first, end in pairwise((0, *sorted(cuts), len(PARTS))):
        size = size_of(first, end)
        edges = sorted({0, *(size * i // pieces for i in range(1, pieces)), size})
        rows = [
            [(0, block * SIZE + STARTS[first] + at, upto - at) for at, upto in pairwise(edges)]
            for block in range(BLOCKS)
        ]
        before = apart.copy()
        got = ns.get(chain, Extents([apart], np.array(rows, np.int64)), parts=range(first, end))
        assert (got.blocks, got.ended) == (BLOCKS, Ended.COMPLETE)
        cut(before, first, end)[:] = cut(expected, first, end)
        assert np.array_equal(apart, before), "these bytes and no others"
    assert np.array_equal(apart, expected)


def test_parts_of_a_chain_of_many_windows(ns: Namespace) -> None:
    blocks = 300  # a window is a quarter of 16 MiB
    chain, expected = stored(ns, blocks)
    into = np.zeros((blocks, size_of(1, 4)), np.uint8)
    got = ns.get(chain, into, parts=(1, 4))
    assert (got.blocks, got.ended) == (blocks, Ended.COMPLETE)
    assert np.array_equal(into, cut(expected, 1, 4))
    assert ns.get(ns.chain(tokens(2, seed=9)), into, parts=(1, 4)).ended is Ended.MISS


def test_a_corrupt_part_is_found_by_who_gets_it(ns: Namespace, beside: Namespace) -> None:
    chain, expected = stored(ns, 1)
    rest = ns.chain(tokens(4))[1:]
    with beside.reserve(rest, parent=chain[0], position=1) as slots:
        arrays = [slots.array(block) for block in slots.granted]
        for array, block in zip(arrays, blocks_of(rest, SIZE), strict=True):
            array[:] = block
        slots.seal()
    chain = np.concatenate([chain, rest])
    expected = blocks_of(chain, SIZE)
    arrays[1][STARTS[5] + 7000] ^= 1  # block 2, part 5
    for first, end in ((0, 5), (6, 7)):
        into = np.zeros((4, size_of(first, end)), np.uint8)
        assert ns.get(chain, into, parts=(first, end)).ended is Ended.COMPLETE
        assert np.array_equal(into, cut(expected, first, end))
    into = np.zeros((4, size_of(5, 6)), np.uint8)
    got = ns.get(chain, into, parts=(5, 6))
    assert (got.blocks, got.ended) == (2, Ended.CORRUPT)
    assert np.array_equal(into[:2], cut(expected, 5, 6)[:2])
    eventually(lambda: ns.lookup(chain).blocks == 2)


def counted(node: NodeProcess) -> tuple[float, ...]:
    """Gets, blocks asked for, blocks that arrived, and bytes that moved."""
    where = next(address for address in node.facts["addresses"] if address.endswith("/metrics"))
    with urllib.request.urlopen(where, timeout=10) as response:
        text = response.read().decode()
    names = (
        "gets_total",
        "get_blocks_asked_total",
        r'get_blocks_hit_total\{tier="memory"\}',
        r'path_bytes_total\{path="get_(?:mapped|transferred)"\}',
    )
    return tuple(sum(map(float, re.findall(rf"^kvstore_{name} (\S+)", text, re.MULTILINE))) for name in names)


def settled(node: NodeProcess) -> tuple[float, ...]:
    """Once gets of before were counted, which clients tell of a moment later."""
    last: tuple[float, ...] = ()
    while (now := counted(node)) != last:
        last = now
        time.sleep(0.2)
    return now


def test_blocks_count_as_hits_once(node: NodeProcess, ns: Namespace) -> None:
    chain, _ = stored(ns)
    gets, asked, hit, moved = settled(node)
    for part in reversed(range(len(PARTS))):
        assert ns.get(chain, bytearray(BLOCKS * PARTS[part]), parts=(part, part + 1)).blocks == BLOCKS
    eventually(lambda: counted(node) == (gets + 1, asked + BLOCKS, hit + BLOCKS, moved + BLOCKS * SIZE))
    assert ns.get(chain, bytearray(BLOCKS * SIZE)).blocks == BLOCKS
    twice = gets + 2, asked + 2 * BLOCKS, hit + 2 * BLOCKS, moved + 2 * BLOCKS * SIZE
    eventually(lambda: counted(node) == twice)


@pytest.mark.parametrize(
    ("parts", "error", "text"),
    [
        ((0, 8), ValueError, r"parts: \(0, 8\), must be at least one of 7"),
        ((3, 3), ValueError, r"parts: \(3, 3\)"),
        ((-1, 2), ValueError, r"parts: \(-1, 2\)"),
        (range(0, 6, 2), TypeError, r"parts: range\(0, 6, 2\), must be"),
        (3, TypeError, "parts: 3, must be"),
        ((0.0, 1.0), TypeError, "parts: "),
        ((1, 2), ValueError, "into: 99 bytes, must be at least 100: 1 blocks of 100 bytes"),
    ],
)
def test_what_the_caller_got_wrong_is_named(ns: Namespace, parts: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ns.get(ns.chain(tokens(1)), bytearray(99), parts=parts)  # type: ignore[arg-type]


async def test_layers_that_are_awaited(address: str, model: str) -> None:
    """As an engine loads them: all layers under way at once."""
    async with AsyncClient(address) as client:
        ns = await client.namespace(uneven(model))
        chain = ns.chain(tokens(BLOCKS))
        expected = blocks_of(chain, SIZE)
        await ns.put(chain, expected)
        layers = [np.zeros((BLOCKS, size), np.uint8) for size in PARTS]
        gets = [ns.get(chain, layer, parts=(part, part + 1)) for part, layer in enumerate(layers)]
        assert [got.blocks for got in await asyncio.gather(*gets)] == [BLOCKS] * len(PARTS)
        assert np.array_equal(np.concatenate(layers, axis=1), expected)
