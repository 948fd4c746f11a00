"""KV events over ZeroMQ, of real node processes: whoever routes by them agrees with the node's own lookups, whatever
happened in between.
"""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import msgspec
import numpy as np
import pytest
import zmq

from kvstore import Client, Namespace
from kvstore.block_meta import metas_of
from kvstore.wire import services, store
from tests.integration.event_router import BLOCK_TOKENS, EventRouter
from tests.integration.nodes import NodeProcess, blocks_of, eventually, layout, tokens
from tests.ports import free_ports

SETS = ("events.zmq=tcp://127.0.0.1:0", "events.replay=tcp://127.0.0.1:0")


def started(home: Path, *sets: str, memory: str = "16MiB") -> NodeProcess:
    return NodeProcess(home, *SETS, *sets, memory=memory)


def endpoints(node: NodeProcess) -> list[str]:
    """Behind where the node's transfers come."""
    return [address for address in node.facts["addresses"] if address.startswith("tcp://")][1:]


ROUTERS: list[EventRouter] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while ROUTERS:
        ROUTERS.pop().close()


def routing(node: NodeProcess, **more: str) -> EventRouter:
    publisher, replay = endpoints(node)
    ROUTERS.append(EventRouter(publisher, replay, **more))
    return ROUTERS[-1]


def put(ns: Namespace, prompt: np.ndarray, **more: object) -> np.ndarray:
    """As an adapter does it: the engine's hashes are the keys' last eight bytes here."""
    chain = ns.chain(prompt)
    names = [int.from_bytes(key[-8:].tobytes(), "big") for key in chain]
    metas = metas_of(names, parent=None, tokens=prompt, block_tokens=BLOCK_TOKENS, **more)  # type: ignore[arg-type]
    ns.put(chain, blocks_of(chain), metas=metas)
    return chain


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with started(tmp_path) as node:
        yield node


def agree(router: EventRouter, ns: Namespace, prompts: Sequence[np.ndarray]) -> None:
    """In the end: a publisher that is busy tells a moment later."""

    def told_and_held() -> list[tuple[int, int]]:
        return [(router.matched(prompt.tolist()), ns.lookup(ns.chain(prompt)).blocks) for prompt in prompts]

    until, both = time.monotonic() + 20, told_and_held()
    while any(told != held for told, held in both):
        assert time.monotonic() < until, both
        router.read()
        both = told_and_held()


def test_what_is_held_is_told_as_it_comes_and_goes(node: NodeProcess) -> None:
    router = routing(node)
    with Client(node.address) as client:
        ns = client.namespace(layout())
        first, second = tokens(8), np.concatenate((tokens(5), tokens(3, seed=1)))
        put(ns, first, lora_id=7, lora_name="polite")
        router.until(8, first.tolist())
        put(ns, second)
        router.until(8, second.tolist())
        stored = [event for event in router.events if event["type"] == "BlockStored"]
        assert {(one["lora_id"], one["lora_name"]) for one in stored} == {(7, "polite"), (None, None)}
        assert all(one["group_idx"] == 0 for one in stored)
        put(ns, tokens(200, seed=2))  # memory has room for 250 and more go
        for seed in range(3, 6):
            put(ns, tokens(60, seed=seed))
        router.settled()
        agree(router, ns, [first, second, *(tokens(60, seed=seed) for seed in range(2, 6))])
        assert any(event["type"] == "BlockRemoved" for event in router.events)
        ns.clear()
        router.until(0, tokens(60, seed=5).tolist())
        assert not router.blocks
        put(ns, first)
        router.until(8, first.tolist())


def test_one_who_comes_late_asks_for_what_is_held(tmp_path: Path) -> None:
    """The publisher remembers one batch only: the rest of its past can only be told as the present."""
    with started(tmp_path, "events.buffer_steps=1") as node, Client(node.address) as client:
        ns = client.namespace(layout())
        prompts = [tokens(6, seed=seed) for seed in range(12)]
        early = routing(node)
        for prompt in prompts:
            put(ns, prompt)
            early.until(6, prompt.tolist())
        late = routing(node)
        late.replay()
        assert late.last == early.last
        agree(late, ns, prompts)
        put(ns, tokens(4, seed=99))
        late.until(4, tokens(4, seed=99).tolist())
        assert late.replays == 1, "what followed was no gap"


def test_a_gap_is_healed_from_what_is_remembered(node: NodeProcess) -> None:
    router = routing(node)
    with Client(node.address) as client:
        ns = client.namespace(layout())
        put(ns, tokens(3))
        router.until(3, tokens(3).tolist())
        router._stream.disconnect(endpoints(node)[0])  # nothing is heard for a while
        other = routing(node)
        for seed in range(1, 5):
            put(ns, tokens(3, seed=seed))
            other.until(3, tokens(3, seed=seed).tolist())
        heard = len(router.events)
        before = router.replays
        router.replay()
        prompts = [tokens(3, seed=seed) for seed in range(5)]
        agree(router, ns, prompts)
        missed = router.events[heard:]
        assert router.replays == before + 1 and router.last == other.last
        assert not any(event["type"] == "AllBlocksCleared" for event in missed), "as it was published"


