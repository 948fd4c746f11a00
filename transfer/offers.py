"""What a process offers to those who want its bytes: where it runs, and by which ways it can be reached.

An offer travels as a small message (docs/format/offer.md) and is believed only as a hint: a false one leads to a
connection that fails, or to a slower way. It opens nothing; that is what grants are for.

Rules
- Parsing is bounded, and one offer has one form: what parses, encodes to the same bytes.
- Texts are shown to people, so they are printable or refused.
- What the kernel does not tell about this process is 0, and equals nothing.
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from transfer.errors import TransferFault

__all__ = ["Carrier", "Home", "Lack", "Offer", "OfferInvalid", "Route", "home_of", "parse_offer"]

OFFER_BYTES_MAX = 16 << 10
ROUTES_MAX = 16
LACKS_MAX = 8
FABRICS_MAX = 16
TRUSTED_MAX = 64
ADDRESS_BYTES_MAX = 512
FABRIC_BYTES_MAX = 64
WHY_BYTES_MAX = 200

_MAGIC = b"KVOF"
_VERSION = 1
_HEAD = struct.Struct("<4sBBBBBBH16sQQQQII")
# magic version routes lacks fabrics trusted 0 0 boot-id pid- mount- net-namespace started pid uid
_LENGTH = struct.Struct("<BH")
_NAMESPACES = ("pid", "mnt", "net")


class OfferInvalid(TransferFault):
    """Bytes that are not an offer this side can read."""


class Carrier(IntEnum):
    """A kind of transport; the number in the message."""

    LOCAL = 1
    RDMA = 2
    TCP = 3


@dataclass(frozen=True, slots=True)
class Home:
    """Where a process runs. A process id means something within its pid namespace, a socket's path within its mount
    namespace, a loopback address within its net namespace.
    """

    boot: bytes = bytes(16)
    pid_namespace: int = 0
    mount_namespace: int = 0
    net_namespace: int = 0
    started: int = 0  # in the kernel's ticks: a pid used again is another process
    pid: int = 0
    uid: int = 0

    def __post_init__(self) -> None:
        if len(self.boot) != 16:
            raise ValueError(f"boot must have 16 bytes, not {len(self.boot)}")

    def same_kernel(self, other: Home) -> bool:
        return any(self.boot) and self.boot == other.boot

    def same_files(self, other: Home) -> bool:
        """Whether a path names the same socket on both sides, and pids the same processes."""
        mine, theirs = ((home.pid_namespace, home.mount_namespace) for home in (self, other))
        return self.same_kernel(other) and all(mine) and mine == theirs

    def same_network(self, other: Home) -> bool:
        """Whether a loopback address means the same on both sides."""
        return self.same_kernel(other) and self.net_namespace != 0 and self.net_namespace == other.net_namespace

    def same_process(self, other: Home) -> bool:
        mine, theirs = ((home.pid, home.started) for home in (self, other))
        return self.same_files(other) and all(mine) and mine == theirs


@dataclass(frozen=True, slots=True)
class Route:
    """An address that the carrier's transport can `connect` to."""

    carrier: Carrier
    address: str


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a carrier is not offered, for the operator at the other end."""

    carrier: Carrier
    why: str


@dataclass(frozen=True, slots=True)
class Offer:
    """`routes` in the order in which to try them; `fabrics` are the RDMA networks it is on (transfer.paths.fabrics);
    `trusted_uids`: whom its local transport serves. Raises ValueError naming what is past its limit.
    """

    home: Home
    routes: tuple[Route, ...] = ()
    lacks: tuple[Lack, ...] = ()
    fabrics: tuple[str, ...] = ()
    trusted_uids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, limit in (
            ("routes", ROUTES_MAX),
            ("lacks", LACKS_MAX),
            ("fabrics", FABRICS_MAX),
            ("trusted_uids", TRUSTED_MAX),
        ):
            if len(getattr(self, name)) > limit:
                raise ValueError(f"{name}: at most {limit} of them, not {len(getattr(self, name))}")
        for text, limit in self._texts():
            if not 1 <= len(text.encode(errors="replace")) <= limit or not text.isprintable():
                raise ValueError(f"texts must be printable and have 1..{limit} bytes, not {text!r}")

    def _texts(self) -> list[tuple[str, int]]:
        return [
            *((route.address, ADDRESS_BYTES_MAX) for route in self.routes),
            *((lack.why, WHY_BYTES_MAX) for lack in self.lacks),
            *((fabric, FABRIC_BYTES_MAX) for fabric in self.fabrics),
        ]

    def why_not(self, carrier: Carrier) -> str:
        """ "" where nothing is known."""
        return next((lack.why for lack in self.lacks if lack.carrier is carrier), "")

    def encode(self) -> bytes:
        home = self.home
        head = _HEAD.pack(
            _MAGIC,
            _VERSION,
            len(self.routes),
            len(self.lacks),
            len(self.fabrics),
            len(self.trusted_uids),
            0,
            0,
            home.boot,
            home.pid_namespace,
            home.mount_namespace,
            home.net_namespace,
            home.started,
            home.pid,
            home.uid,
        )
        texts = [(int(route.carrier), route.address) for route in self.routes]
        texts += [(int(lack.carrier), lack.why) for lack in self.lacks]
        texts += [(0, fabric) for fabric in self.fabrics]
        parts = [head, struct.pack(f"<{len(self.trusted_uids)}I", *self.trusted_uids)]
        for kind, text in texts:
            data = text.encode()
            parts += [_LENGTH.pack(kind, len(data)), data]
        return b"".join(parts)


def parse_offer(data: bytes | memoryview) -> Offer:
    """Raises OfferInvalid."""
    if not _HEAD.size <= len(data) <= OFFER_BYTES_MAX:
        raise OfferInvalid(f"offer: {len(data)} bytes, which is not an offer's size")
    data = bytes(data)
    magic, version, routes, lacks, fabrics, trusted, zero, zeros, *home = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise OfferInvalid("offer: not an offer")
    if version != _VERSION:
        raise OfferInvalid(f"offer: format version {version}, this side reads {_VERSION}")
    if zero or zeros:
        raise OfferInvalid("offer: malformed")
    at = _HEAD.size + 4 * trusted
    if at > len(data):
        raise OfferInvalid("offer: cut short")
    uids = struct.unpack_from(f"<{trusted}I", data, _HEAD.size)
    texts = _texts(data, at, routes + lacks + fabrics)
    try:
        return Offer(
            Home(*home),
            tuple(Route(Carrier(kind), text) for kind, text in texts[:routes]),
            tuple(Lack(Carrier(kind), text) for kind, text in texts[routes : routes + lacks]),
            tuple(_fabric(kind, text) for kind, text in texts[routes + lacks :]),
            uids,
        )
    except ValueError as error:
        raise OfferInvalid(f"offer: {error}") from None


def _texts(data: bytes, at: int, count: int) -> Sequence[tuple[int, str]]:
    """All of what is left: (kind, text), `count` times."""
    found: list[tuple[int, str]] = []
    for _ in range(count):
        if at + _LENGTH.size > len(data):
            raise OfferInvalid("offer: cut short")
        kind, length = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + length > len(data):
            raise OfferInvalid("offer: cut short")
        try:
            found.append((kind, data[at : at + length].decode()))
        except UnicodeDecodeError:
            raise OfferInvalid("offer: a text is not UTF-8") from None
        at += length
    if at != len(data):
        raise OfferInvalid("offer: bytes behind its end")
    return found


def _fabric(kind: int, text: str) -> str:
    if kind != 0:
        raise ValueError("a fabric has no carrier")
    return text


def home_of(proc: Path = Path("/proc")) -> Home:
    """This process's home, by what /proc says of it."""
    try:
        boot = uuid.UUID((proc / "sys/kernel/random/boot_id").read_text().strip()).bytes
    except (OSError, ValueError):
        boot = bytes(16)
    spaces = [_namespace(proc / "self/ns" / name) for name in _NAMESPACES]
    return Home(boot, spaces[0], spaces[1], spaces[2], _started(proc), os.getpid(), os.getuid())


def _namespace(link: Path) -> int:
    """The number in a link as `mnt:[4026531841]`."""
    try:
        return int(str(link.readlink()).partition("[")[2].rstrip("]"))
    except (OSError, ValueError):
        return 0


def _started(proc: Path) -> int:
    """Field 22 of /proc/self/stat, counted from behind the name, which may hold anything."""
    try:
        return int((proc / "self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
