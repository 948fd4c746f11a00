"""What the two sides of a connection tell each other beside the bytes: greetings, queue pairs, grants. One parser.

  frame    "KVRC"  version u8  kind u8  0 u16  request u32  body bytes u32 | body

  HELLO    both, first, and first who connected: who it is, and a rail for each of its devices
  JOIN     asks for a queue pair, its own inside; JOINED answers, with the other's, connected
  PRESENT  a descriptor; SHOWN answers: how the devices know what it grants
  ENDED    of its own accord: a grant that was shown has ended

Rules
- Nothing is believed: sizes, counts and small numbers are checked here, before anybody uses them. Raises FrameInvalid.
- `request` pairs an answer with its question; 0 for what is not one. Both sides may ask, each counting for itself.
- Version 1, where only who connected asks, is read and answered in its own version.
- All numbers are little-endian, but GIDs, which are 16 bytes as the devices have them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from transfer.errors import Reason, TransferFault
from transfer.grants import DESCRIPTOR_BYTES_MAX

__all__ = [
    "HEAD_BYTES",
    "LANES_MAX",
    "RAILS_MAX",
    "VERSION",
    "Ended",
    "FrameInvalid",
    "Head",
    "Hello",
    "Join",
    "Joined",
    "Kind",
    "Message",
    "Present",
    "RailOffer",
    "Shown",
    "parse_body",
    "parse_head",
    "to_frame",
]

MAGIC = b"KVRC"
VERSION = 2
OLDEST = 1
RAILS_MAX = 16
LANES_MAX = 16  # queue pairs a rail
KEYS_MAX = 1 << 18
INCARNATION_BYTES = 16
WHY_BYTES_MAX = 200
_HEAD = struct.Struct("<4sBBHII")
HEAD_BYTES = _HEAD.size
_HELLO = struct.Struct("<16sB")
_RAIL = struct.Struct("<16sHBBBB")  # gid lid mtu reads flags 0
_JOIN = struct.Struct("<HBBIIBB16sH")  # lane rail peer_rail qpn psn mtu reads gid lid
_JOINED = struct.Struct("<BIIBB")  # ok qpn psn mtu reads
_SHOWN = struct.Struct("<BQIB")  # reason base ranges devices
_ENDED = struct.Struct("<IIB")  # slot generation reason
_SLOT_MAX = 1 << 24


class FrameInvalid(TransferFault):
    """The peer does not speak this protocol; its connection ends."""


class Kind(IntEnum):
    HELLO = 1
    JOIN = 2
    JOINED = 3
    PRESENT = 4
    SHOWN = 5
    ENDED = 6


_BODY_MAX = {
    Kind.HELLO: _HELLO.size + RAILS_MAX * _RAIL.size,
    Kind.JOIN: _JOIN.size,
    Kind.JOINED: _JOINED.size + WHY_BYTES_MAX,
    Kind.PRESENT: DESCRIPTOR_BYTES_MAX,
    Kind.SHOWN: _SHOWN.size + 4 * KEYS_MAX,
    Kind.ENDED: _ENDED.size,
}


@dataclass(frozen=True, slots=True)
class RailOffer:
    """A device's port as its peer needs to know it. `mtu`: an ibv_mtu, 1..5. `reads`: outstanding reads it answers."""

    gid: bytes
    lid: int
    mtu: int
    reads: int
    ethernet: bool
    active: bool


@dataclass(frozen=True, slots=True)
class Hello:
    incarnation: bytes
    rails: tuple[RailOffer, ...]


@dataclass(frozen=True, slots=True)
class Join:
    """`lane` names the queue pair between the two; asked for again, it replaces the one before. `rail`: the asker's."""

    lane: int
    rail: int
    peer_rail: int
    qpn: int
    psn: int
    mtu: int
    reads: int
    gid: bytes
    lid: int


@dataclass(frozen=True, slots=True)
class Joined:
    """`why` not empty: it could not be done, and the rest is 0."""

    qpn: int = 0
    psn: int = 0
    mtu: int = 1
    reads: int = 1
    why: str = ""


@dataclass(frozen=True, slots=True)
class Present:
    descriptor: bytes


@dataclass(frozen=True, slots=True)
class Shown:
    """`keys[range][device]` where `reason` is LANDED, and `base` what the grant's offsets count from there. LATE: the
    owner has no room for it now. Other reasons: why there is nothing.
    """

    reason: Reason
    base: int = 0
    keys: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    slot: int
    generation: int
    reason: Reason


Message = Hello | Join | Joined | Present | Shown | Ended
_KINDS: dict[type[Message], Kind] = {
    Hello: Kind.HELLO,
    Join: Kind.JOIN,
    Joined: Kind.JOINED,
    Present: Kind.PRESENT,
    Shown: Kind.SHOWN,
    Ended: Kind.ENDED,
}


def to_frame(message: Message, request: int = 0, version: int = VERSION) -> bytes:
    body = _body(message)
    return _HEAD.pack(MAGIC, version, _KINDS[type(message)], 0, request, len(body)) + body


class Head(NamedTuple):
    version: int
    kind: Kind
    request: int
    size: int  # of the body


