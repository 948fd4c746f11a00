"""Which of a port's addresses (GIDs) to use. Pure.

Rules
- On Ethernet: RoCE v2 before v1, and in each, IPv4 before global IPv6 before link-local. Never a fixed index: tables
  are sparse in containers, and entries move after a link has flapped.
- An entry whose network device is not in this network namespace cannot be used, though it is listed.
- On InfiniBand: the port's own GID, index 0; within a subnet only the LID is used.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["GidEntry", "choose", "rank"]


@dataclass(frozen=True, slots=True)
class GidEntry:
    index: int
    gid: bytes  # 16
    v2: bool  # RoCE v2; else v1, or InfiniBand
    netdev: int  # its number; 0: none in this namespace


def rank(entry: GidEntry) -> int | None:
    """How good it is on Ethernet, the least the best. None: unusable."""
    address = ipaddress.IPv6Address(entry.gid)
    if not any(entry.gid) or not entry.netdev:
        return None
    if address.ipv4_mapped is not None:
        place = 2 if address.ipv4_mapped.is_link_local else 0
    else:
        place = 3 if address.is_link_local else 1
    return place + (0 if entry.v2 else 4)


def choose(entries: Sequence[GidEntry], *, ethernet: bool) -> GidEntry | None:
    if not ethernet:
        return next((entry for entry in entries if any(entry.gid)), None)
    ranked = [(place, entry.index, entry) for entry in entries if (place := rank(entry)) is not None]
    return min(ranked)[2] if ranked else None
