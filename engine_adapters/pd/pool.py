"""Which server of a kind gets the next request, and which is left out. Pure: plain state, no clock, nothing awaited.

A server is left out at once when it cannot be reached or breaks off, and after `failures_max` failures in a row
otherwise (late, or an error of its own). It comes back with the next look at its health that goes well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

__all__ = ["Pool", "Server"]


@dataclass(slots=True, eq=False)
class Server:
    """Nobody has looked at a new one: it is down until somebody has."""

    url: str
    role: str  # prefill | decode
    up: bool = False
    outstanding: int = 0
    failures: int = 0
    last: int = 0  # number of the request that it was last taken for
    looked: int = 0  # looks begun before its last failure say nothing


class Pool:
    def __init__(self, role: str, urls: Iterable[str], failures_max: int) -> None:
        self.servers = [Server(url, role) for url in urls]
        self._failures_max = failures_max
        self._taken = 0

    def take(self, but: Collection[Server] = ()) -> Server | None:
        """The server that is up and has the fewest requests; of equals, the one that waited longest. Give it back."""
        fit = [server for server in self.servers if server.up and server not in but]
        if not fit:
            return None
        server = min(fit, key=lambda one: (one.outstanding, one.last))
        self._taken += 1
        server.last = self._taken
        server.outstanding += 1
        return server

    def give_back(self, server: Server) -> None:
        assert server.outstanding > 0
        server.outstanding -= 1

    def served(self, server: Server) -> None:
        """It answered a request."""
        server.failures = 0

    def failed(self, server: Server, *, gone: bool = False) -> None:
        """gone: it could not be reached, or broke off."""
        server.failures += 1
        if gone or server.failures >= self._failures_max:
            server.up = False
            server.looked += 1

    def looked(self, server: Server, *, well: bool, since: int, gone: bool = False) -> None:
        """A look at its health came back. since: server.looked when the look began."""
        if not well:
            self.failed(server, gone=gone)
        elif since == server.looked and not server.up:
            server.up, server.failures = True, 0

    @property
    def down(self) -> list[str]:
        return [server.url for server in self.servers if not server.up]

    @property
    def up(self) -> bool:
        return any(server.up for server in self.servers)
