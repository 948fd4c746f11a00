"""`python -m transfer.testing.peer TRANSPORT`: an owner of memory, or a reader, in a process of its own, for exams.

Reads a JSON object a line from standard input, answers each with one, ends with the end of its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import TypedDict, cast

import numpy as np

from transfer.base import Rights
from transfer.local import LocalTransport
from transfer.native import MappedSegment
from transfer.rdma import RdmaConfig, RdmaTransport
from transfer.tcp import TcpConfig, TcpTransport, TlsFiles
from transfer.testing.parties import Bytes, OwnerHere
from transfer.testing.readers import ReaderHere

__all__ = ["main"]


class Call(TypedDict, total=False):
    verb: str
    name: str
    size: int
    seed: int
    offset: int
    length: int
    value: int
    ranges: list[tuple[int, int]]
    rights: int
    lifetime_s: float
    descriptor: str
    address: str
    times: int


def _segment(size: int) -> tuple[object, Bytes]:
    segment = MappedSegment.create(size, name="exam")
    return segment, segment.writable_array(0, size)


def _local() -> OwnerHere:
    return OwnerHere(LocalTransport(), _segment)


def _private(size: int) -> tuple[object, Bytes]:
    content = np.zeros(size, dtype=np.uint8)
    return content, content


def _tcp() -> OwnerHere:
    return OwnerHere(TcpTransport(), _private)


def _owner(named: str) -> OwnerHere:
    """`local`, `tcp`, `tcp+tls:CERTIFICATE:KEY:CA` with paths of PEM files, `rdma:DEVICES` with names and commas; those
    of `tcp-` and `rdma-:DEVICES` only connect.
    """
    kind, _, files = named.partition(":")
    if kind == "tcp+tls":
        return OwnerHere(TcpTransport(TcpConfig(tls=TlsFiles(*files.split(":")))), _private)
    if kind in ("rdma", "rdma-"):
        devices = tuple(filter(None, files.split(",")))
        return OwnerHere(RdmaTransport(RdmaConfig(devices=devices, listens=kind == "rdma")), _private)
    return TRANSPORTS[kind]()


def _connecting() -> OwnerHere:
    return OwnerHere(TcpTransport(TcpConfig(listens=False)), _private)


TRANSPORTS: dict[str, Callable[[], OwnerHere]] = {"local": _local, "tcp": _tcp, "tcp-": _connecting}


async def _answer(owner: OwnerHere, reader: ReaderHere, call: Call) -> str:
    match call["verb"]:
        case "begin" | "end" | "count":
            return await _read(reader, call)
        case "connect":
            return (await owner.connect(call["address"])).hex()
        case "memory":
            await owner.memory(call["name"], call["size"], call["seed"])
        case "grant":
            rights = Rights(call["rights"])
            ranges = [(offset, length) for offset, length in call["ranges"]]
            return (await owner.grant(call["name"], ranges, rights=rights, lifetime_s=call["lifetime_s"])).hex()
        case "revoke":
            await owner.revoke(bytes.fromhex(call["descriptor"]))
        case "deregister":
            await owner.deregister(call["name"])
        case "digest":
            return await owner.digest(call["name"], call["offset"], call["length"])
        case "fill":
            await owner.fill(call["name"], call["value"])
        case other:
            raise ValueError(f"no verb {other!r}")
    return ""


async def _read(reader: ReaderHere, call: Call) -> str:
    match call["verb"]:
        case "begin":
            await reader.begin(call["address"], bytes.fromhex(call["descriptor"]), call["size"], call["times"])
        case "end":
            return await reader.end()
        case "count":
            return str(await reader.count(call["value"]))
    return ""


async def _told(answer: Awaitable[str]) -> dict[str, str]:
    try:
        return {"value": await answer}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


async def serve(transport: str) -> None:
    owner = _owner(transport)
    reader = ReaderHere(owner.transport)
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    _say({"address": owner.address})
    while line := await lines.readline():
        _say(await _told(_answer(owner, reader, cast(Call, json.loads(line)))))
    await owner.close()


def _say(what: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> int:
    asyncio.run(serve(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
