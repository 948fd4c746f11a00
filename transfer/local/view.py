"""A peer's memory without a copy."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from transfer.errors import GrantInvalid, Reason
from transfer.local.motion import Shown

__all__ = ["LocalView"]


class LocalView:
    """Bytes of a peer's segment without a copy, read-only. The owner's revocation waits until it is closed."""

    def __init__(self, shown: Shown, offset: int, length: int, on_close: Callable[[LocalView], None]) -> None:
        reason = Reason(shown.span.enter())
        if reason is not Reason.NONE:
            raise GrantInvalid(f"grant: {reason.name.lower()}")
        self._shown: Shown | None = shown
        self._place = (offset, length)
        self._on_close = on_close
        # Whatever numpy derives from the array keeps it alive, so this one reference tells of all of them.
        self._given: weakref.ref[npt.NDArray[np.uint8]] | None = None

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        if self._shown is None:
            raise ValueError("this view is closed")
        array = self._given() if self._given is not None else None
        if array is None:
            array = self._shown.segment.array(*self._place)
            self._given = weakref.ref(array)
        return array

    def close(self) -> None:
        """Raises BufferError, and changes nothing, while its array or anything made of it is alive."""
        if self._shown is None:
            return
        if self._given is not None and self._given() is not None:
            raise BufferError("an array of this view is alive")
        self._shown.span.leave()
        self._shown = None
        self._on_close(self)

    def __enter__(self) -> LocalView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
