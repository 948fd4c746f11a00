"""Peers that listen on all interfaces whatever they are told run where loopback is the only one: `process.alone`."""

from __future__ import annotations

import fcntl
import socket
import struct

__all__ = ["loopback_only"]


def loopback_only() -> None:
    """Brings the loopback interface of this network namespace up; raises where there is another one."""
    if (names := [name for _, name in socket.if_nameindex()]) != ["lo"]:
        raise RuntimeError(f"it would listen on {', '.join(names)}: it needs a network namespace of its own")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        flags = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(plain, 0x8914, flags)  # SIOCSIFFLAGS
