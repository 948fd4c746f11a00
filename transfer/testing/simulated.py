"""A transport over a simulated network: one-sided like RDMA, with the same hazards, in virtual time.

A batch is planned as any other; each slice is a request with a number of its own (transfer.testing.wire). Many
transports share a process, a loop and a `SimulatedNetwork`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from transfer.errors import Reason, RegionPoisoned
from transfer.grants import Grant, Rights
from transfer.lending import Lender
from transfer.pending import check_deadline
from transfer.regions import Region
from transfer.testing.network import Network, Weather
from transfer.testing.wire import SimulatedConfig, SimulatedEndpoint

__all__ = ["SimulatedConfig", "SimulatedEndpoint", "SimulatedNetwork", "SimulatedTransport"]


class SimulatedNetwork(Network):
    """A network and the transports on it, by address."""

    def __init__(self, seed: int, weather: Weather | None = None) -> None:
        super().__init__(seed, weather)
        self.transports: dict[str, SimulatedTransport] = {}

    def restart(self, address: str) -> None:
        """A dead or living node ends; another may now be made at its address. Nothing of it is told anybody."""
        self.kill(address)
        self.transports.pop(address, None)
        self.revive(address)


class _AtOnce:
    """Serving a slice is one step here, so nobody is ever in the middle of a touch."""

    def publish(self, grant: Grant, region: Region) -> None:
        """The book is what peers ask."""

    def end(self, grant: Grant) -> None:
        """As with `publish`."""

    def quiet(self, slot: int) -> bool:
        return True

    async def wait_quiet(self, slots: Collection[int], wait_s: float) -> bool:
        return True

    def region_gone(self, region: Region) -> None:
        """Nobody keeps anything of it."""


class SimulatedTransport(Lender):
    """See transfer.base.Transport. Many of them share a process, a loop and a Network."""

    endpoint_kind: type[SimulatedEndpoint] = SimulatedEndpoint

    def __init__(self, network: SimulatedNetwork, address: str, config: SimulatedConfig | None = None) -> None:
        self.network = network
        self.config = config or SimulatedConfig()
        if address in network.transports:
            raise ValueError(f"{address!r} is taken")
        network.transports[address] = self
        self._address = address
        chance = network.child()
        super().__init__(
            key=chance.randbytes(32),
            incarnation=chance.randbytes(16),
            quiesce_max_s=self.config.quiesce_max_s,
            now_ns=self.now_ns,
        )
        self.ground = _AtOnce()
        self.endpoints: list[SimulatedEndpoint] = []
        self.flush_hangs = False  # a fault to inject: the wire does not come back

    @property
    def address(self) -> str:
        return self._address

    def now_ns(self) -> int:
        return int(asyncio.get_running_loop().time() * 1e9)

    async def connect(self, address: str, *, deadline_s: float) -> SimulatedEndpoint:
        check_deadline(deadline_s)
        endpoint = self.endpoint_kind(self, address)
        endpoint.incarnation = await endpoint.ask(
            lambda peer: peer.incarnation, deadline_s
        )  # PeerUnreachable where nobody answers
        self.endpoints.append(endpoint)
        return endpoint

    async def close(self) -> None:
        for endpoint in list(self.endpoints):
            await endpoint.close()
        poisoned = await self.deregister_all()
        if self.network.transports.get(self._address) is self:
            del self.network.transports[self._address]
        if poisoned:
            raise RegionPoisoned(f"not quiet at close: {', '.join(poisoned)}")

    # -- as a peer: what its hardware does with a request, without its program

    def admits(self, descriptor: bytes, rows: npt.NDArray[np.int64], writing: bool) -> Reason:
        """Whether a slice may touch these rows now."""
        grant = self.book.find(descriptor, self.now_ns())
        if grant is None:
            return Reason.REVOKED
        needed = Rights.WRITE if writing else Rights.READ
        if not grant.rights & needed:
            return Reason.NOT_ALLOWED
        covered = all(_covers(grant.ranges, int(row[3]), int(row[4])) for row in rows)
        return Reason.NONE if covered else Reason.OUT_OF_BOUNDS

    def touch(self, region_id: int, row: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        region = self._regions.get(region_id)
        assert region is not None, "a region outlives its grants"
        return self.memory_of(region)[int(row[3]) : int(row[3]) + int(row[4])]

    def memory_of(self, region: Region) -> npt.NDArray[np.uint8]:
        """What the hardware touches."""
        return region.memory


def _covers(ranges: Sequence[tuple[int, int]], offset: int, length: int) -> bool:
    return any(start <= offset and offset + length <= start + size for start, size in ranges)
