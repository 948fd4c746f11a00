"""A slot that has both a writer who may still write and somebody who follows it is free when neither is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvstore.lifecycle import Outcome
from kvstore.native import SlotTable
from tests.unit.test_table import MANY_PARTS, keys, make, open_all

WRITER, FOLLOWER = 1, 2


@pytest.fixture
def table() -> Iterator[SlotTable]:
    table = open_all(make())
    yield table
    table.check_integrity()


def followed(table: SlotTable) -> int:
    """The follower's hold of a reservation that has lapsed."""
    _, tickets, _ = table.reserve(WRITER, MANY_PARTS, 0, keys(0), lapse_after=10, in_place=True)
    assert table.publish_part(WRITER, int(tickets[0]), 0, 7) == Outcome.OK
    hold, *_ = table.hold(FOLLOWER, MANY_PARTS, 0, keys(0), following=True, lapse_after=1_000)
    table.expire(10)
    assert table.stats()["slots_retired"] == 1
    return int(hold)


def test_the_last_follower_leaves_and_the_writer_may_still_write(table: SlotTable) -> None:
    assert table.release(FOLLOWER, followed(table)) == Outcome.OK
    assert table.stats()["slots_retired"] == 1
    table.check_integrity()
    table.owner_gone(WRITER)
    assert table.stats()["slots_retired"] == 0


def test_the_writer_is_gone_and_somebody_still_reads(table: SlotTable) -> None:
    hold = followed(table)
    table.owner_gone(WRITER)
    assert table.stats()["slots_retired"] == 1
    table.check_integrity()
    assert table.release(FOLLOWER, hold) == Outcome.OK
    assert table.stats()["slots_retired"] == 0
