"""One peer over RDMA: its lanes, the grants shown to it, the batches in motion.

Rules
- A batch's slices are taken by whichever lane has room; what a broken lane had not finished goes to another at once.
- When the control connection ends, the peer is gone: its grants died with the connection. Connect anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from transfer.errors import GrantInvalid, LimitReached, PeerUnreachable, Reason
from transfer.grants import Descriptor
from transfer.moving import MovingEndpoint, Work
from transfer.native import RdmaJob
from transfer.rails import RailState
from transfer.rdma.control import Control
from transfer.rdma.frames import Ended, FrameInvalid, Hello, Present, Shown
from transfer.rdma.lanes import Lanes
from transfer.rdma.shown import ShownGrant, windows_of

if TYPE_CHECKING:
    from transfer.rdma.transport import RdmaTransport

__all__ = ["RdmaEndpoint"]


class RdmaEndpoint(MovingEndpoint[RdmaJob, ShownGrant]):
    """Made by RdmaTransport.connect."""

    def __init__(self, host: RdmaTransport, control: Control, peer: Hello) -> None:
        config = host.config
        super().__init__(host, peer.incarnation, slice_bytes=config.slice_bytes, quiesce_max_s=config.quiesce_max_s)
        self._host = host
        self._control = control
        self._lanes = Lanes(host, self.peer, control, peer)
        self._grants: dict[tuple[int, int], tuple[int, bytes]] = {}  # (access, descriptor), by slot and generation
        self._accesses: dict[int, tuple[int, int]] = {}
        self._hearing = asyncio.get_running_loop().create_task(self._hear())

    @property
    def rails(self) -> list[RailState]:
        """In the order of the devices."""
        return self._lanes.states()

    @property
    def lanes_a_device(self) -> int:
        """The most on one of our devices."""
        return self._lanes.a_device

    async def open(self) -> None:
        """Raises PeerUnreachable."""
        await self._lanes.open()

    async def _hear(self) -> None:
        why = "this side has closed"
        try:
            while True:
                message, request = await self._control.next()
                if isinstance(message, Ended):
                    self._grant_ended(message)
                else:
                    self._control.answered(message, request)
        except (PeerUnreachable, FrameInvalid) as error:
            why = str(error)
        finally:
            self._control.lose(why)
            self._lanes.stop(why)
            self._host.engine.give_up(self.peer, True)

    # -- grants

    async def _show(
        self,
        asked: Mapping[bytes, Descriptor],
        deadline_s: float,
        fresh: bool,  # noqa: ARG002 - the peer's devices must know of a grant before anything moves by it
    ) -> None:
        answers = await asyncio.gather(
            *(self._control.ask(Present(one), deadline_s) for one in asked), return_exceptions=True
        )
        for (one, said), answer in zip(asked.items(), answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            if not isinstance(answer, Shown):
                raise PeerUnreachable("the peer broke the protocol")
            self._shown_by_peer(one, said, answer)

    def _shown_by_peer(self, descriptor: bytes, said: Descriptor, told: Shown) -> None:
        if told.reason is Reason.LATE:
            raise LimitReached("the peer registers no more memory for us", limit="mrs_max")
        if told.reason is not Reason.LANDED or len(told.keys) != len(said.ranges):
            raise GrantInvalid(f"grant: {told.reason.name.lower()}, or never one of this peer's")
        presented, over = self._presented(said)
        access = self._host.number()
        starts = np.array([start for start, _ in said.ranges], dtype=np.int64)
        shown = ShownGrant(presented, over, access, told.base, starts, told.keys)
        self._keep(descriptor, shown)
        self._grants[said.slot, said.generation] = access, descriptor
        self._accesses[access] = said.slot, said.generation

    def _grant_ended(self, told: Ended) -> None:
        access, _ = self._grants.get((told.slot, told.generation), (0, b""))
        if access:
            self._host.engine.end_access(self.peer, access, told.reason)
            self.access_ended(access)

    def access_ended(self, access: int) -> bool:
        """False: not one of this endpoint's."""
        known = self._accesses.pop(access, None)
        if known is None:
            return False
        _, descriptor = self._grants.pop(known)
        self._shown.pop(self._handles.pop(descriptor, 0), None)
        return True

    # -- bytes

    def _job(self, token: int, work: Work[ShownGrant]) -> RdmaJob:
        if len(work.plan.parts) and any(region.device is not None for region in work.regions):
            raise ValueError("parts: bytes that land on a device are not hashed here; see transfer.devices.staged")
        windows, of_rows = windows_of(work.rows, work.shown)
        keys = [self._host.local_keys(region.id) for region in work.regions]
        return RdmaJob(
            token, work.writing, work.spans, keys, windows, of_rows, work.rows, work.plan.slices, work.plan.parts
        )

    async def _end(self) -> None:
        whole = await self._lanes.close(self._host.config.quiesce_max_s)
        self._hearing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._hearing
        self._host.endpoint_closed(self, whole)
