"""A client's device memory, by every way that bytes take. The device is simulated: its copies end later than they were
asked for, so that an answer before they are over is found out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest

from kvstore import AsyncClient, Client, Ended, Extents, Namespace, PutOutcome
from kvstore.config import TransferConfig
from kvstore.errors import Rejected
from tests.integration.device_rig import LAYERS, SMALL, Bytes, holding
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, eventually, layout, tokens
from transfer.devices import CudaUnavailable, DeviceMemory
from transfer.devices.process import Devices
from transfer.testing.device import DeviceArray, SimulatedDevice

PART = SIZE // LAYERS


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node"), address="127.0.0.1:0", memory="32MiB") as node:
        yield node


@pytest.fixture
def client(address: str, device: SimulatedDevice) -> Iterator[Client]:
    with Client(address, transfers=SMALL, deadline_s=20) as client:
        yield client


@pytest.fixture
def ns(client: Client, request: pytest.FixtureRequest) -> Namespace:
    return client.namespace(layout(request.node.name[:200]))


# ---- journeys -------------------------------------------------------------------------------------------------------


def test_blocks_leave_a_device_and_land_on_one(ns: Namespace, device: SimulatedDevice) -> None:
    chain = ns.chain(tokens(21))
    expected = blocks_of(chain)
    source, content = holding(device, expected)
    assert ns.put(chain, source).stored == 21
    content[:] = 0  # the answer has been given: nobody reads it any more
    on_host = np.zeros_like(expected)
    assert ns.get(chain, on_host).blocks == 21 and np.array_equal(on_host, expected)
    into, landed = device.array(21 * SIZE + 77)
    got = ns.get(chain, into)
    assert (got.blocks, got.tiers.tolist(), got.ended) == (21, [1] * 21, Ended.COMPLETE)
    assert np.array_equal(landed[: 21 * SIZE].reshape(expected.shape), expected)
    assert not landed[21 * SIZE :].any()


def test_what_is_held_is_told_so_and_stays(ns: Namespace, device: SimulatedDevice) -> None:
    chain = ns.chain(tokens(4))
    expected = blocks_of(chain)
    ns.put(chain[:2], expected[:2])
    source, _ = holding(device, np.concatenate((np.full((2, SIZE), 9, np.uint8), expected[2:])))
    stored = ns.put(chain, source)
    assert stored.outcomes.tolist() == [PutOutcome.HELD, PutOutcome.HELD, PutOutcome.STORED, PutOutcome.STORED]
    assert ns.put(chain, source).held == 4
    into = np.zeros_like(expected)
    assert ns.get(chain, into).blocks == 4 and np.array_equal(into, expected)


@pytest.mark.parametrize("on_device", [(1, 1, 1, 1), (1, 0, 1, 0), (0, 0, 0, 1)])
def test_layers_are_scattered_and_gathered(ns: Namespace, device: SimulatedDevice, on_device: tuple[int, ...]) -> None:
    """One buffer a layer, some of a device; what lies between the pieces is touched by nobody."""
    chain, rng = ns.chain(tokens(6)), np.random.default_rng(1)
    expected = blocks_of(chain)
    at = 3 + rng.permutation(12)[:6] * (PART + 5)

    def layer(here: int) -> tuple[object, Bytes]:
        if here:
            return holding(device, np.full(12 * (PART + 5) + 3, 0xAA, np.uint8))
        host = np.full(12 * (PART + 5) + 3, 0xAA, np.uint8)
        return host, host

    sources, targets = [layer(here) for here in on_device], [layer(here) for here in on_device]
    for part, (_, content) in enumerate(sources):
        for block, offset in enumerate(at):
            content[offset : offset + PART] = expected[block, part * PART : (part + 1) * PART]
    assert ns.put(chain, Extents.strided([one for one, _ in sources], at, PART)).stored == 6
    assert ns.get(chain, Extents.strided([one for one, _ in targets], at, PART)).blocks == 6
    for (_, there), (_, here) in zip(sources, targets, strict=True):
        assert np.array_equal(there, here)


def test_pieces_of_odd_sizes(ns: Namespace, device: SimulatedDevice) -> None:
    """Pieces that end inside parts and leaves: put from a device, fetched into a device and the host in turn."""
    chain = ns.chain(tokens(3))
    expected = blocks_of(chain)
    cuts = list(pairwise([0, 1, 4097, 5000, 20_000, 33_333, SIZE]))
    source, _ = holding(device, expected, before=7)
    table = np.array([[(0, block * SIZE + a + 7, b - a) for a, b in cuts] for block in range(3)], np.int64)
    assert ns.put(chain, Extents([source], table)).stored == 3
    into, landed = holding(device, np.full(3 * SIZE + 14, 0xAA, np.uint8))
    beside = np.full(3 * SIZE + 14, 0xAA, np.uint8)
    table[:, 1::2, 0] = 1
    assert ns.get(chain, Extents([into, beside], table)).blocks == 3
    for block in range(3):
        for i, (start, end) in enumerate(cuts):
            place = (landed, beside)[i % 2][block * SIZE + start + 7 : block * SIZE + end + 7]
            assert np.array_equal(place, expected[block, start:end])
            place[:] = 0xAA
    assert (landed == 0xAA).all() and (beside == 0xAA).all(), "bytes outside the pieces were written"


def test_a_buffer_a_block(ns: Namespace, device: SimulatedDevice) -> None:
    chain = ns.chain(tokens(5))
    expected = blocks_of(chain)
    sources = [expected[i] if i == 2 else holding(device, expected[i])[0] for i in range(5)]
    assert ns.put(chain, sources).stored == 5
    targets = [device.array(SIZE) for _ in range(5)]
    host = np.zeros(SIZE, np.uint8)
    assert ns.get(chain, [host if i == 2 else targets[i][0] for i in range(5)]).blocks == 5
    for i in range(5):
        assert np.array_equal(host if i == 2 else targets[i][1], expected[i])


def test_slots_are_filled_part_by_part(ns: Namespace, device: SimulatedDevice) -> None:
    chain = ns.chain(tokens(4))
    expected = blocks_of(chain)
    ns.put(chain[:1], expected[:1])
    with ns.reserve(chain) as slots:
        assert slots.granted == (1, 2, 3)
        for part in range(LAYERS):
            ours = np.ascontiguousarray(expected[:, part * PART : (part + 1) * PART])
            source = ours if part == 1 else holding(device, ours)[0]
            slots.write(part, source)
            if part < 2:
                slots.publish(part)
        assert slots.seal().stored == 3
    into = np.zeros_like(expected)
    assert ns.get(chain, into).blocks == 4 and np.array_equal(into, expected)


def test_registered_memory_is_found_again(client: Client, ns: Namespace, device: SimulatedDevice) -> None:
    chain = ns.chain(tokens(6))
    expected = blocks_of(chain)
    source, content = holding(device, expected)
    into, landed = device.array(6 * SIZE)
    with client.register([source, into]):
        for first in (0, 3):
            ours = slice(first, first + 3)
            table = np.array([[(0, i * SIZE, SIZE)] for i in range(first, first + 3)], np.int64)
            parent = chain[first - 1] if first else None
            put = ns.put(chain[ours], Extents([source], table), parent=parent, position=first)
            assert put.stored == 3
            assert ns.get(chain[ours], Extents([into], table), position=first).blocks == 3
    assert np.array_equal(landed, content)
    other, seen = device.array(6 * SIZE)
    assert ns.get(chain, other).blocks == 6 and np.array_equal(seen, content)


def test_a_hole_ends_a_get(ns: Namespace, device: SimulatedDevice) -> None:
    chain = ns.chain(tokens(5))
    ns.put(chain[:3], blocks_of(chain[:3]))
    into, landed = device.array(5 * SIZE)
    got = ns.get(chain, into)
    assert (got.blocks, got.ended) == (3, Ended.MISS)
    assert np.array_equal(landed[: 3 * SIZE].reshape(3, SIZE), blocks_of(chain[:3])) and not landed[3 * SIZE :].any()


def test_bytes_that_changed_in_memory_are_never_handed_out(
    ns: Namespace, device: SimulatedDevice, node: NodeProcess, request: pytest.FixtureRequest
) -> None:
    chain = ns.chain(tokens(3))
    expected = blocks_of(chain)
    with Client(node.address) as beside, beside.namespace(layout(request.node.name[:200])).reserve(chain) as slots:
        arrays = [slots.array(block) for block in range(3)]
        for array, block in zip(arrays, expected, strict=True):
            array[:] = block
        slots.seal()
    arrays[1][40_000] ^= 1
    into, landed = device.array(3 * SIZE)
    got = ns.get(chain, into)
    assert (got.blocks, got.ended) == (1, Ended.CORRUPT)
    assert np.array_equal(landed[:SIZE], expected[0])
    eventually(lambda: ns.lookup(chain).blocks == 1)


# ---- streams --------------------------------------------------------------------------------------------------------


def test_the_stream_that_an_array_names_is_waited_for(client: Client, ns: Namespace, device: SimulatedDevice) -> None:
    """Named at the call, also where the array was registered before."""
    chain = ns.chain(tokens(4))
    expected = blocks_of(chain)
    source, content = device.array(2 * SIZE)
    into, landed = device.array(2 * SIZE)
    source.streams.append(7)
    with client.register([source]):
        for first, stream in ((0, 7), (2, 8)):
            ours = expected[first : first + 2].reshape(-1)
            source.streams.append(stream)
            device.producers[stream] = [lambda ours=ours: np.copyto(content, ours)]  # type: ignore[misc]
            parent = chain[first - 1] if first else None
            assert ns.put(chain[first : first + 2], source, parent=parent, position=first).stored == 2
    into.streams.append(9)
    device.producers[9] = [lambda: landed.fill(0xEE)]  # what was to be done before the get, and not after it
    assert ns.get(chain[2:], into, position=2).blocks == 2
    assert np.array_equal(landed.reshape(2, SIZE), expected[2:])
    whole = np.zeros_like(expected)
    assert ns.get(chain, whole).blocks == 4 and np.array_equal(whole, expected)
    assert device.waited_for == [7, 8, 9]


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_by_name(ns: Namespace, device: SimulatedDevice) -> None:
    chain = ns.chain(tokens(2))
    array, content = device.array(2 * SIZE)
    locked = DeviceArray(DeviceMemory(array.memory.address, 2 * SIZE, 0, writable=False))
    with pytest.raises(ValueError, match="into: is read-only"):
        ns.get(chain, locked)
    with pytest.raises(ValueError, match=r"into\.buffers\[0\]: is read-only"):
        ns.get(chain, Extents.strided([locked], [0, SIZE], SIZE))
    with pytest.raises(ValueError, match=f"into: {2 * SIZE} bytes, must be at least"):
        ns.get(ns.chain(tokens(3)), array)
    with pytest.raises(ValueError, match=f"source: {2 * SIZE} bytes, must be {SIZE}"):
        ns.put(chain[:1], array)
    content[:] = blocks_of(chain).reshape(-1)
    assert ns.put(chain, locked).stored == 2, "what is read-only may be put"


@pytest.mark.parametrize("lack", ["no cupy", "not allowed"])
def test_what_a_process_lacks_is_told_with_the_argument(
    address: str, device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, lack: str
) -> None:
    config = SMALL
    if lack == "no cupy":
        monkeypatch.setattr("kvstore.transfers.devices_of", lambda _: Devices(unavailable=lambda: "no cupy"))
    else:
        config = TransferConfig(device_ways=("dma_buf",))
    array, content = device.array(2 * SIZE)
    with Client(address, transfers=config) as client:
        ns = client.namespace(layout(request.node.name[:200]))
        chain = ns.chain(tokens(2))
        with pytest.raises(ValueError, match=rf"source: lies on a device: .*{lack}"):
            ns.put(chain, array)
        with ns.reserve(chain) as slots, pytest.raises(ValueError, match=rf"sources: lies on a device: .*{lack}"):
            slots.write(0, DeviceArray(DeviceMemory(array.memory.address, 2 * PART, 0)))
        assert ns.put(chain, blocks_of(chain)).stored == 2, "host memory moves all the same"
        with pytest.raises(ValueError, match=rf"into: lies on a device: .*{lack}"):
            ns.get(chain, array)
        assert not content.any()


def test_nothing_of_a_framework_is_asked_for_before_device_memory_comes(
    address: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    asked: list[int] = []

    def missing() -> ModuleType:
        asked.append(1)
        raise CudaUnavailable("no cupy")

    monkeypatch.setattr("transfer.devices.cupy_bridge.cupy_module", missing)
    with Client(address) as client:
        ns = client.namespace(layout(request.node.name[:200]))
        chain = ns.chain(tokens(2))
        ns.put(chain, blocks_of(chain))
        assert ns.get(chain, bytearray(2 * SIZE)).blocks == 2 and not asked
        with pytest.raises(ValueError, match="into: lies on a device: no cupy"):
            ns.get(chain, DeviceMemory(1 << 44, 2 * SIZE, 0))
        assert asked


def test_host_copies_of_device_memory_have_a_limit(
    address: str, device: SimulatedDevice, request: pytest.FixtureRequest, way: str
) -> None:
    with Client(address, transfers=replace(SMALL, lent_bytes_max=SIZE)) as client:
        ns = client.namespace(layout(request.node.name[:200]))
        chain = ns.chain(tokens(2))
        source, _ = holding(device, blocks_of(chain))
        if way == "mapped":  # nothing is lent
            assert ns.put(chain, source).stored == 2
            return
        with pytest.raises(Rejected, match="lent_bytes_max") as refused:
            ns.put(chain, source)
        assert refused.value.limit == "lent_bytes_max"
        one = DeviceArray(DeviceMemory(source.memory.address, SIZE, 0))
        assert ns.put(chain[:1], one).stored == 1


# ---- the async face -------------------------------------------------------------------------------------------------


async def test_the_async_face_does_the_same(
    address: str, device: SimulatedDevice, request: pytest.FixtureRequest
) -> None:
    async with AsyncClient(address, transfers=SMALL) as client:
        ns = await client.namespace(layout(request.node.name[:200]))
        chain = ns.chain(tokens(9))
        expected = blocks_of(chain)
        source, _ = holding(device, expected[:5])
        assert (await ns.put(chain[:5], source)).stored == 5
        async with await ns.reserve(chain[5:], parent=chain[4], position=5) as slots:
            for part in range(LAYERS):
                ours = np.ascontiguousarray(expected[5:, part * PART : (part + 1) * PART])
                await slots.write(part, holding(device, ours)[0])
                await slots.publish(part)
            assert (await slots.seal()).stored == 4
        into, landed = device.array(9 * SIZE)
        assert (await ns.get(chain, into)).blocks == 9
        assert np.array_equal(landed.reshape(expected.shape), expected)
