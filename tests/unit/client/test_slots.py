"""What a reservation says of its slots: which bytes go to which block, and what became of each."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from kvstore.client.buffers import Registry
from kvstore.client.journeys import Ended
from kvstore.client.slots import Filling
from kvstore.client.steps import PutOutcome, Status, Taken, Told
from kvstore.errors import Unavailable

PARTS = [8, 4]
S, H, F, L = PutOutcome.STORED, PutOutcome.HELD, PutOutcome.FULL, PutOutcome.LAPSED


class Held:
    """Only what is asked of a native reservation before anything moves."""

    def __init__(self, *granted: int) -> None:
        self.granted = granted


def filling(*outcomes: PutOutcome) -> Filling:
    held = Held(*(i for i, outcome in enumerate(outcomes) if outcome == S))
    return Filling(Taken(outcomes=bytes(outcomes), held=held), PARTS, Registry())  # type: ignore[arg-type]


def test_of_what_all_blocks_bring_the_granted_ones_take_their_own() -> None:
    sources = np.arange(4 * PARTS[1], dtype=np.uint8).reshape(4, PARTS[1])
    places = filling(H, S, F, S).places(1, sources)
    assert [ctypes.string_at(int(at), 4) for at in places.addresses] == [sources[1].tobytes(), sources[3].tobytes()]


@pytest.mark.parametrize(
    ("outcomes", "answered", "told", "ended"),
    [
        ((S, S), b"\0\0", [S, S], Ended.COMPLETE),
        ((H, S, S), b"\0\1", [H, S, L], Ended.COMPLETE),  # the last one lapsed before it was sealed
        ((S, F, F), b"\0", [S, F, F], Ended.FULL),
    ],
)
def test_what_became_of_each(
    outcomes: tuple[PutOutcome, ...], answered: bytes, told: list[PutOutcome], ended: Ended
) -> None:
    slots = filling(*outcomes)
    stored = slots.sealed(Told(outcomes=answered))
    assert (stored.outcomes.tolist(), stored.ended) == (told, ended)
    assert (stored.stored, stored.held) == (told.count(S), told.count(H))
    with pytest.raises(ValueError, match="slots: sealed or aborted already"):
        slots.check_open()


def test_a_seal_that_was_not_answered_has_stored_nothing_that_we_know_of() -> None:
    slots = filling(S, S)
    with pytest.raises(Unavailable):
        slots.sealed(Told(Status.UNAVAILABLE, outcomes=b"\0\0"))
    assert slots.done
