"""A real node in this process, on the test's event loop, and what tests of its gRPC door share."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import xxhash

from kvstore.config import (
    MIB,
    Config,
    FileConfig,
    GrpcConfig,
    LimitsConfig,
    MemoryConfig,
    MetricsConfig,
    NodeConfig,
    ObjectConfig,
)
from kvstore.node.node import Node
from kvstore.security import SecurityConfig
from kvstore.wire import errors, services, store

TIMEOUT_S = 20.0
PARTS = (4096, 5000)
BLOCK = sum(PARTS)
BLOCK_TOKENS = 4


def config_for(
    folder: Path,
    *,
    security: SecurityConfig | None = None,
    limits: LimitsConfig | None = None,
    door: GrpcConfig | None = None,
    address: str = "none",
    metrics: str = "none",
    memory_bytes: int = 32 * MIB,
) -> Config:
    """Everything under `folder`; the segments have a name of their own."""
    folder.mkdir(exist_ok=True)
    name = folder / "name"
    if not name.exists():
        name.write_text(f"test-{secrets.token_hex(6)}")
    return Config(
        node=NodeConfig(name=name.read_text(), data_dir=folder / "data", socket=folder / "kv.sock", address=address),
        memory=MemoryConfig(bytes=memory_bytes),
        file=FileConfig(enabled=False),
        object=ObjectConfig(url="none"),
        limits=limits or LimitsConfig(),
        grpc=door or GrpcConfig(address="127.0.0.1:0"),
        metrics=MetricsConfig(address=metrics),
        security=security or SecurityConfig(),
    )


@asynccontextmanager
async def running(config: Config, *, keep: bool = False) -> AsyncIterator[Node]:
    """keep: leave the segments for the next node of the folder."""
    node = Node(replace(config, memory=replace(config.memory, keep=keep)))
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


def tcp_address(node: Node) -> str:
    return node.grpc.addresses[-1]


def layout(**changes: object) -> store.Layout:
    fields: dict[str, object] = {
        "engine": "test",
        "model": "tiny",
        "revision": "1",
        "dtype": "float32",
        "block_tokens": BLOCK_TOKENS,
        "shards": [store.Shard(part_bytes=PARTS), store.Shard(part_bytes=[4096], rank=1)],
    }
    return store.Layout(**{**fields, **changes})  # type: ignore[arg-type]


async def opened(
    stub: services.StoreAsyncStub, tenant: str = "", metadata: Sequence[tuple[str, str]] = (), **changes: object
) -> store.OpenNamespaceResponse:
    request = store.OpenNamespaceRequest(layout=layout(**changes), tenant=tenant)
    return await stub.OpenNamespace(request, timeout=TIMEOUT_S, metadata=metadata)


def block_of(key: bytes, size: int = BLOCK) -> bytes:
    """The bytes that a block ought to have, from its key."""
    return hashlib.shake_128(key).digest(size)


def keys_for(seed: bytes, blocks: int, salt: bytes = b"") -> list[bytes]:
    """Some keys of 32 bytes. The node takes any."""
    return [hashlib.sha256(seed + salt + bytes([i % 256, i // 256])).digest() for i in range(blocks)]


def checksums(block: bytes, parts: Iterable[int] = PARTS) -> bytes:
    """By the Python package: an independent witness."""
    told, at = b"", 0
    for size in parts:
        part = block[at : at + size]
        leaves = b"".join(
            xxhash.xxh3_64_intdigest(part[i : i + 4096]).to_bytes(8, "little") for i in range(0, size, 4096)
        )
        told += xxhash.xxh3_64_intdigest(leaves).to_bytes(8, "little")
        at += size
    return told


def put_messages(header: store.PutHeader, payload: bytes, cut: int = 3000) -> Iterator[store.PutRequest]:
    yield store.PutRequest(header=header)
    for at in range(0, len(payload), cut):
        yield store.PutRequest(data=store.PutData(payload=payload[at : at + cut]))


async def put(
    stub: services.StoreAsyncStub, digest: bytes, keys: Sequence[bytes], metadata: Sequence[tuple[str, str]] = ()
) -> store.PutResponse:
    header = store.PutHeader(namespace=digest, chain=store.Chain(keys=b"".join(keys)))
    payload = b"".join(block_of(key) for key in keys)
    return await stub.Put(put_messages(header, payload), timeout=TIMEOUT_S, metadata=metadata)


async def get(
    stub: services.StoreAsyncStub, request: store.GetRequest, metadata: Sequence[tuple[str, str]] = ()
) -> tuple[list[bytes], store.GetEnd]:
    """The blocks, each checked against the checksums that came with it; and the end."""
    blocks: list[bytes] = []
    told: list[bytes] = []
    async for message in stub.Get(request, timeout=TIMEOUT_S, metadata=metadata):
        kind = message.WhichOneof("message")
        if kind == "block":
            assert message.block.index == request.first_block + len(blocks)
            told.append(message.block.checksums)
            blocks.append(b"")
        elif kind == "data":
            blocks[-1] += message.data.payload
        else:
            assert [checksums(block, PARTS) for block in blocks] == told or request.shard != 0
            return blocks, message.end
    raise AssertionError("no GetEnd")


def refusal(error: grpc.RpcError) -> tuple[grpc.StatusCode, store.ErrorDetail]:
    """The status of a failed call, and what it says of the field."""
    assert isinstance(error, grpc.aio.AioRpcError)
    trailing: Sequence[tuple[str, bytes]] = tuple(error.trailing_metadata() or ())  # type: ignore[arg-type]
    for key, value in trailing:
        if key == errors.DETAIL_KEY:
            return error.code(), store.ErrorDetail.FromString(value)
    return error.code(), store.ErrorDetail()
