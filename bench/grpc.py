"""The gRPC door: lookups, gets and puts over loopback, against a bare gRPC server that answers as many bytes.

Node and bare server have a process each, as in life. `python -m bench.grpc` is the bare one.
"""

# ruff: noqa: N802, ARG002 - a servicer's methods are named by the contract

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt

from bench.harness import Row, at_most, measure, median_of, no_target
from bench.serving import node
from kvstore import Client, KVLayout
from kvstore.wire import services, store

__all__ = ["rows"]

MIB, GIB = 1 << 20, 1 << 30
Bytes = npt.NDArray[np.uint8]
KEYS = 1_024
BLOCK_BYTES = 2 * MIB
BATCH = 32
CALLS = 50  # a figure of a call is the median of so many
LAYOUT = KVLayout.uniform(
    engine="bench", model="m", revision="1", dtype="int8", block_tokens=16, layers=32, kv_heads=8, head_dim=256
)


# ---- the bare server ------------------------------------------------------------------------------------------------


class Bare(services.StoreServicer):
    """Answers as many bytes as the node does, and does nothing for them."""

    async def Lookup(self, request: store.LookupRequest, context: object) -> store.LookupResponse:
        return store.LookupResponse(blocks=KEYS, tiers=bytes(KEYS))

    async def Get(self, request: store.GetRequest, context: object) -> AsyncIterator[store.GetResponse]:
        payload = bytes(BLOCK_BYTES)
        for _ in range(BATCH):
            yield store.GetResponse(data=store.GetData(payload=payload))

    async def Put(self, request_iterator: AsyncIterator[store.PutRequest], context: object) -> store.PutResponse:
        async for _ in request_iterator:
            pass
        return store.PutResponse()


async def _serve() -> None:
    server = grpc.aio.server()
    services.add_StoreServicer_to_server(Bare(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"127.0.0.1:{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)  # until the benchmark has ended
    await server.stop(None)


@contextmanager
def _bare() -> Iterator[str]:
    command = [sys.executable, "-m", "bench.grpc"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(30)


# ---- figures --------------------------------------------------------------------------------------------------------


def _rate(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return BATCH * BLOCK_BYTES / (time.perf_counter() - start) / GIB


def _drained(stub: services.StoreStub) -> None:
    for _ in stub.Get(store.GetRequest()):
        pass


def _poured(stub: services.StoreStub) -> None:
    payload = bytes(BLOCK_BYTES)
    stub.Put(iter(store.PutRequest(data=store.PutData(payload=payload)) for _ in range(BATCH)))


def _put(namespace: bytes, chain: Bytes, source: Bytes) -> Iterator[store.PutRequest]:
    """As a caller of another language puts it."""
    yield store.PutRequest(header=store.PutHeader(namespace=namespace, chain=store.Chain(keys=chain.tobytes())))
    for block in source:
        yield store.PutRequest(data=store.PutData(payload=block.tobytes()))


def _taken(messages: Iterator[store.GetResponse], into: Bytes) -> int:
    """How many blocks came. Copies them, and believes that they are right."""
    flat, at, blocks = into.reshape(-1), 0, 0
    for message in messages:
        kind = message.WhichOneof("message")
        if kind == "data":
            piece = np.frombuffer(message.data.payload, dtype=np.uint8)
            flat[at : at + len(piece)] = piece
            at += len(piece)
        elif kind == "end":
            blocks = message.end.blocks
    return blocks


def rows(quick: bool) -> list[Row]:
    rounds = 3 if quick else 15
    with (
        tempfile.TemporaryDirectory(prefix="kvstore-bench-") as folder,
        node(Path(folder), GIB // 2, "file.enabled=false", grpc="127.0.0.1:0") as served,
        _bare() as bare,
        grpc.insecure_channel(bare) as echo,
        grpc.insecure_channel(served.addresses[0]) as channel,
        Client(served.address) as client,
    ):
        limit, raw = services.StoreStub(echo), services.StoreStub(channel)
        ns = client.namespace(LAYOUT)
        assert ns.shard_bytes[0] == BLOCK_BYTES
        chain = ns.chain(np.arange(KEYS * 16, dtype=np.uint32))
        source = np.random.default_rng(1).integers(0, 256, (BATCH, BLOCK_BYTES), dtype=np.uint8)
        into = np.zeros_like(source)
        assert ns.put(chain[:BATCH], source).stored == BATCH
        lookup = store.LookupRequest(namespace=ns.digest, chain=store.Chain(keys=chain.tobytes()))
        fresh = iter(range(1, 1 << 30))

        def put() -> None:
            other = ns.chain(np.arange(BATCH * 16, dtype=np.uint32) + 16 * next(fresh))
            assert raw.Put(_put(ns.digest, other, source)).stored == BATCH

        def get() -> None:
            request = store.GetRequest(namespace=ns.digest, chain=store.Chain(keys=chain[:BATCH].tobytes()))
            assert _taken(raw.Get(request), into) == BATCH

        get()
        assert np.array_equal(source, into)
        return [
            measure(
                f"lookup of a {KEYS}-key chain over gRPC, p50",
                unit="ms",
                ours=lambda: median_of(lambda: raw.Lookup(lookup), CALLS, scale=1e3),
                limit=lambda: median_of(lambda: limit.Lookup(lookup), CALLS, scale=1e3),
                limit_is="a bare server's echo of as many bytes",
                target=at_most(1, "ms"),
                rounds=rounds,
            ),
            measure(
                "get of 32 blocks of 2 MiB over gRPC, verified by the node",
                unit="GiB/s",
                ours=lambda: _rate(get),
                limit=lambda: _rate(lambda: _drained(limit)),
                limit_is="a bare stream of as many bytes",
                target=no_target(),
                rounds=rounds,
            ),
            measure(
                "put of 32 blocks of 2 MiB over gRPC",
                unit="GiB/s",
                ours=lambda: _rate(put),
                limit=lambda: _rate(lambda: _poured(limit)),
                limit_is="a bare stream of as many bytes",
                target=no_target(),
                rounds=rounds,
            ),
        ]


if __name__ == "__main__":
    asyncio.run(_serve())
