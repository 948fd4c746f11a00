"""A client's device memory on a real device, by every way that bytes take: cupy's arrays and torch's tensors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from kvstore import AsyncClient, Client, Ended, Extents, Namespace
from kvstore.config import TransferConfig
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, layout, tokens
from transfer.devices.cupy_bridge import cupy_module

LAYERS = 4
PART = SIZE // LAYERS
SMALL = TransferConfig(staging_bytes_max=1 << 20, staging_buffer_bytes=128 << 10)
Bytes = np.ndarray


@dataclass(frozen=True)
class Framework:
    """How to make device memory of bytes, and to look at it."""

    name: str
    cupy: Any
    torch: Any = None

    def holding(self, data: Bytes) -> Any:
        made = self.cupy.asarray(data) if self.torch is None else self.torch.from_numpy(data.copy()).cuda()
        self.settle()
        return made

    def zeros(self, count: int) -> Any:
        return self.holding(np.zeros(count, np.uint8))

    def seen(self, array: Any) -> Bytes:
        self.settle()
        return self.cupy.asnumpy(array) if self.torch is None else array.cpu().numpy()

    def settle(self) -> None:
        self.cupy.cuda.runtime.deviceSynchronize()


@pytest.fixture(params=["cupy", "torch"])
def framework(request: pytest.FixtureRequest) -> Framework:
    if request.param == "cupy":
        return Framework("cupy", cupy_module())
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch is built without CUDA")
    return Framework("torch", cupy_module(), torch)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node"), address="127.0.0.1:0", memory="256MiB") as node:
        yield node


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, transfers=SMALL, deadline_s=60) as client:
        yield client


@pytest.fixture
def ns(client: Client, request: pytest.FixtureRequest) -> Namespace:
    return client.namespace(layout(request.node.name[:200]))


def test_blocks_leave_a_device_and_land_on_one(ns: Namespace, framework: Framework) -> None:
    chain = ns.chain(tokens(200))
    expected = blocks_of(chain)
    assert ns.put(chain, framework.holding(expected.reshape(-1))).stored == 200
    on_host = np.zeros_like(expected)
    assert ns.get(chain, on_host).blocks == 200 and np.array_equal(on_host, expected)
    into = framework.zeros(200 * SIZE + 77)
    got = ns.get(chain, into)
    assert (got.blocks, got.ended) == (200, Ended.COMPLETE)
    found = framework.seen(into)
    assert np.array_equal(found[: 200 * SIZE].reshape(expected.shape), expected) and not found[200 * SIZE :].any()


@pytest.mark.parametrize("on_device", [(1, 1, 1, 1), (1, 0, 1, 0)])
def test_layers_are_scattered_and_gathered(
    client: Client, ns: Namespace, framework: Framework, on_device: tuple[int, ...]
) -> None:
    """As an engine's cache: one buffer a layer, registered once, and what lies between the pieces stays as it is."""
    chain, rng = ns.chain(tokens(40)), np.random.default_rng(1)
    expected, at = blocks_of(chain), rng.permutation(64)[:40] * (PART + 5)
    contents = [np.full(64 * (PART + 5), 0xAA, np.uint8) for _ in range(LAYERS)]
    empty = np.full(64 * (PART + 5), 0xAA, np.uint8)
    for part, content in enumerate(contents):
        for block, offset in enumerate(at):
            content[offset : offset + PART] = expected[block, part * PART : (part + 1) * PART]
    sources = [framework.holding(one) if here else one for one, here in zip(contents, on_device, strict=True)]
    targets = [framework.holding(empty) if here else empty.copy() for here in on_device]
    with client.register([*sources, *targets]):
        assert ns.put(chain, Extents.strided(sources, at, PART)).stored == 40
        for _ in range(2):
            assert ns.get(chain, Extents.strided(targets, at, PART)).blocks == 40
    for content, target, here in zip(contents, targets, on_device, strict=True):
        assert np.array_equal(framework.seen(target) if here else target, content)


def test_slots_are_filled_part_by_part(ns: Namespace, framework: Framework) -> None:
    chain = ns.chain(tokens(30))
    expected = blocks_of(chain)
    with ns.reserve(chain) as slots:
        for part in range(LAYERS):
            ours = np.ascontiguousarray(expected[:, part * PART : (part + 1) * PART]).reshape(-1)
            slots.write(part, framework.holding(ours))
            slots.publish(part)
        assert slots.seal().stored == 30
    into = np.zeros_like(expected)
    assert ns.get(chain, into).blocks == 30 and np.array_equal(into, expected)


def test_tensors_of_other_types_too_that_numpy_does_not_know(ns: Namespace, framework: Framework) -> None:
    if framework.torch is None:
        pytest.skip("of torch's types")
    chain = ns.chain(tokens(3))
    expected = blocks_of(chain)
    source = framework.holding(expected.reshape(-1)).view(framework.torch.float16)
    assert ns.put(chain, source).stored == 3
    into = framework.zeros(3 * SIZE).view(framework.torch.bfloat16)
    assert ns.get(chain, into).blocks == 3
    assert np.array_equal(framework.seen(into.view(framework.torch.uint8)).reshape(expected.shape), expected)


def test_the_stream_that_cupy_names_is_waited_for(ns: Namespace) -> None:
    """A stream with much to do before the bytes are those that are to be put."""
    cupy = cupy_module()
    chain = ns.chain(tokens(100))
    expected = blocks_of(chain).reshape(-1)
    pinned, array, work = cupy.asarray(expected), cupy.zeros(100 * SIZE, cupy.uint8), cupy.zeros(64 << 20, cupy.uint8)
    cupy.cuda.runtime.deviceSynchronize()
    with cupy.cuda.Stream(non_blocking=True):
        for value in range(200):
            work.fill(value)
        array[...] = pinned
        assert ns.put(chain, array).stored == 100
    into = np.zeros(100 * SIZE, np.uint8)
    assert ns.get(chain, into).blocks == 100 and np.array_equal(into, expected)


async def test_cancelling_leaves_quiet_memory(
    address: str, framework: Framework, request: pytest.FixtureRequest
) -> None:
    async with AsyncClient(address, transfers=SMALL) as client:
        ns = await client.namespace(layout(request.node.name[:200]))
        chain = ns.chain(tokens(400))
        assert (await ns.put(chain, framework.holding(blocks_of(chain).reshape(-1)))).stored == 400
        into = framework.zeros(400 * SIZE)
        for pause in (0.0, 0.001, 0.003, 0.006):
            call = asyncio.create_task(ns.get(chain, into))
            await asyncio.sleep(pause)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)  # it may have been over
            into[...] = 0
            framework.settle()
            await asyncio.sleep(0.02)
            assert not framework.seen(into).any(), f"written after the answer ({pause} s)"
        assert (await ns.get(chain, into)).blocks == 400
        assert np.array_equal(framework.seen(into).reshape(400, SIZE), blocks_of(chain))
