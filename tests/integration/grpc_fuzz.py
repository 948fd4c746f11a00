"""Fuzzing of the gRPC door: messages of any content, with bytes altered, into every method of a real node.

`make fuzz` runs this for FUZZ_SECONDS with a new seed each time; test_grpc_fuzz.py runs the kept corpus and some rounds
of one seed. A case that an exception got out of, or that hung, is written to the corpus: one JSON file with the method
and its messages.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kvstore.node.node import Node
from kvstore.wire import admin, services, store
from tests.integration.grpc_node import TIMEOUT_S, config_for, get, keys_for, opened, put, running

CORPUS = Path(__file__).with_name("corpus_grpc")
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


@dataclass(frozen=True, slots=True)
class Case:
    """One call. OPEN in a message stands for the digest of an open namespace, which differs from node to node."""

    method: str
    messages: tuple[bytes, ...]

    def kept(self) -> str:
        return json.dumps({"method": self.method, "messages": [raw.hex() for raw in self.messages]}, indent=1) + "\n"

    def keep(self) -> Path:
        CORPUS.mkdir(exist_ok=True)
        path = CORPUS / f"{hashlib.sha256(self.kept().encode()).hexdigest()[:16]}.json"
        path.write_text(self.kept())
        return path

    @staticmethod
    def load(path: Path) -> Case:
        read = json.loads(path.read_text())
        return Case(read["method"], tuple(bytes.fromhex(raw) for raw in read["messages"]))


OPEN = bytes(range(0xA0, 0xC0))


def cases(rng: random.Random) -> Iterator[Case]:
    """One of every method."""
    for service in (store.DESCRIPTOR.services_by_name["Store"], admin.DESCRIPTOR.services_by_name["Admin"]):
        for method in service.methods:
            yield Case(f"/{service.full_name}/{method.name}", tuple(some_bytes(rng, method.input_type, OPEN)))


class Target:
    """A node, and what is asked of it after every case: that it lives, and that what it has is right."""

    def __init__(self, node: Node, channel: grpc.aio.Channel) -> None:
        self._node, self._channel, self._stub = node, channel, services.StoreStub(channel)
        self.codes: set[grpc.StatusCode] = set()

    async def refuses(self, case: Case) -> str | None:
        """What is wrong with how the case was answered; None: nothing."""
        ns = await opened(self._stub)
        await put(self._stub, ns.digest, keys_for(ns.seed, 4))
        endless = case.method.rpartition("/")[2] in ENDLESS
        call = self._channel.stream_stream(case.method)(
            iter([raw.replace(OPEN, ns.digest) for raw in case.messages]), timeout=0.2 if endless else TIMEOUT_S
        )
        try:
            async for _ in call:
                pass
        except grpc.RpcError:
            pass
        code = await call.code()
        self.codes.add(code)
        if code is grpc.StatusCode.UNKNOWN:
            return f"an exception got out: {await call.details()}"
        if code is grpc.StatusCode.INTERNAL and "its log says how" in (await call.details() or ""):
            return "the node failed"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and not endless:
            return "it hung"
        return None

    async def lives(self) -> None:
        fresh = await opened(self._stub)
        keys = keys_for(fresh.seed, 4)
        await put(self._stub, fresh.digest, keys)
        request = store.GetRequest(namespace=fresh.digest, chain=store.Chain(keys=b"".join(keys)))
        assert (await get(self._stub, request))[1].blocks == 4
        self._node.core.check_integrity(1)
        assert self._node.core.stats(1)["slots_reserved"] == 0


async def run(folder: Path, seed: int, seconds: float) -> int:
    """How many cases, before `seconds` are over. Raises AssertionError at the first finding, which is kept."""
    rng, until, count = random.Random(seed), time.monotonic() + seconds, 0
    async with running(config_for(folder)) as node, grpc.aio.insecure_channel(f"unix:{node.admin_socket}") as channel:
        target = Target(node, channel)
        while time.monotonic() < until:
            for case in cases(rng):
                wrong = await target.refuses(case)
                assert wrong is None, f"{case.method}: {wrong}; kept as {case.keep()} (seed {seed})"
                count += 1
            await target.lives()
    return count


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    asked = parser.parse_args()
    print(f"== grpc_messages for {asked.seconds:.0f} s, seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            count = asyncio.run(run(Path(folder), asked.seed, asked.seconds))
        except AssertionError as finding:
            print(f"grpc_messages: {finding}")
            return 1
    print(f"grpc_messages: {count} calls, no finding")
    return 0


if __name__ == "__main__":
    sys.exit(main())
