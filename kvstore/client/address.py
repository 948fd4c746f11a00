"""Addresses of nodes' framed doors: `unix:PATH`, or `HOST:PORT`, or several of these. Pure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from kvstore.security import is_local

SUN_PATH_MAX: Final = 107
NODES_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: str

    @property
    def is_local(self) -> bool:
        return True

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """host: a name or an address, IPv6 without brackets."""

    host: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether it is this machine's own for sure."""
        return is_local(str(self))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(address: str) -> UnixAddress | TcpAddress:
    """ValueError names what is wrong with it."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path or "\0" in path or len(os.fsencode(path)) > SUN_PATH_MAX:
            raise ValueError(f"address: {address!r}, the path must have 1 to {SUN_PATH_MAX} bytes")
        return UnixAddress(path)
    host, colon, port = address.rpartition(":")
    if not colon or not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError(f"address: {address!r}, must be unix:PATH or HOST:PORT")
    return TcpAddress(host.strip("[]"), int(port))


def parse_all(address: str) -> list[UnixAddress | TcpAddress]:
    """One, or several nodes of a cluster: "host:port,host:port,...", each once, in one order. ValueError names what is
    wrong with it.
    """
    several = "," in address and not address.startswith("unix:")
    found = [parse(one.strip()) for one in address.split(",")] if several else [parse(address)]
    if len(found) > 1 and any(isinstance(one, UnixAddress) for one in found):
        raise ValueError(f"address: {address!r}, several nodes must be HOST:PORT each")
    if len(found) > NODES_MAX:
        raise ValueError(f"address: {len(found)} nodes, at most {NODES_MAX}")
    return sorted(set(found), key=str)
