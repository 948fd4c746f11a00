"""Any bytes in any method: an answer, never a dead or stuck node. Seeded; `make fuzz` has the native parsers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kvstore.wire import admin, services, store
from tests.integration.grpc_node import TIMEOUT_S, config_for, get, keys_for, opened, put, running

ROUNDS = 40
ENDLESS = {"Watch", "Events"}


def some_message(rng: random.Random, about: Descriptor, digest: bytes, depth: int = 0) -> Message:
    """A message of that type with fields of any value, and often a namespace that is open."""
    message = GetMessageClass(about)()
    for field in about.fields:
        if rng.random() < 0.3:
            continue
        for _ in range(rng.choice((0, 1, 3)) if field.is_repeated else 1):
            if field.message_type is not None:
                if depth > 3 or field.message_type.GetOptions().map_entry:
                    continue
                inner = some_message(rng, field.message_type, digest, depth + 1)
                slot = getattr(message, field.name)
                slot.add().CopyFrom(inner) if field.is_repeated else slot.CopyFrom(inner)
            else:
                value = digest if field.name == "namespace" and rng.random() < 0.7 else some_value(rng, field)
                if field.is_repeated:
                    getattr(message, field.name).append(value)
                else:
                    setattr(message, field.name, value)
    return message


def some_value(rng: random.Random, field: FieldDescriptor) -> object:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.choice((0, 1, 8, 31, 32, 64, 320, 5000)))
        return rng.choice(("", "default", "é" * 200, "\x00", "x" * 300))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_DOUBLE:
        return rng.choice((0.0, -1.0, float("nan"), 1e308))
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice((0, 1, 2, 77))
    signed = kind in {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64}
    wide = kind in {FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64}
    top = 2 ** (64 if wide else 32)
    most = top // 2 - 1 if signed else top - 1
    return rng.choice((0, 1, 2, 31, 4096, most, -most if signed else most - 1))


def some_bytes(rng: random.Random, about: Descriptor, digest: bytes) -> Iterator[bytes]:
    for _ in range(rng.choice((1, 1, 3))):
        raw = bytearray(some_message(rng, about, digest).SerializeToString())
        for _ in range(rng.choice((0, 0, 1, 4))):
            if raw:
                raw[rng.randrange(len(raw))] = rng.randrange(256)
        yield bytes(raw)


async def test_any_bytes_in_any_method(tmp_path: Path) -> None:
    rng = random.Random(20_260_101)
    codes: set[grpc.StatusCode] = set()
    async with (
        running(config_for(tmp_path)) as node,
        grpc.aio.insecure_channel(f"unix:{node.admin_socket}") as channel,
    ):
        stub = services.StoreStub(channel)
        for _ in range(ROUNDS):
            ns = await opened(stub)
            keys = keys_for(ns.seed, 4)
            await put(stub, ns.digest, keys)
            for service in (store.DESCRIPTOR.services_by_name["Store"], admin.DESCRIPTOR.services_by_name["Admin"]):
                for method in service.methods:
                    call = channel.stream_stream(f"/{service.full_name}/{method.name}")(
                        some_bytes(rng, method.input_type, ns.digest),
                        timeout=0.2 if method.name in ENDLESS else TIMEOUT_S,
                    )
                    with contextlib.suppress(grpc.RpcError):
                        async for _ in call:
                            pass
                    codes.add(await call.code())
            # It lives, and what it has is right.
            fresh = await opened(stub)
            await put(stub, fresh.digest, keys)
            request = store.GetRequest(namespace=fresh.digest, chain=store.Chain(keys=b"".join(keys)))
            assert (await get(stub, request))[1].blocks == 4
        node.core.check_integrity(1)
        assert node.core.stats(1)["slots_reserved"] == 0
    assert grpc.StatusCode.OK in codes and grpc.StatusCode.INVALID_ARGUMENT in codes
    # What a method cannot parse gRPC itself calls INTERNAL; UNKNOWN would be an exception that got out.
    assert grpc.StatusCode.UNKNOWN not in codes
