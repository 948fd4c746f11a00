"""What a cluster asks of membership: who should be there, watched. Who *is* there, pings decide (liveness.py).

Rules
- Nothing that happens to discovery takes a node away from those that know it: `view` is the last one that was told,
  also while etcd does not answer. A node that is gone from it and answers pings is a member still.
- Joining is where a cluster can be refused: settings that differ are named with both values, an id that two nodes
  have with both addresses. Misconfigured says so; the node that joins is the one that goes.
- Nothing here believes what it reads: records are parsed with bounds.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from kvstore.directory.agreement import Settings
from kvstore.errors import Unavailable

__all__ = [
    "ID_BYTES",
    "MEMBERS_MAX",
    "Discovery",
    "Greet",
    "Member",
    "Membership",
    "View",
    "decode_member",
    "distance",
    "duplicate",
    "encode_member",
]

ID_BYTES: Final = 16
MEMBERS_MAX: Final = 4_096
RECORD_BYTES_MAX: Final = 4_096
TEXT_MAX: Final = 256
TEXTS: Final = ("address", "name", "grpc", "host", "version")


@dataclass(frozen=True, slots=True)
class Member:
    """A node as it introduces itself. Of one that was listed and never met only the address is known.

    address: of its framed door, HOST:PORT, as other nodes reach it. incarnation: another one at each start.
    host: the same for nodes of one machine. grpc: its gRPC door, "" without one. fabrics: RDMA networks by which it can
    be read from, as an offer names them.
    """

    address: str
    id: bytes = b""
    incarnation: int = 0
    name: str = ""
    grpc: str = ""
    host: str = ""
    version: str = ""
    fabrics: tuple[str, ...] = ()


def distance(one: Member, other: Member) -> int:
    """0: of one machine. 1: RDMA may lead from one to the other. 2: neither."""
    if one.host == other.host:
        return 0
    return 1 if set(one.fabrics) & set(other.fabrics) else 2


@dataclass(frozen=True, slots=True)
class View:
    """Who should be there beside this node, one member an address. A static list may name this node, too, by whatever
    address. epoch: grows with every change.
    """

    members: tuple[Member, ...] = ()
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Discovery:
    """kind: standalone, static or etcd. away_s: for how long it has not answered; 0: it does. why: what it said."""

    kind: str
    away_s: float = 0.0
    why: str = ""


# Meets the node at an address: who it is. Raises Misconfigured where the two may not be in one cluster, Unavailable
# where nobody answers there.
Greet = Callable[[str], Awaitable[Member]]


class Membership(Protocol):
    """On one event loop, from `join` to `leave`."""

    @property
    def view(self) -> View:
        """The last one that was told. Empty before `join`."""
        ...

    @property
    def discovery(self) -> Discovery: ...

    async def join(self, me: Member, settings: Settings, greet: Greet) -> None:
        """Returns when others can find this node. Raises Misconfigured: refused, or nobody to ask within the time
        that the settings allow. `me`'s framed door must be open: others come there.
        """
        ...

    async def changed(self, epoch: int) -> View:
        """A view of another epoch than this one; waits for it."""
        ...

    async def leave(self) -> None:
        """Others need not look for this node any more. Idempotent, bounded, and never raises for discovery's sake."""
        ...


def duplicate(id_: bytes, here: str, there: str) -> str:
    """Why a node is refused whose id another one has."""
    return (
        f"node id {id_.hex()}: two nodes have it, {here} and {there}: a data directory was copied; "
        "delete the file node-id in one of them"
    )


def encode_member(member: Member) -> bytes:
    told: dict[str, object] = {name: getattr(member, name) for name in TEXTS}
    return json.dumps({**told, "id": member.id.hex(), "incarnation": f"{member.incarnation:016x}"}).encode()


def decode_member(record: bytes) -> Member:
    """ValueError says what is wrong with it."""
    if len(record) > RECORD_BYTES_MAX:
        raise ValueError(f"more than {RECORD_BYTES_MAX} bytes")
    try:
        told = json.loads(record)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(told, Mapping):
        raise ValueError("not a JSON object")
    texts: dict[str, str] = {}
    for name in (*TEXTS, "id", "incarnation"):
        text = told.get(name, "")
        if not isinstance(text, str) or len(text) > TEXT_MAX or not text.isprintable():
            raise ValueError(f"{name}: must be a printable text of at most {TEXT_MAX} characters")
        texts[name] = text
    try:
        id_, incarnation = bytes.fromhex(texts.pop("id")), int(texts.pop("incarnation"), 16)
    except ValueError as error:
        raise ValueError(f"id, incarnation: {error}") from None
    if len(id_) != ID_BYTES or not 0 <= incarnation < 1 << 64 or not texts["address"]:
        raise ValueError("id: 16 bytes; incarnation: 8 bytes; address: needed")
    return Member(id=id_, incarnation=incarnation, fabrics=(), **texts)


async def already_has(greet: Greet, me: Member, there: Member) -> bool:
    """Whether the node of `there`, which has our id, lives at its address, beside us."""
    try:
        found = await greet(there.address)
    except Unavailable:
        return False
    return found.id == me.id and found.incarnation != me.incarnation
