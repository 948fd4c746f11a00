"""Would the simulation notice? Each twin breaks one rule, and must be caught by what its callers see."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvstore.testing import faulty_twins as twins
from kvstore.testing.simulation import Cast, run_seed
from kvstore.testing.world import Broken

SEEDS_MAX = 1_500

CAUGHT_BY_CALLERS = {
    "no quarantine": (Cast(table=twins.NoQuarantine), "wrong bytes"),
    "frees what is held": (Cast(table=twins.FreesHeld), "wrong bytes"),
    "views lapse": (Cast(table=twins.ViewsLapse), "wrong bytes"),
    "lease without verification": (Cast(client=twins.Unverified), "wrong bytes"),
    "clear keeps the generation": (Cast(spaces=twins.KeepsGeneration), "wrong bytes"),
    "former clients forgotten": (Cast(node=twins.ForgetsFormer), "wrong bytes"),
    "gone at the cut": (Cast(node=twins.TrustsTheCut), "wrong bytes"),
    "no deadline": (Cast(client=twins.WaitsForEver), "hang"),
    "lapsed holds leak": (Cast(table=twins.LeaksLapsed), "slots do not add up"),
    "state written first": (Cast(table=twins.StateFirst), "recovered what nobody sealed"),
    "renamed in use": (Cast(table=twins.RenamedInUse), "recovered what nobody sealed"),
    "what was read is not verified": (Cast(away=twins.UnverifiedAway), "wrong bytes"),
    "answered before it was revoked": (Cast(away=twins.AnswersFirst), "wrong bytes"),
    "answered before it was quiet": (Cast(away=twins.WaitsForNobody), "wrong bytes"),
    "a get answered before it was quiet": (Cast(away=twins.AnswersTooSoon), "landed after the answer"),
    "sealed what had not arrived": (Cast(visitors=twins.SealsUnarrived), "wrong bytes"),
    "filled by what had not arrived": (Cast(visitors=twins.FillsUnarrived), "wrong bytes"),
}


def first_caught(cast: Cast) -> tuple[int, str]:
    for seed in range(SEEDS_MAX):
        try:
            run_seed(seed, cast)
        except Broken as broken:
            return seed, str(broken).splitlines()[0]
    pytest.fail(f"not caught in {SEEDS_MAX} seeds")


@pytest.mark.parametrize("name", sorted(CAUGHT_BY_CALLERS))
def test_a_faulty_twin_is_caught(name: str) -> None:
    cast, how = CAUGHT_BY_CALLERS[name]
    seed, what = first_caught(replace(cast, look_inside=False))
    assert what.startswith(how), f"seed {seed}: {what}"


@pytest.mark.parametrize(
    ("cast", "how"),
    [
        (Cast(table=twins.NoQuarantine), ("landed in",)),
        (Cast(table=twins.FreesHeld), ("slots do not add up",)),
        (Cast(node=twins.ForgetsFormer), ("landed in", "wrong bytes")),
        (Cast(visitors=twins.ReleasesFirst), ("lent what is not held",)),
        (Cast(visitors=twins.RevokesNotAtAll), ("lent what is not held",)),
        (Cast(visitors=twins.HoldsByConnection), ("lent what is not held",)),
        (Cast(visitors=twins.ForgetsReads), ("landed in",)),
        (Cast(visitors=twins.ReservesAsCopiedIn), ("landed in",)),
    ],
)
def test_and_from_inside_sooner(cast: Cast, how: tuple[str, ...]) -> None:
    """What no caller has seen yet: a late landing, or a slot reused while it is held."""
    seed, what = first_caught(cast)
    assert what.startswith(how), what
    assert seed < 300
