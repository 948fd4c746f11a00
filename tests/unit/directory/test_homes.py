"""When homes move: one that died keeps its place for long, as the second answers; of two, some keys have no other."""

from __future__ import annotations

import numpy as np

from kvstore.directory.homes import SettledView
from kvstore.directory.settings import MS, DirectorySettings

SETTINGS = DirectorySettings(settle_ms=100, grace_ms=5_000)
NODES = [bytes([n]) * 16 for n in range(5)]
KEYS = np.random.default_rng(7).integers(0, 256, (2_000, 16), np.uint8)
NS = b"n" * 32


def seen(*dead: int) -> dict[bytes, int]:
    return {node: n + 1 for n, node in enumerate(NODES) if n not in dead}


def view() -> SettledView:
    made = SettledView(NODES[0], SETTINGS)
    made.update(seen(), 0)
    made.tick(200 * MS)
    return made


def orphans(made: SettledView) -> int:
    """Keys of which no home lives."""
    homes = made.asked.of(NS)
    dead = np.array([node not in made.live for node in homes.ids])
    first, second = homes.of(KEYS)
    return int((dead[first] & dead[second]).sum())


def test_one_that_died_stays_a_home_until_its_grace_is_over() -> None:
    made = view()
    made.update(seen(3), 1_000 * MS)
    made.tick(5_990 * MS)
    assert NODES[3] in made.asked.members and orphans(made) == 0
    made.tick(6_001 * MS)
    assert NODES[3] not in made.asked.members


def test_where_two_died_homes_move_as_soon_as_the_new_ones_were_told() -> None:
    made = view()
    made.update(seen(3), 1_000 * MS)
    made.update(seen(3, 4), 1_050 * MS)
    assert orphans(made) > 100, "a tenth of the keys, among five nodes"
    told = [places.members for places in made.told]
    assert frozenset(NODES[:3]) in told, "who will be asked is told at once"
    made.tick(1_099 * MS)
    assert NODES[3] in made.asked.members
    at = made.next_change(1_099 * MS)
    assert at is not None and at <= 1_100 * MS
    made.tick(1_101 * MS)
    assert orphans(made) == 0, "of what the other one kept the second homes answer again"


def test_who_comes_back_is_a_home_again() -> None:
    made = view()
    made.update(seen(3, 4), 1_000 * MS)
    made.tick(1_200 * MS)
    made.update(seen(4), 1_300 * MS)
    made.tick(1_350 * MS)
    assert NODES[3] not in made.asked.members, "it was told nothing yet"
    made.tick(1_401 * MS)
    assert NODES[3] in made.asked.members and orphans(made) == 0