def test_a_last_batch_that_was_lost_is_noticed(node: NodeProcess) -> None:
    """Nothing happens after it that would tell."""
    router = routing(node)
    with Client(node.address) as client:
        ns = client.namespace(layout())
        put(ns, tokens(3))
        router.until(3, tokens(3).tolist())
        put(ns, tokens(4, seed=1))
        assert router._stream.poll(5_000)
        router._stream.recv_multipart()
        router.until(4, tokens(4, seed=1).tolist())


@pytest.mark.parametrize("end", ["kill", "forget"])
def test_after_a_restart_it_tells_what_it_holds_again(tmp_path: Path, end: str) -> None:
    """Metas lie in slot headers: in memory, and on disk."""
    ports = [f"tcp://127.0.0.1:{port}" for port in free_ports(2)]
    sets = ("file.enabled=true", "file.bytes=64MiB", "file.admission=always")
    node = NodeProcess(tmp_path, f"events.zmq={ports[0]}", f"events.replay={ports[1]}", *sets, memory="8MiB")
    prompts = [tokens(40, seed=seed) for seed in range(8)]  # 20 MiB
    with node:
        router = routing(node)
        with Client(node.address) as client:
            ns = client.namespace(layout())
            for prompt in prompts:
                put(ns, prompt)
            until = time.monotonic() + 20
            while not any(event.get("medium") == "STORAGE" for event in router.events):
                assert time.monotonic() < until, "nothing was told of files"
                router.read()
            router.settled(1.0)
            last = router.last
        if end == "kill":
            node.kill()
        else:
            node.stop()
        if end == "forget":  # sequences begin anew
            (tmp_path / "data" / "kv-events").unlink()
        node.start()
        begun = len(router.events)
        with Client(node.address) as client:
            ns = client.namespace(layout())
            held = {seed: ns.lookup(ns.chain(prompt)).blocks for seed, prompt in enumerate(prompts)}
            assert sum(held.values()) > 100, "blocks outlived the restart"
            until = time.monotonic() + 20
            while not any(event["type"] == "AllBlocksCleared" for event in router.events[begun:]):
                assert time.monotonic() < until
                router.read()
            router.settled()
            agree(router, ns, prompts)
            assert (router.last > last) is (end == "kill"), (
                "a restart is a gap, and nothing is told under an old number"
            )


def test_what_an_earlier_life_left_is_told_however_long_a_start_waits_for_others(tmp_path: Path) -> None:
    """Nothing is open before it is known of every listed node whether it lives: one takes connections, and is mute."""
    own, publisher, replay = free_ports(3)
    operators = Path(f"{tmp_path}/kv.sock.grpc")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        members = f"127.0.0.1:{own},127.0.0.1:{mute.getsockname()[1]}"
        sets = (f"events.zmq=tcp://127.0.0.1:{publisher}", f"events.replay=tcp://127.0.0.1:{replay}")
        sets += (f"cluster.members={members}", "cluster.dead_after_ms=1600")
        with NodeProcess(tmp_path, *sets, address=f"127.0.0.1:{own}") as node:
            router = routing(node)
            with Client(node.address) as client:
                chain = put(client.namespace(layout()), tokens(8))
            router.until(8, tokens(8).tolist())
            node.kill()
            operators.unlink()
            node.process = node.spawn()
            eventually(operators.is_socket)
            until = time.monotonic() + 2.0  # past the publisher's first second: whatever it says is read at once
            while time.monotonic() < until:
                router.read()
            told = held_by_watch(operators)
            node.finish_start()
            router.settled(2.0)
            assert router.matched(tokens(8).tolist()) == 8 and told == {key.tobytes() for key in chain}


def held_by_watch(operators: Path) -> set[bytes]:
    """What a reader of Watch is told that is held, once the node tells anything."""
    told: set[bytes] = set()
    with grpc.insecure_channel(f"unix:{operators}") as channel:
        while True:
            try:
                for batch in services.StoreStub(channel).Watch(store.WatchRequest(held=True), timeout=20):
                    told |= {event.key for event in batch.events}
                    if not batch.held:
                        return told
            except grpc.RpcError as error:  # it waits for others longer than a call waits for it
                assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_a_storm_with_readers_that_miss_most_of_it_ends_in_agreement(tmp_path: Path) -> None:
    """Puts, evictions, clears; one reader loses batches at random, one begins in the middle."""
    draw = random.Random(5)
    sets = ("events.buffer_steps=6", "limits.events_max=300", "file.enabled=true", "file.bytes=32MiB")
    with started(tmp_path, *sets, memory="8MiB") as node, Client(node.address) as client:
        ns = client.namespace(layout())
        lossy, late = routing(node), None
        prompts = [tokens(draw.randint(1, 30), seed=seed) for seed in range(60)]
        for turn in range(120):
            put(ns, draw.choice(prompts))
            if turn in {40, 90}:
                ns.clear()
            if turn == 60:
                late = routing(node)
            while lossy._stream.poll(0):
                lossy._stream.recv_multipart() if draw.random() < 0.5 else lossy.read(0)
            if late is not None:
                late.read(0)
        assert late is not None
        for router in (lossy, late):
            router.settled(0.6)
            router.replay()
            router.settled()
            agree(router, ns, prompts)