def parse_head(head: bytes) -> Head:
    magic, version, kind, zero, request, size = _HEAD.unpack(head)
    if magic != MAGIC or zero != 0:
        raise FrameInvalid("not a frame of this protocol")
    if not OLDEST <= version <= VERSION:
        raise FrameInvalid(f"protocol version {version}; this side speaks {VERSION}")
    if kind not in set(Kind):
        raise FrameInvalid(f"no frame of kind {kind}")
    if size > _BODY_MAX[Kind(kind)]:
        raise FrameInvalid(f"a {Kind(kind).name} of {size} bytes; at most {_BODY_MAX[Kind(kind)]}")
    return Head(version, Kind(kind), request, size)


def parse_body(kind: Kind, body: bytes) -> Message:
    try:
        return _PARSERS[kind](body)
    except (struct.error, ValueError) as error:
        raise FrameInvalid(f"malformed {kind.name}: {error}") from error


def _body(message: Message) -> bytes:
    match message:
        case Hello(incarnation, rails):
            return _HELLO.pack(incarnation, len(rails)) + b"".join(
                _RAIL.pack(r.gid, r.lid, r.mtu, r.reads, r.ethernet | r.active << 1, 0) for r in rails
            )
        case Join(lane, rail, peer_rail, qpn, psn, mtu, reads, gid, lid):
            return _JOIN.pack(lane, rail, peer_rail, qpn, psn, mtu, reads, gid, lid)
        case Joined(qpn, psn, mtu, reads, why):
            told = why.encode()[:WHY_BYTES_MAX].decode(errors="ignore").encode()
            return _JOINED.pack(not why, qpn, psn, mtu, reads) + told
        case Present(descriptor):
            return descriptor
        case Shown(reason, base, keys):
            flat = [key for row in keys for key in row]
            devices = len(keys[0]) if keys else 0
            return _SHOWN.pack(reason, base, len(keys), devices) + struct.pack(f"<{len(flat)}I", *flat)
        case Ended(slot, generation, reason):
            return _ENDED.pack(slot, generation, reason)


def _check(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ValueError(f"{name} {value} is not within {low}..{high}")
    return value


def _hello(body: bytes) -> Hello:
    incarnation, count = _HELLO.unpack_from(body)
    _check("rails", count, 0, RAILS_MAX)
    if len(body) != _HELLO.size + count * _RAIL.size:
        raise ValueError("its size and its rails differ")
    rails = []
    for gid, lid, mtu, reads, flags, zero in _RAIL.iter_unpack(body[_HELLO.size :]):
        _check("flags", flags | zero << 8, 0, 3)
        rails.append(
            RailOffer(gid, lid, _check("mtu", mtu, 1, 5), _check("reads", reads, 1, 255), bool(flags & 1), flags > 1)
        )
    return Hello(incarnation, tuple(rails))


def _join(body: bytes) -> Join:
    lane, rail, peer_rail, qpn, psn, mtu, reads, gid, lid = _JOIN.unpack(body)
    _check("lane", lane, 0, RAILS_MAX * LANES_MAX - 1)
    _check("rail", rail, 0, RAILS_MAX - 1)
    _check("peer_rail", peer_rail, 0, RAILS_MAX - 1)
    _check("psn", psn, 0, 0xFF_FFFF)
    _check("qpn", qpn, 0, 0xFF_FFFF)
    return Join(lane, rail, peer_rail, qpn, psn, _check("mtu", mtu, 1, 5), _check("reads", reads, 1, 255), gid, lid)


def _joined(body: bytes) -> Joined:
    ok, qpn, psn, mtu, reads = _JOINED.unpack_from(body)
    why = body[_JOINED.size :].decode()
    if _check("ok", ok, 0, 1) == 0:
        return Joined(why=why or "refused")
    if why:
        raise ValueError("an answer with a reason against it")
    _check("psn", psn, 0, 0xFF_FFFF)
    _check("qpn", qpn, 0, 0xFF_FFFF)
    return Joined(qpn, psn, _check("mtu", mtu, 1, 5), _check("reads", reads, 1, 255))


def _shown(body: bytes) -> Shown:
    reason, base, ranges, devices = _SHOWN.unpack_from(body)
    if reason != Reason.LANDED:
        if len(body) != _SHOWN.size or (base, ranges, devices) != (0, 0, 0):
            raise ValueError("a refusal with keys")
        return Shown(Reason(reason))
    _check("devices", devices, 1, RAILS_MAX)
    _check("ranges", ranges, 1, KEYS_MAX // devices)
    _check("base", base, 0, (1 << 63) - 1)
    if len(body) != _SHOWN.size + 4 * ranges * devices:
        raise ValueError("its size and its counts differ")
    rows = struct.iter_unpack(f"<{devices}I", body[_SHOWN.size :])
    return Shown(Reason.LANDED, base, tuple(rows))


def _ended(body: bytes) -> Ended:
    slot, generation, reason = _ENDED.unpack(body)
    if reason not in (Reason.REVOKED, Reason.EXPIRED):
        raise ValueError(f"a grant does not end by reason {reason}")
    return Ended(_check("slot", slot, 0, _SLOT_MAX), generation, Reason(reason))


_PARSERS: dict[Kind, Callable[[bytes], Message]] = {
    Kind.HELLO: _hello,
    Kind.JOIN: _join,
    Kind.JOINED: _joined,
    Kind.PRESENT: Present,
    Kind.SHOWN: _shown,
    Kind.ENDED: _ended,
}
