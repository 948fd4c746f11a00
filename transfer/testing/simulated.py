"""A transport over a simulated network: one-sided like RDMA, with the same hazards, in virtual time.

A batch is planned as any other; each slice is a request with a number of its own (transfer.testing.wire). Many
transports share a process, a loop and a `SimulatedNetwork`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from transfer.errors import Reason, RegionPoisoned
from transfer.grants import Grant, GrantBook, Rights
from transfer.lending import deregister_all, issue
from transfer.pending import check_deadline
from transfer.regions import Region, Regions, RegionState
from transfer.testing.network import Network, Weather
from transfer.testing.wire import SimulatedConfig, SimulatedEndpoint

__all__ = ["SimulatedConfig", "SimulatedEndpoint", "SimulatedNetwork", "SimulatedTransport"]


class SimulatedNetwork(Network):
    """A network and the transports on it, by address."""

    def __init__(self, seed: int, weather: Weather | None = None) -> None:
        super().__init__(seed, weather)
        self.transports: dict[str, SimulatedTransport] = {}


class SimulatedTransport:
    """See transfer.base.Transport. Many of them share a process, a loop and a Network."""

    endpoint_kind: type[SimulatedEndpoint] = SimulatedEndpoint

    def __init__(self, network: SimulatedNetwork, address: str, config: SimulatedConfig | None = None) -> None:
        self.network = network
        self.config = config or SimulatedConfig()
        if address in network.transports:
            raise ValueError(f"{address!r} is taken")
        network.transports[address] = self
        self._address = address
        self._regions = Regions()
        chance = network.child()
        self.book = GrantBook(chance.randbytes(32), chance.randbytes(16), lambda _: True)
        self.endpoints: list[SimulatedEndpoint] = []
        self.flush_hangs = False  # a fault to inject: the wire does not come back

    @property
    def address(self) -> str:
        return self._address

    def now_ns(self) -> int:
        return int(asyncio.get_running_loop().time() * 1e9)

    def find_region(self, region_id: int) -> Region | None:
        return self._regions.get(region_id)

    async def register(
        self,
        memory: object,
        *,
        name: str = "",
        writable: bool = True,
        on_poison: Callable[[Region], None] | None = None,
    ) -> Region:
        return self._regions.add(memory, name=name, writable=writable, on_poison=on_poison)

    async def deregister(self, region: Region) -> None:
        if region.state is RegionState.CLOSED:
            return
        await self.revoke(self.book.of_region(region.id))
        await region.quiesce(self.config.quiesce_max_s)
        self._regions.remove(region)
        region.let_go()

    async def grant(
        self, region: Region, ranges: Sequence[tuple[int, int]], *, rights: Rights = Rights.READ, lifetime_s: float
    ) -> Grant:
        now_ns = self.now_ns()
        return issue(self._regions, self.book, region, ranges, rights=rights, lifetime_s=lifetime_s, now_ns=now_ns)

    async def revoke(self, grants: Sequence[Grant]) -> None:
        for grant in grants:  # serving a slice is one step here, so nobody is ever in the middle of a touch
            self.book.end(grant)
            self.book.settle(grant)

    async def connect(self, address: str, *, deadline_s: float) -> SimulatedEndpoint:
        check_deadline(deadline_s)
        endpoint = self.endpoint_kind(self, address)
        await endpoint.ask(lambda peer: peer.address, deadline_s)  # PeerUnreachable where nobody answers
        self.endpoints.append(endpoint)
        return endpoint

    async def close(self) -> None:
        for endpoint in list(self.endpoints):
            await endpoint.close()
        poisoned = await deregister_all(self._regions, self.deregister)
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
        return region.memory[int(row[3]) : int(row[3]) + int(row[4])]


def _covers(ranges: Sequence[tuple[int, int]], offset: int, length: int) -> bool:
    return any(start <= offset and offset + length <= start + size for start, size in ranges)
