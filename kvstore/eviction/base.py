"""What an eviction policy promises: it owns an order of ids and nothing else, neither bytes, locks nor time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from kvstore.native import Policy

Ids: TypeAlias = npt.NDArray[np.uint32]  # dense numbers, below the ids_max that the policy was made for
Ghosts: TypeAlias = npt.NDArray[np.uint64]  # each names a content, so that a policy with memory knows it again

NO_PARENT = 0xFFFFFFFF
_NOBODY = np.empty(0, np.uint32)


@dataclass(frozen=True, slots=True)
class Hint:
    """What is told of the future of what is touched. It shifts an order and never commands it."""

    priority: int = 0  # -1 colder, +1 warmer
    end: bool = False  # the session will not come back
    return_touches: int = 0  # after how many touches it is expected back; 0: nothing said


NO_HINT = Hint()


class EvictionPolicy(Protocol):
    """
    Rules
    - touched() is a batch: a chain prefix in chain order, once per get or put; with an empty chain it starts a batch.
    - added() is as recent as the last batch. An id that is there already is only given its parent anew.
    - victims() names who should go next and drops nobody: the caller says removed(). Ids refused keep their place in
      the order, and are named again once the caller has said released().
    """

    def added(self, ids: Ids, parents: Ids, ghosts: Ghosts, hint: Hint = NO_HINT) -> None: ...

    def touched(self, chain: Ids, hint: Hint = NO_HINT) -> None: ...

    def removed(self, ids: Ids) -> None: ...

    def victims(self, count: int, refused: Ids = _NOBODY) -> Ids: ...

    def released(self, ids: Ids) -> None: ...

    def check_integrity(self) -> None:
        """Raises RuntimeError naming what does not add up."""
        ...

    @property
    def parameters(self) -> str: ...

    def __len__(self) -> int: ...


class NativePolicy:
    """The native order called `name`, for ids below `ids_max`."""

    name: str

    def __init__(self, ids_max: int) -> None:
        self._order = Policy(self.name, ids_max)

    def added(self, ids: Ids, parents: Ids, ghosts: Ghosts, hint: Hint = NO_HINT) -> None:
        self._order.added(ids, parents, ghosts, hint.priority, hint.end, hint.return_touches)

    def touched(self, chain: Ids, hint: Hint = NO_HINT) -> None:
        self._order.touched(chain, hint.priority, hint.end, hint.return_touches)

    def removed(self, ids: Ids) -> None:
        self._order.removed(ids)

    def victims(self, count: int, refused: Ids = _NOBODY) -> Ids:
        return self._order.victims(count, refused)

    def released(self, ids: Ids) -> None:
        self._order.released(ids)

    def check_integrity(self) -> None:
        self._order.check_integrity()

    @property
    def parameters(self) -> str:
        return self._order.parameters

    def __len__(self) -> int:
        return len(self._order)
