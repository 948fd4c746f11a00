"""A device that fails, hangs or is slow under a client's calls: what is told, and that no answer comes before memory is
quiet. By every way that bytes take; the device is simulated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from kvstore import AsyncClient, Client, Ended, Namespace
from kvstore.errors import Poisoned, Unavailable
from tests.integration.device_rig import LAYERS, SMALL, Bytes, holding
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, layout, tokens
from transfer.testing.device import SimulatedDevice

PART = SIZE // LAYERS
VERBS = ["get", "put", "write"]


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


def connected(ns: Namespace, device: SimulatedDevice) -> int:
    """So that what follows, in little time, need not look for its way first. The copies so far."""
    chain = ns.chain(tokens(1, seed=99))
    array, _ = holding(device, blocks_of(chain))
    assert ns.put(chain, array).rejected == 0 and ns.get(chain, array).blocks == 1
    return device.copies


def some_verb(verb: str, ns: Namespace, chain: Bytes, array: object) -> Callable[[], object]:
    """One that moves blocks of `chain` to or from device memory."""
    if verb == "get":
        return lambda: ns.get(chain, array)
    if verb == "put":
        return lambda: ns.put(chain, array)

    def fill() -> None:
        with ns.reserve(chain) as slots:
            slots.write(0, array)

    return fill


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", ["broken", "hung"])
def test_memory_that_a_device_does_not_let_go_is_poisoned(
    ns: Namespace, device: SimulatedDevice, verb: str, fault: str
) -> None:
    chain = ns.chain(tokens(2))
    if verb == "get":
        ns.put(chain, blocks_of(chain))
    array, _ = device.array(2 * PART if verb == "write" else 2 * SIZE)
    connected(ns, device)
    setattr(device, fault, True)
    began = time.monotonic()
    with pytest.raises(Poisoned):
        deadlined(some_verb(verb, ns, chain, array), ns, device)
    assert time.monotonic() - began < 20
    setattr(device, fault, False)
    other, landed = device.array(2 * SIZE)
    if verb != "get":
        assert ns.lookup(chain).blocks == 0, "nothing of it was sealed"
        ns.put(chain, blocks_of(chain))
    assert ns.get(chain, other).blocks == 2, "other memory moves as before"
    assert np.array_equal(landed.reshape(2, SIZE), blocks_of(chain))


def deadlined(verb: Callable[[], object], ns: Namespace, device: SimulatedDevice | None = None) -> object:
    """With little time; with more of it where a slow machine has not come to the device in that."""
    copies, told = device.copies if device is not None else -1, None
    for within_s in (0.5, 2.0, 5.0):
        ns._deadline_s = within_s
        try:
            told = verb()
        except Unavailable:
            if device is None or device.copies > copies:
                raise
        finally:
            ns._deadline_s = 20
        if device is None or device.copies > copies:
            break
    return told


@pytest.mark.parametrize("verb", ["get", "put"])
def test_what_was_poisoned_moves_no_more(
    client: Client, ns: Namespace, device: SimulatedDevice, verb: str, way: str
) -> None:
    """Registered memory that a device did not let go of: transports refuse it from then on, and take other memory."""
    chain = ns.chain(tokens(2))
    if verb == "get":
        ns.put(chain, blocks_of(chain))
    array, _ = device.array(2 * SIZE)
    connected(ns, device)
    with client.register([array]):
        device.hung = True
        with pytest.raises(Poisoned):
            deadlined(some_verb(verb, ns, chain, array), ns, device)
        device.hung = False
        copies = device.copies
        if (verb, way) == ("put", "mapped"):  # no transport knows it, and it was only read
            assert ns.put(ns.chain(tokens(2, seed=9)), array).stored == 2
        else:
            with pytest.raises(Poisoned):
                some_verb(verb, ns, chain, array)()
            assert device.copies == copies
    other, content = holding(device, blocks_of(chain))
    assert ns.put(chain, other).rejected == 0
    content[:] = 0
    assert ns.get(chain, other).blocks == 2 and np.array_equal(content.reshape(2, SIZE), blocks_of(chain))


@pytest.mark.parametrize("verb", VERBS)
def test_a_deadline_passes_over_and_memory_is_quiet(
    address: str, device: SimulatedDevice, verb: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """What is under way ends, in its time; what has not begun does not begin."""
    monkeypatch.setattr("kvstore.transfers.QUIESCE_MAX_S", 10.0)
    with Client(address, transfers=SMALL, deadline_s=20) as client:
        ns = client.namespace(layout(request.node.name[:200]))
        passed_over(ns, device, verb)


def passed_over(ns: Namespace, device: SimulatedDevice, verb: str) -> None:
    chain = ns.chain(tokens(40))
    if verb == "get":
        ns.put(chain, blocks_of(chain))
    array, content = device.array(40 * (PART if verb == "write" else SIZE))
    before = connected(ns, device)
    device.latency_s = (0.1, 0.12)  # a copy; they follow one another, and there are as many as buffers are needed
    ns._deadline_s = 0.3
    told: object = None
    try:
        told = some_verb(verb, ns, chain, array)()
    except Exception as error:
        told = error
    ns._deadline_s = 20
    if verb == "get":
        assert told.ended is Ended.LATE and told.blocks < 40  # type: ignore[union-attr]
        whole = content[: told.blocks * SIZE].copy()  # type: ignore[union-attr]
        assert np.array_equal(whole.reshape(-1, SIZE), blocks_of(chain[: told.blocks]))  # type: ignore[union-attr]
    else:
        assert isinstance(told, Exception) or told.ended is Ended.LATE  # type: ignore[union-attr]
        assert not isinstance(told, Poisoned)
        assert ns.lookup(chain).blocks == 0
    copies = device.copies
    assert copies - before < len(content) >> 16, "all of it was copied, deadline or not"
    content[:] = 0x55
    time.sleep(0.3)
    assert (content == 0x55).all() and device.copies == copies, "the device was still being copied to or from"


@pytest.mark.parametrize("verb", VERBS)
def test_a_stream_that_does_not_end_makes_a_call_late(ns: Namespace, device: SimulatedDevice, verb: str) -> None:
    """Nothing of ours has touched the memory: it is the caller's as before."""
    chain = ns.chain(tokens(2))
    if verb == "get":
        ns.put(chain, blocks_of(chain))
    array, content = device.array(2 * PART if verb == "write" else 2 * SIZE)
    content[:] = 0x55
    before = connected(ns, device)
    array.streams.append(7)
    device.hung = True
    try:
        told = deadlined(some_verb(verb, ns, chain, array), ns)
    except Unavailable:
        assert verb == "write"
    else:
        assert told.ended is Ended.LATE  # type: ignore[attr-defined]
    assert device.copies == before and (content == 0x55).all()
    device.hung = False
    assert ns.lookup(chain).blocks == (2 if verb == "get" else 0)


