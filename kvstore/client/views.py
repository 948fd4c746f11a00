"""Zero-copy reads: arrays that lie in the node's memory.

Rules
- The hold lives as long as anything can still look at the blocks: it is released when the view is closed *and* the last
  array made from it is gone. So an array never comes to show another block, whatever its holder forgets.
- Releasing never waits and may happen in any thread, garbage collection included.
- When the node dies the mapping stays, and so do the bytes; a node started later leaves them alone while this process
  lives.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt

from kvstore import native
from kvstore.client.buffers import Places
from kvstore.client.steps import Answer, Lent

Block = npt.NDArray[np.uint8]
Filler = Callable[["LentSlots", int, Places, float], Answer]  # the slots, a part of theirs, its places, deadline_s


class Lending:
    """What of one session's segment is out with callers: views, and slots that are being filled. When a session has
    ended and nothing of it is out any more, the node's next life may be told so (`quiet`).
    """

    __slots__ = ("_out", "former", "session")

    def __init__(self, session: native.Session) -> None:
        self.session = session
        self.former: Callable[[], None] | None = None  # set when the session has ended; called when all is back
        self._out: set[int] = (
            set()
        )  # add and discard are whole steps under the GIL; a lock could meet itself in __del__

    @property
    def all_back(self) -> bool:
        return not self._out

    def lent(self, kept: Kept) -> None:
        self._out.add(id(kept))

    def came_back(self, kept: Kept) -> None:
        self._out.discard(id(kept))
        if self.former is not None and not self._out:
            self.former()


class Kept:
    """One hold (0: slots of a reservation), ended when nothing refers to it any more. A child of fork inherits the
    object and not the hold.
    """

    __slots__ = ("_hold", "_lending", "_pid")

    def __init__(self, lending: Lending, hold: int) -> None:
        self._lending = lending
        self._hold = hold
        self._pid = os.getpid()
        lending.lent(self)

    def __del__(self) -> None:
        if os.getpid() == self._pid:
            if self._hold:
                self._lending.session.release([self._hold])
            self._lending.came_back(self)


class _Lent:
    """What numpy keeps as the base of an array: the address, and what makes it good."""

    __slots__ = ("__array_interface__", "_kept", "_mapped")

    def __init__(self, mapped: Block, kept: Kept) -> None:
        self._mapped = mapped  # keeps the mapping, whatever becomes of the session
        self._kept = kept
        self.__array_interface__ = {
            "version": 3,
            "data": (mapped.__array_interface__["data"][0], not mapped.flags.writeable),
            "shape": mapped.shape,
            "typestr": "|u1",
        }


def lend(lending: Lending, hold: int, offsets: Sequence[int], shard_bytes: int) -> tuple[Block, ...]:
    """Arrays over a hold. The hold is theirs from here on."""
    if not hold:
        return ()
    kept = Kept(lending, hold)
    return tuple(np.asarray(_Lent(lending.session.array(offset, shard_bytes), kept)) for offset in offsets)


class LentSlots:
    """A native reservation whose arrays are counted as being out. As kvstore.client.steps.Reservation. filler: who
    fills parts from device memory, which native code does not read.
    """

    def __init__(self, reservation: native.Reservation, lending: Lending) -> None:
        self._reservation = reservation
        self._kept = Kept(lending, 0)
        self.filler: Filler | None = None
        self.granted: Sequence[int] = reservation.granted

    def array(self, index: int) -> Block:
        return np.asarray(_Lent(self._reservation.array(index), self._kept))

    def write(self, part: int, places: Places, deadline_s: float) -> Answer:
        if places.devices:
            assert self.filler is not None, "native code would read a device's addresses"
            return self.filler(self, part, places, deadline_s)
        return self._reservation.write(part, places.addresses, places.lengths)

    def publish(self, part: int, deadline_s: float) -> Answer:
        return self._reservation.publish(part, deadline_s)

    def seal(self, deadline_s: float) -> Answer:
        return self._reservation.seal(deadline_s)

    def abort(self) -> None:
        self._reservation.abort()


class View:
    """Blocks of a chain's start, read-only, verified once before they were given out.

    blocks: one uint8 array a block, of shard_bytes. Ended by close, by `with`, or by garbage collection; arrays that
    outlive it stay good and keep their blocks in the node's memory. tiers: where each was found. parts: how many parts
    of each may be read; all of them, but in a view that follows a writer.
    """

    __slots__ = ("_blocks", "parts", "tiers", "tokens")

    def __init__(self, lent: Lent, block_tokens: int) -> None:
        self._blocks: tuple[Block, ...] | None = tuple(lent.arrays)
        self.tiers: npt.NDArray[np.uint8] = np.frombuffer(lent.tiers, dtype=np.uint8)[: lent.blocks]
        self.parts: tuple[int, ...] = tuple(lent.parts)
        self.tokens = lent.blocks * block_tokens

    @property
    def blocks(self) -> tuple[Block, ...]:
        if self._blocks is None:
            raise ValueError("view: it is closed")
        return self._blocks

    def __len__(self) -> int:
        return len(self.tiers)

    @property
    def closed(self) -> bool:
        return self._blocks is None

    def close(self) -> None:
        """May be called twice."""
        self._blocks = None

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
