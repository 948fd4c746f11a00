"""Holds without a copy: blocks that stay in the node's memory while somebody means to fetch them.

Rules
- A hold ends by close, by `with`, by garbage collection, by its time or with the connection; what ends it waits for
  nothing and may happen in any thread. Ended twice, or after its node has gone, it does nothing.
- Nothing of it is mapped, copied or verified: whoever gets the blocks verifies them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from kvstore import native

__all__ = ["ENDLESS", "Grip", "Held", "Reach"]

ENDLESS: Final = float("inf")


LetGo = Callable[["native.Session"], object]


class Reach:
    """Through which the holds of one connection end, each once, until `cut` ends all that are left: who still refers to
    anything of a closed client may keep its connection open. A child of fork inherits the object and no hold.
    """

    __slots__ = ("_numbers", "_out", "_pid", "_session")

    def __init__(self, session: native.Session) -> None:
        self._session: native.Session | None = session
        self._numbers = itertools.count()
        self._out: dict[
            int, LetGo
        ] = {}  # set and pop are whole steps under the GIL; a lock could meet itself in __del__
        self._pid = os.getpid()

    def take(self, let_go: LetGo) -> int:
        number = next(self._numbers)
        self._out[number] = let_go
        return number

    def release(self, number: int) -> None:
        let_go, session = self._out.pop(number, None), self._session
        if let_go is not None and session is not None and os.getpid() == self._pid:
            let_go(session)

    def cut(self) -> None:
        for number in tuple(self._out):
            self.release(number)
        self._session = None


class Grip:
    """The node's hold of one window, let go of by `release`, or when nothing refers to it any more. let_go: waits for
    nothing.
    """

    __slots__ = ("_number", "_reach")

    def __init__(self, reach: Reach, let_go: LetGo) -> None:
        self._reach = reach
        self._number = reach.take(let_go)

    def release(self) -> None:
        self._reach.release(self._number)

    def __del__(self) -> None:
        self.release()


class Held:
    """A chain's first `blocks`, which stay in the node's memory until this is closed or forgotten, but not beyond
    expires_s (a reading of time.monotonic(); inf: for as long as the connection lives).

    tiers: where each was found. Of a node that was restarted, or a
    connection that was lost, nothing is held any more; then a get is what it would be without.
    """

    __slots__ = ("_grips", "blocks", "expires_s", "tiers", "tokens")

    def __init__(
        self, grips: Sequence[Grip], tiers: npt.NDArray[np.uint8], block_tokens: int, expires_s: float
    ) -> None:
        self._grips = tuple(grips)
        self.blocks = len(tiers)
        self.tokens = self.blocks * block_tokens
        self.tiers = tiers
        self.expires_s = expires_s

    def __len__(self) -> int:
        return self.blocks

    @property
    def closed(self) -> bool:
        return not self._grips

    def close(self) -> None:
        """May be called twice."""
        grips, self._grips = self._grips, ()
        for grip in grips:
            grip.release()

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
