"""Ports for what has to be told its port before it starts, or comes back to the one that it had."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import socket
from collections.abc import Iterator
from typing import Final

__all__ = ["free_ports"]

BEGIN: Final = 12_000
END: Final = 32_000  # net.ipv4.ip_local_port_range begins at 32,768
SHARES: Final = 4  # of pytest's workers


def free_ports(count: int) -> list[int]:
    """Of loopback, that nobody has now, and nobody gets who does not ask for them by number: they lie below those that
    the kernel gives to whoever connects, so one is still free when its node starts again. No two of a run are alike.
    """
    found: list[int] = []
    while len(found) < count:
        port = next(_PORTS)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.append(port)
    return found


def _ports() -> Iterator[int]:
    """From a place drawn by chance, and another share of them for each of pytest's workers."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw") or 0) % SHARES
    share = (END - BEGIN) // SHARES
    for at in itertools.count(secrets.randbelow(share)):
        yield BEGIN + worker * share + at % share


_PORTS = _ports()
