"""The order of tiers, and stretches of a chain."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from kvstore.testing.exam_tier import keys_of
from kvstore.tiers.base import Hold, Keys, Reservation, Run, TierKind
from kvstore.tiers.ladder import Ladder, stretches


@dataclass
class Held:
    run: Run

    async def read(self, into: object) -> int:
        return 0

    def release(self) -> None:
        pass


@dataclass
class Shelf:
    """A tier that has some keys."""

    kind: TierKind
    keys: set[bytes] = field(default_factory=set)

    def lookup(self, ns: int, shard: int, keys: Keys) -> np.ndarray:
        return np.array([key.tobytes() in self.keys for key in keys], dtype=bool)

    def reserve(self, run: Run) -> Reservation:
        raise NotImplementedError

    def hold(self, ns: int, shard: int, keys: Keys) -> Hold | None:
        here = self.lookup(ns, shard, keys)
        count = len(here) if here.all() else int(np.argmin(here))
        empty = np.empty((count, 0), np.uint64)
        return Held(Run(ns, shard, keys[:count], None, empty, (b"",) * count)) if count else None

    def retire(self, ns: int, keys: Keys) -> int:
        return 0


def test_the_nearest_tier_that_has_the_first_block() -> None:
    keys = keys_of("a", 4)
    names = [key.tobytes() for key in keys]
    file, objects = Shelf(TierKind.FILE, {names[1]}), Shelf(TierKind.OBJECT, set(names))
    ladder = Ladder((file, objects))
    found = ladder.hold(1, 0, keys)
    assert found is not None and found[0] is objects and len(found[1].run) == 4
    found = ladder.hold(1, 0, keys[1:])
    assert found is not None and found[0] is file and len(found[1].run) == 1
    assert ladder.hold(1, 0, keys_of("b", 2)) is None
    assert Ladder().hold(1, 0, keys) is None


def test_what_leaves_a_tier_goes_to_the_next() -> None:
    memory, file, objects = Shelf(TierKind.MEMORY), Shelf(TierKind.FILE), Shelf(TierKind.OBJECT)
    ladder = Ladder((file, objects))
    assert ladder.below(memory) is file
    assert ladder.below(file) is objects
    assert ladder.below(objects) is None
    assert Ladder().below(memory) is None


def test_tiers_are_given_nearest_first() -> None:
    with pytest.raises(AssertionError):
        Ladder((Shelf(TierKind.OBJECT), Shelf(TierKind.FILE)))


@pytest.mark.parametrize(
    ("wanted", "ranges"),
    [([], []), ([0, 0], []), ([1], [(0, 1)]), ([1, 1, 0, 1], [(0, 2), (3, 4)]), ([0, 1, 1, 0], [(1, 3)])],
)
def test_stretches(wanted: list[int], ranges: list[tuple[int, int]]) -> None:
    assert stretches(np.array(wanted, dtype=bool)) == ranges
