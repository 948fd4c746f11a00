"""The other way round: the owner of the memory here, and a reader that can be stopped, here or in another process."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from transfer.base import Batch, Extent, Region, Transfer, Transport
from transfer.errors import TransferError
from transfer.testing.parties import Bytes, OwnerProcess

__all__ = ["Reader", "ReaderHere", "ReaderProcess"]

_READ_S = 60.0


class Reader(Protocol):
    """Reads one grant, again and again in one batch, into memory of its own."""

    async def begin(self, address: str, descriptor: bytes, size: int, times: int) -> None:
        """Connects, presents, submits a batch that reads the first `size` bytes so many times, and does not wait."""
        ...

    async def end(self) -> str:
        """What came of it: `landed`, or the names of the reasons."""
        ...

    async def count(self, value: int) -> int:
        """How many bytes of its memory have this value now."""
        ...

    async def stop(self) -> None: ...

    async def resume(self) -> None: ...


class ReaderHere:
    """In this process; stopping is for whoever simulates it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._memory: Bytes = np.zeros(0, dtype=np.uint8)
        self._region: Region | None = None
        self._transfer: Transfer | None = None

    async def begin(self, address: str, descriptor: bytes, size: int, times: int) -> None:
        self._memory = np.zeros(size, dtype=np.uint8)
        self._region = await self._transport.register(self._memory)
        endpoint = await self._transport.connect(address, deadline_s=10.0)
        (presented,) = await endpoint.present([descriptor], deadline_s=10.0)
        batch = Batch.of([(Extent(self._region.id, 0, size), presented.extent(0, size))] * times)
        self._transfer = endpoint.read(batch, deadline_s=_READ_S)

    async def end(self) -> str:
        assert self._transfer is not None and self._region is not None
        try:
            await self._transfer
        except TransferError as error:
            return ",".join(sorted(failure.reason.name for failure in error.failures))
        return "landed"

    async def count(self, value: int) -> int:
        return int((self._memory == value).sum())


class ReaderProcess(OwnerProcess):
    """In a child process (transfer.testing.peer)."""

    async def begin(self, address: str, descriptor: bytes, size: int, times: int) -> None:
        await self._call("begin", address=address, descriptor=descriptor.hex(), size=size, times=times)

    async def end(self) -> str:
        return await self._call("end")

    async def count(self, value: int) -> int:
        return int(await self._call("count", value=value))
