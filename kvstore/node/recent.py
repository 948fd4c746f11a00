"""What homes have answered lately, so that a get behind a lookup of the same chain asks them nothing again. Pure.

It spares a question and answers none: what is not in here is asked for, and so is what leads nowhere.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from kvstore.directory.locating import Holders

__all__ = ["RECENT_S", "Recent"]

RECENT_S: Final = 1.0
ANSWERS_MAX: Final = 16
KEYS_MAX: Final = 65_536  # of all of them

Keys = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Answer:
    ns: bytes
    keys: Keys
    holders: Holders
    until: float


@dataclass(slots=True)
class Recent:
    """Times are seconds of one clock that only goes forward."""

    _answers: deque[_Answer] = field(default_factory=deque)
    _keys: int = 0

    def add(self, ns: bytes, keys: Keys, holders: Holders, now: float) -> None:
        """What nobody has is not remembered: somebody may have it at any moment."""
        if not holders.nodes or len(keys) > KEYS_MAX:
            return
        self._answers.append(_Answer(ns, keys, holders, now + RECENT_S))
        self._keys += len(keys)
        while self._keys > KEYS_MAX or len(self._answers) > ANSWERS_MAX or self._answers[0].until <= now:
            self._keys -= len(self._answers.popleft().keys)

    def find(self, ns: bytes, keys: Keys, now: float) -> Holders | None:
        """Of these keys, if one answer spoke of all of them one behind the other; the last one that did."""
        for one in reversed(self._answers):
            if one.until <= now:
                break
            if one.ns != ns or len(keys) > len(one.keys):
                continue
            for at in np.flatnonzero((one.keys == keys[0]).all(axis=1)).tolist():
                if np.array_equal(one.keys[at : at + len(keys)], keys):
                    of = slice(at, at + len(keys))
                    return Holders(one.holders.nodes, one.holders.shards[:, of], one.holders.tiers[:, of])
        return None
