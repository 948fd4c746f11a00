"""Grants: the right to touch ranges of a region until a lifetime is over, and the descriptor that carries it.

Rules
- A descriptor is authenticated by its issuer (HMAC-SHA-256, 128 bits of it): a peer can neither widen nor prolong it,
  nor change its region. It is parsed with bounds, and nothing in it is believed before the MAC is checked.
- It carries a duration; the moment a grant ends is kept by the issuer's clock alone.
- A slot is used again only after its grant has ended and nobody touches its memory, with a higher generation: an old
  descriptor never opens a new grant.

The format is docs/format/grant.md.
"""

from __future__ import annotations

import heapq
import hmac
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntFlag

from transfer.errors import GrantInvalid, LimitReached

__all__ = ["Descriptor", "Grant", "GrantBook", "Rights", "check_lifetime", "normal_ranges", "parse_descriptor"]

GRANTS_MAX = 65_536
RANGES_MAX = 65_536
LIFETIME_S_MAX = 7 * 24 * 3600.0
MAGIC = b"KVGR"
VERSION = 1
GENERATION_MAX = 0xFFFF_FFFF
MAC_BYTES = 16
INCARNATION_BYTES = 16
_HEAD = struct.Struct(
    "<4sBBH16sIIQQQI"
)  # magic version rights 0 incarnation slot generation region bytes life_ms count
_RANGE = struct.Struct("<QQ")
DESCRIPTOR_BYTES_MAX = _HEAD.size + RANGES_MAX * _RANGE.size + MAC_BYTES

Ranges = tuple[tuple[int, int], ...]


class Rights(IntFlag):
    READ = 1
    WRITE = 2


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a descriptor says. `ranges` are (offset, length), sorted, disjoint, within the region, at least one."""

    incarnation: bytes
    slot: int
    generation: int
    region: int
    region_bytes: int
    lifetime_ms: int
    rights: Rights
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant in its issuer's hands; `descriptor` is for the peer."""

    region: int
    slot: int
    generation: int
    rights: Rights
    ranges: Ranges
    lifetime_s: float
    expiry_ns: int  # of the issuer's clock
    descriptor: bytes = field(repr=False)


def parse_descriptor(data: bytes | memoryview) -> Descriptor:
    """Reads a descriptor without believing it: sizes and order are checked, the MAC is not. Raises GrantInvalid."""
    data = bytes(data) if len(data) <= DESCRIPTOR_BYTES_MAX else b""
    if len(data) < _HEAD.size + _RANGE.size + MAC_BYTES:
        raise GrantInvalid("grant: not of a descriptor's size")
    magic, version, rights, zero, incarnation, slot, generation, region, size, life_ms, count = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise GrantInvalid("grant: not a descriptor")
    if version != VERSION:
        raise GrantInvalid(f"grant: format version {version}, this side reads {VERSION}")
    if zero != 0 or rights not in (1, 2, 3) or slot >= GRANTS_MAX:
        raise GrantInvalid("grant: malformed")
    if not 1 <= count <= RANGES_MAX or len(data) != _HEAD.size + count * _RANGE.size + MAC_BYTES:
        raise GrantInvalid("grant: its size and its count of ranges differ")
    ranges = tuple(_RANGE.iter_unpack(data[_HEAD.size : -MAC_BYTES]))
    end = 0
    for offset, length in ranges:
        if length == 0 or offset < end or offset + length > size:
            raise GrantInvalid("grant: ranges must be sorted, disjoint and within the region")
        end = offset + length
    return Descriptor(incarnation, slot, generation, region, size, life_ms, Rights(rights), ranges)


def normal_ranges(ranges: Sequence[tuple[int, int]], region_bytes: int) -> Ranges:
    """Sorted, joined where they touch or overlap. Raises ValueError naming the range that is not within the region."""
    joined: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if offset < 0 or length < 0 or offset + length > region_bytes:
            raise ValueError(f"ranges: ({offset}, {length}) is not within the region's {region_bytes} bytes")
        if length == 0:
            continue
        if joined and offset <= joined[-1][0] + joined[-1][1]:
            start = joined[-1][0]
            joined[-1] = (start, max(joined[-1][1], offset + length - start))
        else:
            joined.append((offset, length))
    if not joined:
        raise ValueError("ranges must hold at least one byte")
    if len(joined) > RANGES_MAX:
        raise LimitReached(f"a grant of {len(joined)} ranges; at most {RANGES_MAX}", limit="ranges_max")
    return tuple(joined)


def check_lifetime(lifetime_s: float) -> None:
    if not 0 < lifetime_s <= LIFETIME_S_MAX:
        raise ValueError(f"lifetime_s must be within (0, {LIFETIME_S_MAX:.0f}], not {lifetime_s}")


