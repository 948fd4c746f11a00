"""What a simulated node holds: shards of keys on two tiers, and a bounded list of what has changed.

Implements kvstore.directory.announcing.Holdings. Contents are text that says what they are, so a wrong one is seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from kvstore.directory.announcing import Changes
from kvstore.directory.messages import Bytes, Words

__all__ = ["HoldingsModel", "Name", "content", "keys_array"]

Name = tuple[bytes, bytes]  # a namespace's digest, a key
MEMORY, FILE = 1, 2


def content(ns: bytes, key: bytes, shard: int) -> bytes:
    return ns + key + bytes([shard])


def keys_array(keys: list[bytes]) -> Bytes:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)


@dataclass(slots=True)
class HoldingsModel:
    """`since`: when it came to hold a shard."""

    log_max: int = 1 << 30
    blocks: dict[Name, dict[int, int]] = field(default_factory=dict)
    since: dict[tuple[Name, int], int] = field(default_factory=dict)
    dropped: dict[Name, int] = field(default_factory=dict)  # when all of it went
    _slots: list[Name | None] = field(default_factory=list)  # a name stays where it is
    _log: list[Name | bytes] = field(default_factory=list)
    _dropped: bool = False

    def put(self, name: Name, shard: int, tier: int, now: int) -> None:
        if name not in self.blocks:
            if None not in self._slots:
                self._slots.append(None)
            self._slots[self._slots.index(None)] = name
        tiers = self.blocks.setdefault(name, {})
        if shard not in tiers:
            self.since[name, shard] = now
        tiers[shard] = tier
        self._changed(name)

    def drop(self, name: Name, shard: int, now: int) -> None:
        tiers = self.blocks.get(name, {})
        if tiers.pop(shard, None) is None:
            return
        del self.since[name, shard]
        if not tiers:
            del self.blocks[name]
            self.dropped[name] = now
            self._slots[self._slots.index(name)] = None
        self._changed(name)

    def clear(self, ns: bytes, now: int) -> None:
        for name in [name for name in self.blocks if name[0] == ns]:
            self.dropped[name] = now
            for shard in self.blocks.pop(name):
                del self.since[name, shard]
        self._slots = [slot if slot in self.blocks else None for slot in self._slots]
        self._log = [entry for entry in self._log if isinstance(entry, bytes) or entry[0] != ns]
        self._changed(ns)

    def read(self, ns: bytes, key: bytes, shard: int) -> bytes | None:
        return content(ns, key, shard) if shard in self.blocks.get((ns, key), {}) else None

    def state(self, name: Name) -> tuple[int, int]:
        tiers = self.blocks.get(name, {})
        return sum(1 << shard for shard in tiers), min(tiers.values(), default=0)

    def restarted(self, now: int) -> None:
        """A new process finds what is there, and no changes."""
        self._log.clear()
        self._dropped = False
        self.since = dict.fromkeys(self.since, now)

    # ---- announcing.Holdings

    def changes(self) -> Changes:
        log, self._log = self._log, []
        gap, self._dropped = self._dropped, False
        names = sorted({entry for entry in log if isinstance(entry, tuple)})
        keys = [(ns, keys_array([key for _, key in each])) for ns, each in groupby(names, lambda name: name[0])]
        return Changes(keys, [entry for entry in log if isinstance(entry, bytes)], gap)

    def held(self, ns: bytes, keys: Bytes) -> tuple[Words, Bytes]:
        states = [self.state((ns, key.tobytes())) for key in keys]
        return np.array([s for s, _ in states], np.uint64), np.array([t for _, t in states], np.uint8)

    def scan(self, after: int, slots: int) -> tuple[int, list[tuple[bytes, Bytes, Words, Bytes]]]:
        """In the order of slots: what comes while a scan goes on may lie behind it, as in a table."""
        page = sorted(name for name in self._slots[after : after + slots] if name is not None)
        out = []
        for ns, each in groupby(page, lambda name: name[0]):
            keys = keys_array([key for _, key in each])
            out.append((ns, keys, *self.held(ns, keys)))
        return (after + slots if after + slots < len(self._slots) else 0), out

    def _changed(self, entry: Name | bytes) -> None:
        self._log.append(entry)
        if len(self._log) > self.log_max:
            self._log.pop(0)
            self._dropped = True
