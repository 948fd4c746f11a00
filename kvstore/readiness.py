"""Tells systemd that a node is ready, or stops: one datagram, as sd_notify(3) has it. Nobody asked: nothing is done."""

from __future__ import annotations

import logging
import socket
from typing import Final

from kvstore.config import notify_socket

__all__ = ["READY", "STOPPING", "notify"]

log = logging.getLogger(__name__)

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"


def notify(state: str) -> None:
    """Never raises: a node that cannot say so runs all the same."""
    where = notify_socket()
    if where is None:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), "\0" + where[1:] if where.startswith("@") else where)
    except OSError as error:
        log.warning("NOTIFY_SOCKET %s: %s not told: %s", where, state, error)
