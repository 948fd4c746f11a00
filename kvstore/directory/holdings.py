"""What this node holds, as its core has it: changes from its events, states and scans asked of it natively."""

from __future__ import annotations

import numpy as np

from kvstore.directory.announcing import Changes, Keys
from kvstore.directory.messages import Bytes, Words
from kvstore.native import NodeCore

__all__ = ["CoreHoldings"]

CHANGES_MAX = 16_384  # of one call; what is left is the next one's
SCAN_SLOTS = 4_096


class CoreHoldings:
    """Implements announcing.Holdings. Memory and files are claimed, and what is being published into memory; the object
    tier is every node's.
    """

    def __init__(self, core: NodeCore) -> None:
        self._core = core
        self._sequence = core.event_sequence
        self._begun = core.begun_sequence
        self._namespaces = 0  # handles below it were looked at
        self._handles: dict[bytes, int] = {}

    def changes(self) -> Changes:
        opened = self._opened()
        self._sequence, gap, keys, handles, cleared = self._core.changes_since(self._sequence, CHANGES_MAX)
        self._begun, begun, begun_handles = self._core.begun_since(self._begun, CHANGES_MAX)
        keys, handles = np.concatenate((keys, begun)), np.concatenate((handles, begun_handles))
        changed = [(self._digest(int(ns)), np.unique(keys[handles == ns], axis=0)) for ns in np.unique(handles)]
        return Changes(opened + changed, [self._digest(int(ns)) for ns in cleared], gap)

    def held(self, ns: bytes, keys: Bytes) -> tuple[Words, Bytes]:
        handle = self._handles.get(ns)
        if handle is None:
            return np.zeros(len(keys), np.uint64), np.zeros(len(keys), np.uint8)
        return self._core.held(handle, np.ascontiguousarray(keys))

    def scan(self, after: int, slots: int) -> tuple[int, list[tuple[bytes, Bytes, Words, Bytes]]]:
        after, keys, handles, shards, tiers = self._core.scan_held(after, slots)
        out = []
        for ns in np.unique(handles):
            chosen = handles == ns
            out.append((self._digest(int(ns)), keys[chosen], shards[chosen], tiers[chosen]))
        return after, out

    def _opened(self) -> list[Keys]:
        """Opening a namespace lists what was recovered of it, of which no event tells. A pass looks at every slot, so
        there is one for all that were opened since; for a single one the core passes over the others.
        """
        begin, self._namespaces = self._namespaces, self._core.namespaces_end
        out: list[Keys] = []
        after, more = 0, begin < self._namespaces
        while more:
            only = begin if begin + 1 == self._namespaces else -1
            after, keys, handles, *_ = self._core.scan_held(after, SCAN_SLOTS, only)
            new = np.unique(handles[(handles >= begin) & (handles < self._namespaces)])
            out += [(self._digest(int(handle)), keys[handles == handle]) for handle in new]
            more = after > 0
        return out

    def _digest(self, handle: int) -> bytes:
        digest = self._core.namespace_digest(handle)
        assert digest is not None
        # A digest that is opened again after a clear has a new handle.
        self._handles[digest] = max(handle, self._handles.get(digest, 0))
        return digest
