"""Publishing in place, part by part: slots of a chain that are taken, filled, and sealed or given back.

with ns.reserve(chain) as slots:          # leaving without seal() aborts
    for part in range(layers):
        slots.write(part, sources)        # or fill slots.array(block) where it lies
        slots.publish(part)               # followers may read it from now on
    slots.seal()
"""

from __future__ import annotations

from types import TracebackType

import numpy as np
import numpy.typing as npt

from kvstore.client import buffers
from kvstore.client.calls import Times
from kvstore.client.journeys import Ended, Outcomes, Stored, stored_of
from kvstore.client.steps import Answer, PutOutcome, Reservation, Status, Taken, fail


class Filling:
    """What both faces share: the native reservation, and what may be asked of it when. Checks, and moves nothing."""

    def __init__(self, taken: Taken, part_bytes: list[int], registry: buffers.Registry) -> None:
        assert taken.held is not None
        self.held: Reservation = taken.held
        self.part_bytes = part_bytes
        self.granted: tuple[int, ...] = tuple(self.held.granted)
        self.outcomes: Outcomes = np.frombuffer(taken.outcomes, dtype=np.uint8).copy()
        self.done = False
        self._registry = registry
        self._next = 0

    def places(self, part: int, sources: object) -> buffers.Places:
        """Where the given part of the granted blocks lies. `sources` speaks of all blocks of the chain, like a put."""
        self.check_open()
        if not 0 <= part < len(self.part_bytes):
            raise ValueError(f"part: {part}, must be 0 to {len(self.part_bytes) - 1}")
        wanted = buffers.Wanted("sources", len(self.outcomes), self.part_bytes[part], writing=False)
        return buffers.places(sources, wanted, self._registry).pick(self.granted)

    def check_next(self, part: int) -> None:
        self.check_open()
        if part != self._next:
            raise ValueError(f"part: {part}, parts are published in order and the next is {self._next}")

    def published(self) -> None:
        self._next += 1

    def check_open(self) -> None:
        if self.done:
            raise ValueError("slots: sealed or aborted already")

    def array(self, block: int) -> npt.NDArray[np.uint8]:
        """The slot of the chain's block, writable. Nothing may write into it after seal or abort."""
        self.check_open()
        if block not in self.granted:
            raise ValueError(f"block: {block} was not granted; see slots.granted")
        return self.held.array(block)

    def sealed(self, answer: Answer) -> Stored:
        self.done = True
        if answer.status != Status.OK:
            raise fail(answer)
        told = np.frombuffer(answer.outcomes, dtype=np.uint8)
        for index, outcome in zip(self.granted, told.tolist(), strict=True):
            self.outcomes[index] = PutOutcome.STORED if outcome == 0 else PutOutcome.LAPSED
        full = bool((self.outcomes == PutOutcome.FULL).any())
        return stored_of(self.outcomes.tobytes(), Ended.FULL if full else Ended.COMPLETE)


class SlotsFace:
    """outcomes: a PutOutcome a block, STORED for what was granted; granted: those blocks."""

    def __init__(self, filling: Filling, times: Times) -> None:
        self._filling = filling
        self._times = times

    @property
    def granted(self) -> tuple[int, ...]:
        return self._filling.granted

    @property
    def outcomes(self) -> Outcomes:
        return self._filling.outcomes

    def array(self, block: int) -> npt.NDArray[np.uint8]:
        """The slot of the chain's block, writable, to be filled where it lies; not after seal or abort."""
        return self._filling.array(block)


class Slots(SlotsFace):
    """The sync face."""

    def write(self, part: int, sources: object) -> None:
        """Copies a part of every granted block. `sources` speaks of all blocks of the chain, as in a put."""
        places = self._filling.places(part, sources)
        check(self._filling.held.write(part, places, self._times.left()))

    def publish(self, part: int) -> None:
        """Lets followers read the part. Parts go in order; one not written is hashed where it lies."""
        self._filling.check_next(part)
        check(self._filling.held.publish(part, self._times.left()))
        self._filling.published()

    def seal(self) -> Stored:
        """Publishes what is left and makes the blocks visible and immutable."""
        self._filling.check_open()
        return self._filling.sealed(self._filling.held.seal(self._times.left()))

    def abort(self) -> None:
        """Gives the slots back. May be called twice, and after seal, when it does nothing."""
        if not self._filling.done:
            self._filling.done = True
            self._filling.held.abort()

    def __enter__(self) -> Slots:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def check(answer: Answer) -> None:
    if answer.status != Status.OK:
        raise fail(answer)
