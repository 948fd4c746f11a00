"""A home keeps no claims of who is gone for good, however short its life was."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from kvstore.directory.directory import Directory
from kvstore.directory.messages import ALL_BUCKETS, Announce, Rows, Status
from kvstore.directory.settings import MS, DirectorySettings
from kvstore.native import ClaimTable
from kvstore.testing.models.holdings import HoldingsModel

ME, OTHER, NODE = b"m" * 16, b"o" * 16, b"n" * 16
NS = hashlib.sha256(b"a namespace").digest()
SETTINGS = DirectorySettings(settle_ms=2_000, grace_ms=30_000)


@pytest.mark.parametrize("lived_ms", [500, 1_999, 2_001, 10_000])
def test_who_died_is_forgotten_after_the_grace_time(lived_ms: int) -> None:
    """Also one that was never asked yet: its death changes nothing about whom lookups ask."""
    home = Directory(ME, 1, HoldingsModel(), ClaimTable(1_024, 1), SETTINGS)
    home.view_changed({ME: 1, OTHER: 2}, 0)
    came = 10_000
    home.poll(came * MS)
    home.view_changed({ME: 1, OTHER: 2, NODE: 3}, came * MS)
    keys = np.arange(32, dtype=np.uint8).reshape(2, 16)
    rows = Rows(NS, keys, np.ones(2, np.uint64), np.ones(2, np.uint8))
    told = Announce(NODE, 3, 1, (rows,), (), ALL_BUCKETS, ALL_BUCKETS)
    assert home.handle(told, came * MS).status is Status.TAKEN
    table = home.claims.table
    for ms in range(came, came + lived_ms, 100):
        home.poll(ms * MS)
    died = came + lived_ms
    home.view_changed({ME: 1, OTHER: 2}, died * MS)
    for ms in range(died, died + SETTINGS.grace_ms, 500):
        home.poll(ms * MS)
        assert len(table) == 2, "it may come back"
    for ms in range(died + SETTINGS.grace_ms, died + SETTINGS.grace_ms + 2 * SETTINGS.settle_ms, 500):
        home.poll(ms * MS)
    assert len(table) == 0