@pytest.mark.parametrize("verb", VERBS)
async def test_cancelling_leaves_quiet_memory(
    address: str, device: SimulatedDevice, request: pytest.FixtureRequest, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.transfers.QUIESCE_MAX_S", 10.0)
    async with AsyncClient(address, transfers=SMALL) as client:
        ns = await client.namespace(layout(request.node.name[:200]))
        chain = ns.chain(tokens(24))
        expected = blocks_of(chain)
        if verb == "get":
            await ns.put(chain, expected)
        array, content = device.array(24 * (PART if verb == "write" else SIZE))
        device.latency_s = (0.05, 0.1)  # it is still going on after each of the pauses

        async def fill() -> None:
            async with await ns.reserve(chain) as slots:
                await slots.write(0, array)
                await slots.seal()

        for pause in (0.0, 0.004, 0.03, 0.06):
            if verb == "write":
                call = asyncio.create_task(fill())
            else:
                call = asyncio.create_task(ns.get(chain, array) if verb == "get" else ns.put(chain, array))
            await asyncio.sleep(pause)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            copies = device.copies
            content[:] = 0x55
            await asyncio.sleep(0.2)
            assert (content == 0x55).all() and device.copies == copies, f"touched after the answer ({pause} s)"
        if verb != "get":
            assert (await ns.lookup(chain)).blocks == 0


@pytest.mark.parametrize("registered", [True, False])
async def test_cancelling_what_hangs_tells_that_it_is_poisoned(
    address: str, device: SimulatedDevice, request: pytest.FixtureRequest, registered: bool
) -> None:
    async with AsyncClient(address, transfers=SMALL) as client:
        ns = await client.namespace(layout(request.node.name[:200]))
        chain = ns.chain(tokens(2))
        await ns.put(chain, blocks_of(chain))
        array, _ = device.array(2 * SIZE)
        device.hung = True
        with client.register([array] if registered else []):
            call = asyncio.create_task(ns.get(chain, array))
            while not device.copies:
                await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(Poisoned):
                await call
        device.hung = False
