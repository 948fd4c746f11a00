"""Addresses of nodes: `unix:PATH` (the framed socket) or `HOST:PORT` (gRPC). Pure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

SUN_PATH_MAX: Final = 107


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: str


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    port: int


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
    return TcpAddress(host, int(port))
