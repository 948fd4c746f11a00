"""The two sides of an exam: the owner of the memory, here or in a process of its own, and the reader, always here."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from transfer.base import Batch, Endpoint, Extent, Grant, Presented, Region, Rights, Transport

__all__ = ["Bytes", "Mortal", "Owner", "OwnerHere", "OwnerProcess", "Pair", "pattern"]

Bytes = npt.NDArray[np.uint8]
Ranges = Sequence[tuple[int, int]]
_START_S = 30.0
_ANSWER_S = 30.0


def pattern(size: int, seed: int) -> Bytes:
    """The same bytes in every process, without runs."""
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


class Owner(Protocol):
    """Has memory and grants it. Regions are known by name."""

    @property
    def address(self) -> str: ...

    async def memory(self, name: str, size: int, seed: int) -> None:
        """Registers `size` bytes of pattern(size, seed)."""
        ...

    async def grant(self, name: str, ranges: Ranges, *, rights: Rights, lifetime_s: float) -> bytes:
        """A descriptor."""
        ...

    async def revoke(self, descriptor: bytes) -> None: ...

    async def deregister(self, name: str) -> None: ...

    async def digest(self, name: str, offset: int, length: int) -> str:
        """SHA-256 of what lies there now. Memory stays, also when its region is deregistered."""
        ...

    async def fill(self, name: str, value: int) -> None:
        """Overwrites all of it."""
        ...


class Mortal(Owner, Protocol):
    """An owner that can be killed, stopped (not a step of its program is done) and resumed."""

    async def kill(self) -> None: ...

    async def stop(self) -> None: ...

    async def resume(self) -> None: ...


class OwnerHere:
    """In this process, over a transport; `memory_of(size)` gives memory that the transport can grant."""

    def __init__(self, transport: Transport, memory_of: Callable[[int], tuple[object, Bytes]]) -> None:
        self.transport = transport
        self._memory_of = memory_of
        self._regions: dict[str, Region] = {}
        self._contents: dict[str, Bytes] = {}
        self._grants: dict[bytes, Grant] = {}
        self._towards: Endpoint | None = None

    @property
    def address(self) -> str:
        return self.transport.address

    async def memory(self, name: str, size: int, seed: int) -> None:
        memory, content = self._memory_of(size)
        content[:] = pattern(size, seed)
        self._regions[name] = await self.transport.register(memory, name=name)
        self._contents[name] = content

    async def grant(self, name: str, ranges: Ranges, *, rights: Rights, lifetime_s: float) -> bytes:
        grant = await self.transport.grant(self._regions[name], ranges, rights=rights, lifetime_s=lifetime_s)
        self._grants[grant.descriptor] = grant
        return grant.descriptor

    async def revoke(self, descriptor: bytes) -> None:
        await self.transport.revoke([self._grants[descriptor]])
        del self._grants[descriptor]

    async def deregister(self, name: str) -> None:
        await self.transport.deregister(self._regions.pop(name))

    async def digest(self, name: str, offset: int, length: int) -> str:
        return hashlib.sha256(self._contents[name][offset : offset + length].tobytes()).hexdigest()

    async def fill(self, name: str, value: int) -> None:
        self._contents[name][:] = value

    async def connect(self, address: str) -> bytes:
        """Connects to a reader that asks over that connection, in the place of the one before. Returns this owner's
        incarnation.
        """
        if self._towards is not None:
            await self._towards.close()
        self._towards = await self.transport.connect(address, deadline_s=10.0)
        return self.transport.incarnation

    async def close(self) -> None:
        self._regions.clear()
        self._contents.clear()
        await self.transport.close()


class OwnerProcess:
    """In a child process that serves OwnerHere over its standard streams (transfer.testing.peer)."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self._process = process
        self._address = address
        self._turn = asyncio.Lock()

    @classmethod
    async def start(cls, transport: str) -> Self:
        """`transport` as transfer.testing.peer names it."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "transfer.testing.peer",
            transport,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), _START_S)
        return cls(process, str(json.loads(line)["address"]))

    @property
    def address(self) -> str:
        return self._address

    async def _call(self, verb: str, **arguments: object) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        async with self._turn:
            self._process.stdin.write(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
            await self._process.stdin.drain()
            line = await asyncio.wait_for(self._process.stdout.readline(), _ANSWER_S)
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{verb}: {answer['error']}")
        return str(answer["value"])

    async def memory(self, name: str, size: int, seed: int) -> None:
        await self._call("memory", name=name, size=size, seed=seed)

    async def grant(self, name: str, ranges: Ranges, *, rights: Rights, lifetime_s: float) -> bytes:
        told = await self._call("grant", name=name, ranges=list(ranges), rights=int(rights), lifetime_s=lifetime_s)
        return bytes.fromhex(told)

    async def revoke(self, descriptor: bytes) -> None:
        await self._call("revoke", descriptor=descriptor.hex())

    async def deregister(self, name: str) -> None:
        await self._call("deregister", name=name)

    async def digest(self, name: str, offset: int, length: int) -> str:
        return await self._call("digest", name=name, offset=offset, length=length)

    async def fill(self, name: str, value: int) -> None:
        await self._call("fill", name=name, value=value)

    async def connect(self, address: str) -> bytes:
        """See OwnerHere."""
        return bytes.fromhex(await self._call("connect", address=address))

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    async def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    async def close(self) -> None:
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGCONT)
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                await asyncio.wait_for(self._process.wait(), _ANSWER_S)
            except TimeoutError:
                await self.kill()
        self._tidy()

    def _tidy(self) -> None:
        """What a killed owner could not take away: its socket, and the directory made for it."""
        socket = Path(self._address.removeprefix("unix:"))
        if self._address.startswith("unix:") and socket.parent.name.startswith("transfer-"):
            shutil.rmtree(socket.parent, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Pair:
    """An owner and a reader that is connected to it."""

    owner: Owner
    reader: Transport
    endpoint: Endpoint

    async def memory(self, size: int, *, writable: bool = True) -> tuple[Region, Bytes]:
        """Memory of the reader, zeroed."""
        content: Bytes = np.zeros(size, dtype=np.uint8)
        return await self.reader.register(content, writable=writable), content

    async def shown(
        self, name: str, ranges: Ranges, *, rights: Rights = Rights.READ, lifetime_s: float = 3600.0
    ) -> tuple[Presented, bytes]:
        """Grants and presents. Returns the descriptor too."""
        descriptor = await self.owner.grant(name, ranges, rights=rights, lifetime_s=lifetime_s)
        (presented,) = await self.endpoint.present([descriptor], deadline_s=10.0)
        return presented, descriptor


def pairs(region: Region, presented: Presented, triples: Sequence[tuple[int, int, int]]) -> Batch:
    """A batch of (local offset, remote offset, length)."""
    return Batch.of(
        (Extent(region.id, here, length), presented.extent(there, length)) for here, there, length in triples
    )
