"""Trying out a path: a read of bytes that mean nothing, into bytes that nobody looks at.

  asker   PRESENT without a descriptor  ->  owner registers a page for the connection, to be read
          a lane is built: its first request reads that page into ours; when it has landed, the lane takes slices

Rules
- A queue pair connects over a path on which every request is lost, since nothing of the path's own is needed for that.
  So what a lane is worth is told by bytes: one packet of the largest size there is, which a path of smaller frames
  loses, too.
- The page holds zeros. Every peer may read it, as long as its connection lives, and nobody may write it.
- An owner that shows none (an older one, or one without room) is tried by nothing but connecting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from transfer.errors import LimitReached, Reason
from transfer.native import keep_forever, rdma_deregister, rdma_register
from transfer.rdma.frames import Message, Present, Shown
from transfer.rdma.registrar import Asked, NotLetGo, Registered

if TYPE_CHECKING:
    from transfer.rdma.transport import RdmaTransport
    from transfer.rdma.verbs import Domain

__all__ = ["ASKED", "Landing", "Page", "Trial", "Trials", "trials"]

BYTES: Final = 4096
ASKED: Final = Present(b"")
Trial = tuple[int, int, int, int, int]  # as RdmaEngine.add_lane takes it


class Page:
    """What one peer reads."""

    def __init__(self, host: RdmaTransport) -> None:
        self._host = host
        self._memory = np.zeros(BYTES, np.uint8)
        self._registered: list[Registered] = []
        self._base = 0

    @property
    def address(self) -> int:
        return int(self._memory.ctypes.data)

    async def shown(self, domains: Sequence[Domain], base: int) -> Shown:
        """base: where it lies for the peer's devices."""
        if not self._registered:
            asked = [Asked(one.address, self.address, BYTES, base, peer_reads=True) for one in domains]
            try:
                self._registered = await self._host.registrar.acquire(asked)
            except (LimitReached, ValueError):
                return Shown(Reason.LATE)
            self._base = base
        return Shown(Reason.LANDED, self._base, (tuple(one.remote_key for one in self._registered),))

    async def close(self) -> None:
        """The peer's queue pairs are gone."""
        registered, self._registered = self._registered, []
        if not registered:
            return
        try:
            await self._host.registrar.release(registered)
        except NotLetGo:
            keep_forever(self._memory)


class Landing:
    """Where the trials of one transport land, all of them. As much a part of the devices as their queues: registered
    once, and counted by nobody.
    """

    def __init__(self, host: RdmaTransport) -> None:
        self._host = host
        self._memory = np.zeros(BYTES, np.uint8)
        self._made: list[tuple[int, int]] | None = None  # (handle, key) of each device; [] where one refuses
        self._making = asyncio.Lock()

    @property
    def address(self) -> int:
        return int(self._memory.ctypes.data)

    async def keys(self) -> list[int]:
        """One a device of ours; none where a device takes no more memory."""
        async with self._making:
            if self._made is None:
                await self._host.in_thread(self._register)
        return [key for _, key in self._made or ()]

    def _register(self) -> None:
        self._made = []
        try:
            for device in self._host.devices:
                handle, key, _ = rdma_register(
                    device.domain.address,
                    self.address,
                    BYTES,
                    self.address,
                    write_here=True,
                    peer_reads=False,
                    peer_writes=False,
                )
                self._made.append((handle, key))
        except OSError:
            self._let_go()

    async def close(self) -> None:
        """No lane is left."""
        await self._host.in_thread(self._let_go)

    def _let_go(self) -> None:
        made, self._made = self._made or [], []
        for handle, _ in made:
            try:
                rdma_deregister(handle)
            except OSError:
                keep_forever(self._memory)


@dataclass(frozen=True, slots=True)
class Trials:
    """What lanes to one peer are tried with."""

    address: int
    keys: Sequence[int]  # one a device of ours
    base: int
    peer_keys: Sequence[int]  # one a device of the peer's

    def of(self, device: int, peer_device: int) -> Trial:
        return self.address, self.keys[device], self.base, self.peer_keys[peer_device], BYTES


async def trials(host: RdmaTransport, told: Message, devices: int) -> Trials | None:
    """told: the peer's answer, which has so many devices. None: lanes are not tried."""
    if not isinstance(told, Shown) or len(told.keys) != 1 or len(told.keys[0]) != devices:
        return None
    keys = await host.landing.keys()
    return Trials(host.landing.address, keys, told.base, told.keys[0]) if keys else None