def test_blocks_without_metas_and_of_other_tenants_or_models_are_not_told(tmp_path: Path) -> None:
    with started(tmp_path, "events.tenants=acme", "events.model=m", "events.topic=kv@n@m") as node:
        router = routing(node, topic="kv@n@m")
        deaf = routing(node, topic="kv@n@other")
        with Client(node.address) as client:
            told, other = client.namespace(layout(), tenant="acme"), client.namespace(layout(), tenant="zebra")
            model = client.namespace(layout(model="n"), tenant="acme")
            put(other, tokens(3, seed=1))
            put(model, tokens(3, seed=2))
            bare = told.chain(tokens(3, seed=3))
            told.put(bare, blocks_of(bare))
            told.put(bare[:0], blocks_of(bare[:0]))
            odd = told.chain(tokens(1, seed=4))
            told.put(odd, blocks_of(odd), metas=[b"nobody's"])
            put(told, tokens(3))
            router.until(3, tokens(3).tolist())
            router.settled()
            assert len(router.blocks) == 3
            router.replay()
            assert len(router.blocks) == 3
            deaf.settled()
            assert not deaf.events


def test_a_block_is_told_once_all_its_shards_are_there(node: NodeProcess) -> None:
    """Of two ranks: one alone is no block that anybody could load."""
    from kvstore import KVLayout

    halves = KVLayout.uniform(
        engine="test", model="m", revision="1", dtype="bfloat16", block_tokens=4, layers=4, kv_heads=4, head_dim=64,
        tensor_parallel=2,
    )  # fmt: skip
    router = routing(node)
    with Client(node.address) as client:
        ns = client.namespace(halves)
        for seed, first_hash in ((1, 11), (0, 1)):
            prompt = tokens(3, seed=seed)
            metas = metas_of(range(first_hash, first_hash + 3), parent=None, tokens=prompt, block_tokens=4)
            for shard in range(2):
                assert router.matched(prompt.tolist()) == 0
                ns.put(ns.chain(prompt), bytes(3 * ns.shard_bytes[shard]), shard=shard, metas=metas)
                if shard == 0 and seed == 0:  # by now the publisher has begun
                    router.settled()
            router.until(3, prompt.tolist())


def test_older_readers_are_sent_arrays(tmp_path: Path) -> None:
    """In the order of fields that vLLM's events had before they were maps."""
    with started(tmp_path, "events.form=arrays") as node, Client(node.address) as client:
        ns = client.namespace(layout())
        prompt = tokens(2)
        with zmq.Context() as context, context.socket(zmq.SUB) as sub:
            sub.subscribe(b"")
            sub.connect(endpoints(node)[0])
            chain = put(ns, prompt, lora_id=3, lora_name="x")
            told: list[list[object]] = []
            while not any(event[0] == "BlockStored" for event in told):
                assert sub.poll(10_000)
                told += msgspec.msgpack.decode(sub.recv_multipart()[2])[1]
            names = [int.from_bytes(key[-8:].tobytes(), "big") for key in chain]
            assert told[0] == ["AllBlocksCleared"]
            assert told[-1] == ["BlockStored", names, None, prompt.tolist(), 4, 3, "CPU", "x"]


def test_replays_are_bounded_and_nonsense_is_passed_over(node: NodeProcess) -> None:
    router = routing(node)
    with Client(node.address) as client:
        ns = client.namespace(layout())
        put(ns, tokens(3))
        router.until(3, tokens(3).tolist())
        with contextlib.ExitStack() as opened:
            context = opened.enter_context(zmq.Context())
            context.linger = 0

            def ask(*frames: bytes) -> zmq.Socket[bytes]:
                socket = opened.enter_context(context.socket(zmq.DEALER))
                socket.connect(endpoints(node)[1])
                socket.send_multipart(frames)
                return socket

            for frames in ((b"", b"x"), (b"x", bytes(8)), (bytes(8),), (b"", bytes(8), b""), (b"", b"x" * 5_000)):
                assert not ask(*frames).poll(30)
            for _ in range(40):  # more than are served at once, and none of them reads
                ask(b"", bytes(8))
            router.replay()
            put(ns, tokens(5, seed=1))
            router.until(5, tokens(5, seed=1).tolist())


def test_it_is_off_unless_asked_for_and_opens_nothing_to_others(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        assert not endpoints(node)
    open_one = NodeProcess(tmp_path, "events.zmq=tcp://0.0.0.0:0")
    done = subprocess.run(open_one.command(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and "tcp://0.0.0.0:0: reachable from other machines" in done.stderr
    unread = NodeProcess(tmp_path, "events.replay=tcp://127.0.0.1:0")
    done = subprocess.run(unread.command(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and "events.replay = 'tcp://127.0.0.1:0': is not read without events.zmq" in done.stderr
