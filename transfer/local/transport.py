"""The local transport of one process: its regions, its grants, its copying threads."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transfer.errors import LimitReached, PeerUnreachable, Reason, RegionPoisoned
from transfer.grants import GRANTS_MAX, Grant, Rights
from transfer.lending import Lender
from transfer.local.channel import Channel
from transfer.local.endpoint import LocalEndpoint
from transfer.local.motion import Motion
from transfer.local.served import Owner, for_others
from transfer.native import CopyPool, keep_forever
from transfer.pending import check_deadline
from transfer.plan import SLICE_BYTES
from transfer.regions import REGIONS_MAX, Region, RegionState

__all__ = ["LocalConfig", "LocalTransport"]


def _own_uid() -> frozenset[int]:
    return frozenset((os.getuid(),))


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """`path`: the Unix socket to listen on; "" makes one in a new directory. `workers`: copying threads; one
    fills a memory channel on small machines. `turn_slices`: how long a batch copies before another's turn.
    """

    path: str = ""
    trusted_uids: frozenset[int] = field(default_factory=_own_uid)
    workers: int = 1
    slice_bytes: int = SLICE_BYTES
    turn_slices: int = 8
    quiesce_max_s: float = 30.0
    transfers_max: int = 4_096
    regions_max: int = REGIONS_MAX
    grants_max: int = 16_384
    connections_max: int = 1_024

    def __post_init__(self) -> None:
        for name in ("workers", "turn_slices", "transfers_max", "regions_max", "connections_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 1 <= self.grants_max <= GRANTS_MAX:
            raise ValueError(f"grants_max must be within 1..{GRANTS_MAX}, not {self.grants_max}")
        if self.quiesce_max_s <= 0:
            raise ValueError(f"quiesce_max_s must be positive, not {self.quiesce_max_s}")


class LocalTransport(Lender):
    """See transfer.base.Transport. Of one event loop, on which it is made and used.

    Regions that are granted must be segments: private memory cannot be mapped by a peer. Any memory can be the local
    side.
    """

    def __init__(self, config: LocalConfig | None = None) -> None:
        self._config = config or LocalConfig()
        self._loop = asyncio.get_running_loop()
        super().__init__(
            key=secrets.token_bytes(32),
            incarnation=secrets.token_bytes(16),
            regions_max=self._config.regions_max,
            grants_max=self._config.grants_max,
            quiesce_max_s=self._config.quiesce_max_s,
        )
        self._directory = ""
        path = self._config.path
        if not path:
            self._directory = tempfile.mkdtemp(prefix="transfer-")
            if for_others(self._config.trusted_uids):
                Path(self._directory).chmod(0o711)  # they reach the socket by its name, and see no other
            path = str(Path(self._directory) / "local.sock")
        self._path = path
        self._owner = Owner(
            path,
            book=self.book,
            find_region=self.find_region,
            trusted_uids=self._config.trusted_uids,
            slots=self._config.grants_max,
            connections_max=self._config.connections_max,
        )
        self.ground = self._owner
        self._pool = CopyPool(self._config.workers, self._config.turn_slices)
        self._loop.add_reader(self._pool.fd, self._some_finished)
        self._tokens = itertools.count(1)
        self._motions: dict[int, Motion] = {}
        self._token_of: dict[Motion, int] = {}
        self._endpoints: dict[LocalEndpoint, None] = {}
        self._closed = False

    @property
    def address(self) -> str:
        return f"unix:{self._path}"

    # -- what endpoints use

    @property
    def slice_bytes(self) -> int:
        return self._config.slice_bytes

    @property
    def rails(self) -> Sequence[int]:
        return (1,) * self._config.workers

    @property
    def quiesce_max_s(self) -> float:
        return self._config.quiesce_max_s

    def submit(self, motion: Motion) -> None:
        if len(self._motions) >= self._config.transfers_max:
            raise LimitReached(f"{self._config.transfers_max} batches are in motion", limit="transfers_max")
        token = next(self._tokens)
        self._pool.submit(token, motion.job)
        self._motions[token] = motion
        self._token_of[motion] = token

    def stop(self, motion: Motion, reason: Reason) -> None:
        token = self._token_of.get(motion)
        if token is not None:
            self._pool.stop(token, int(reason))

    def endpoint_closed(self, endpoint: LocalEndpoint) -> None:
        self._endpoints.pop(endpoint, None)

    def _some_finished(self) -> None:
        for token in self._pool.finished():
            motion = self._motions.pop(token)
            del self._token_of[motion]
            motion.back()

    # -- grants

    async def grant(
        self, region: Region, ranges: Sequence[tuple[int, int]], *, rights: Rights = Rights.READ, lifetime_s: float
    ) -> Grant:
        if region.segment is None and region.state is RegionState.OPEN:
            raise ValueError(f"{region.name} is private memory: only a segment can be mapped by a local peer")
        return await super().grant(region, ranges, rights=rights, lifetime_s=lifetime_s)

    # -- peers

    async def connect(self, address: str, *, deadline_s: float) -> LocalEndpoint:
        check_deadline(deadline_s)
        path = address.removeprefix("unix:")
        if path == address:
            raise ValueError(f"address must begin with unix:, not {address!r}")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(deadline_s):
                await self._loop.sock_connect(sock, path)
        except (OSError, TimeoutError) as error:
            sock.close()
            raise PeerUnreachable(f"{address}: {error or 'no answer in time'}") from error
        endpoint = LocalEndpoint(
            lambda on_frame, on_end: Channel(sock, takes_fds=True, on_frame=on_frame, on_end=on_end), self
        )
        if endpoint.peer_uid() not in self._config.trusted_uids:
            await endpoint.close()
            raise PeerUnreachable(f"{address}: its owner is not a trusted user")
        self._endpoints[endpoint] = None
        try:
            await endpoint.greeted(deadline_s)
        except BaseException:
            await endpoint.close()
            raise
        return endpoint

    async def close(self) -> None:
        """Raises RegionPoisoned where some memory could not be made quiet; all else is closed then, too."""
        if self._closed:
            return
        self._closed = True
        for endpoint in list(self._endpoints):
            await endpoint.close()
        poisoned = await self.deregister_all()
        self._loop.remove_reader(self._pool.fd)
        if not self._pool.close(1.0 if not self._motions else 0.0):
            keep_forever(list(self._motions.values()))  # what a lost thread still points at
        self._owner.close()
        self._remove_directory()
        if poisoned:
            raise RegionPoisoned(f"not quiet at close: {', '.join(poisoned)}")

    def _remove_directory(self) -> None:
        if self._directory:
            with contextlib.suppress(OSError):
                Path(self._directory).rmdir()
