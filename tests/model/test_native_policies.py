"""The native orders against those of the models: the same verbs, the very same victims."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvstore import native
from kvstore.testing.models.leaf_lru import LeafLruModel
from kvstore.testing.models.policy import Hint
from kvstore.testing.models.s3_fifo import S3FifoModel

IDS_MAX = 24
NO_PARENT = 2**32 - 1
CHAINS = ((0, 1, 2, 3, 4, 5), (0, 1, 6, 7), (0, 1, 2, 8, 9), (10, 11, 12), (10, 13), (14,), (15, 16, 17, 18), (19,))
HINTS = st.builds(
    Hint,
    priority=st.sampled_from([0, 0, 0, 1, -1, 3, -9, 9]),
    end=st.sampled_from([False, False, False, True]),
    return_touches=st.sampled_from([0, 0, 0, 1, 7, 400, 100_000]),
)
CUTS = st.integers(1, 6)


class Model(Protocol):
    def added(self, slot: int, parent: int | None, ghost: int, hint: Hint) -> None: ...
    def touched(self, chain: list[int], hint: Hint) -> None: ...
    def removed(self, slot: int) -> None: ...
    def victims(self, count: int, usable: Callable[[int], bool]) -> list[int]: ...
    def released(self, slot: int) -> None: ...
    def __len__(self) -> int: ...


def ids(*numbers: int) -> npt.NDArray[np.uint32]:
    return np.array(numbers, np.uint32)


def ghost_of(slot: int) -> int:
    return (slot + 1) * 0x9E3779B97F4A7C15 % 2**64


class PolicyMachine(RuleBasedStateMachine):
    name = ""

    def make(self) -> Model:
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.native = native.Policy(self.name, IDS_MAX)
        self.model = self.make()
        self.there: set[int] = set()

    @rule(chain=st.sampled_from(CHAINS), cut=CUTS, hint=HINTS)
    def publish(self, chain: tuple[int, ...], cut: int, hint: Hint) -> None:
        """As a table does: what is there is touched, the rest added under what came before."""
        chain = chain[:cut]
        here = [slot for slot in chain if slot in self.there]
        self.touch_both(here, hint)
        for at, slot in enumerate(chain):
            parent = chain[at - 1] if at else None
            if slot not in self.there or (at and chain[at - 1] not in here):
                self.add_both(slot, parent, hint)

    @rule(slot=st.integers(0, 19), parent=st.none() | st.integers(0, 23), hint=HINTS)
    def add(self, slot: int, parent: int | None, hint: Hint) -> None:
        """Whoever calls this its parent; numbers only grow along a chain."""
        if parent is None or parent < slot:
            self.add_both(slot, parent, hint)

    @rule(chain=st.sampled_from(CHAINS), cut=CUTS, hint=HINTS)
    def touch(self, chain: tuple[int, ...], cut: int, hint: Hint) -> None:
        self.touch_both([slot for slot in chain[:cut] if slot in self.there], hint)

    @rule(times=st.sampled_from([1, 5, 300, 900]))
    def time_passes(self, times: int) -> None:
        for _ in range(times):
            self.touch_both([], Hint())

    @rule(count=st.integers(0, 26), refused=st.sets(st.integers(0, 19), max_size=8))
    def victims(self, count: int, refused: set[int]) -> None:
        found = self.native.victims(count, ids(*sorted(refused))).tolist()
        assert found == self.model.victims(min(count, len(self.there)), lambda slot: slot not in refused)

    @rule(count=st.integers(1, 4))
    def evict(self, count: int) -> None:
        found = self.native.victims(count, ids()).tolist()
        assert found == self.model.victims(min(count, len(self.there)), lambda _: True)
        for slot in found:
            self.remove_both(slot)

    @rule(slot=st.integers(0, 19))
    def remove(self, slot: int) -> None:
        self.remove_both(slot)

    @rule(slots=st.sets(st.integers(0, 19)))
    def release(self, slots: set[int]) -> None:
        for slot in sorted(slots):
            self.native.released(ids(slot))
            self.model.released(slot)

    def add_both(self, slot: int, parent: int | None, hint: Hint) -> None:
        ghosts = np.array([ghost_of(slot)], np.uint64)
        self.native.added(
            ids(slot),
            ids(NO_PARENT if parent is None else parent),
            ghosts,
            priority=hint.priority,
            end=hint.end,
            return_touches=hint.return_touches,
        )
        self.model.added(slot, parent, ghost_of(slot), hint)
        self.there.add(slot)

    def touch_both(self, chain: list[int], hint: Hint) -> None:
        self.native.touched(ids(*chain), priority=hint.priority, end=hint.end, return_touches=hint.return_touches)
        self.model.touched(chain, hint)

    def remove_both(self, slot: int) -> None:
        self.native.removed(ids(slot))
        self.model.removed(slot)
        self.there.discard(slot)

    @invariant()
    def adds_up(self) -> None:
        if hasattr(self, "native"):
            self.native.check_integrity()
            assert len(self.native) == len(self.model) == len(self.there)


class LeafLruMachine(PolicyMachine):
    name = "leaf_lru"

    def make(self) -> Model:
        return LeafLruModel()


class S3FifoMachine(PolicyMachine):
    name = "s3_fifo"

    def make(self) -> Model:
        return S3FifoModel()


TestLeafLru = LeafLruMachine.TestCase
TestS3Fifo = S3FifoMachine.TestCase