class GrantBook:
    """What one transport has granted. Decides only; whoever owns it publishes what changes.

    `quiet(slot)` says whether nobody touches memory by that slot's grant just now.
    """

    def __init__(
        self, key: bytes, incarnation: bytes, quiet: Callable[[int], bool], *, grants_max: int = GRANTS_MAX
    ) -> None:
        if len(incarnation) != INCARNATION_BYTES or len(key) < MAC_BYTES:
            raise ValueError(f"incarnation must have {INCARNATION_BYTES} bytes, key at least {MAC_BYTES}")
        if not 1 <= grants_max <= GRANTS_MAX:
            raise ValueError(f"grants_max must be within 1..{GRANTS_MAX}, not {grants_max}")
        self.incarnation = incarnation
        self._key = key
        self._quiet = quiet
        self._grants_max = grants_max
        self._live: dict[int, Grant] = {}  # by slot
        self._ending: dict[int, Grant] = {}  # ended, but their slot may still be touched
        self._generations: list[int] = []
        self._free: list[int] = []
        self._expiries: list[tuple[int, int, int]] = []  # (expiry, slot, generation), a heap

    def __len__(self) -> int:
        return len(self._live)

    def issue(
        self, region: int, region_bytes: int, ranges: Ranges, *, rights: Rights, lifetime_s: float, now_ns: int
    ) -> Grant:
        """`ranges` as normal_ranges gives them. Raises LimitReached(grants_max)."""
        check_lifetime(lifetime_s)
        if not Rights(0) < rights <= (Rights.READ | Rights.WRITE):
            raise ValueError("rights must be READ, WRITE or both")
        slot = self._take_slot(now_ns)
        self._generations[slot] += 1
        generation = self._generations[slot]
        life_ms = max(1, int(lifetime_s * 1000))
        head = _HEAD.pack(
            MAGIC,
            VERSION,
            int(rights),
            0,
            self.incarnation,
            slot,
            generation,
            region,
            region_bytes,
            life_ms,
            len(ranges),
        )
        body = head + b"".join(_RANGE.pack(offset, length) for offset, length in ranges)
        expiry_ns = now_ns + int(lifetime_s * 1e9)
        grant = Grant(region, slot, generation, rights, ranges, lifetime_s, expiry_ns, body + self._mac(body))
        self._live[slot] = grant
        heapq.heappush(self._expiries, (expiry_ns, slot, generation))
        if len(self._expiries) > 2 * len(self._live) + 1024:  # mostly of grants revoked early
            self._expiries = [(kept.expiry_ns, kept.slot, kept.generation) for kept in self._live.values()]
            heapq.heapify(self._expiries)
        return grant

    def find(self, descriptor: bytes, now_ns: int) -> Grant | None:
        """The live grant that this descriptor is of; None for what was forged, has ended, or is not ours."""
        if not MAC_BYTES < len(descriptor) <= DESCRIPTOR_BYTES_MAX:
            return None
        if not hmac.compare_digest(self._mac(descriptor[:-MAC_BYTES]), descriptor[-MAC_BYTES:]):
            return None
        said = parse_descriptor(descriptor)
        grant = self._live.get(said.slot)
        if grant is None or grant.generation != said.generation or said.incarnation != self.incarnation:
            return None
        return grant if now_ns < grant.expiry_ns else None

    def end(self, grant: Grant) -> bool:
        """No touch may begin by it any more. False: it had ended already. The slot stays taken until it is quiet."""
        if self._live.get(grant.slot) != grant:
            return False
        del self._live[grant.slot]
        self._ending[grant.slot] = grant
        return True

    def of_region(self, region: int) -> list[Grant]:
        """Live and ending grants of a region: all by which its memory may still be touched."""
        kept = [*self._live.values(), *self._ending.values()]
        return [grant for grant in kept if grant.region == region]

    def all(self) -> list[Grant]:
        return [*self._live.values(), *self._ending.values()]

    def settle(self, grant: Grant) -> None:
        """An ended grant is quiet: its slot may be used again."""
        if self._ending.get(grant.slot) == grant and self._quiet(grant.slot):
            del self._ending[grant.slot]
            if grant.generation < GENERATION_MAX:  # else the slot has served
                self._free.append(grant.slot)

    def is_ending(self, grant: Grant) -> bool:
        """It has ended, and was not found quiet yet."""
        return self._ending.get(grant.slot) == grant

    def _take_slot(self, now_ns: int) -> int:
        while self._expiries and self._expiries[0][0] <= now_ns:
            _, slot, generation = heapq.heappop(self._expiries)
            lapsed = self._live.get(slot)
            if lapsed is not None and lapsed.generation == generation:
                self.end(lapsed)
        if not self._free:
            for grant in list(self._ending.values()):
                self.settle(grant)
        if self._free:
            return self._free.pop()
        if len(self._generations) >= self._grants_max:
            raise LimitReached(f"{self._grants_max} grants are live", limit="grants_max")
        self._generations.append(0)
        return len(self._generations) - 1

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")[:MAC_BYTES]
