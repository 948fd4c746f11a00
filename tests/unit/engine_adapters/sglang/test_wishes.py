"""What a pool of the engine needs of a boundary, as the engine says it and as the store is asked."""

from __future__ import annotations

from enum import StrEnum
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")  # of engine_adapters.sglang.layout

from engine_adapters.sglang.hits import wish_of
from engine_adapters.sglang.layout import Group
from kvstore.layout import Need, NeedKind

HASHES = [f"{number:064x}" for number in range(7)]


class Policy(StrEnum):
    ALL = "all_pages"
    TRAILING = "trailing_pages"
    GROUPS = "block_groups"


def wish(policy: object, keys: list[str] | None = None, **more: int) -> Any:
    pool: Any = None
    group = Group("swa", pool, 5)
    given = {"block_pages": 0, "group_pages": 0, **more}
    return wish_of(group, SimpleNamespace(hit_policy=policy, keys=keys, **given), HASHES)


def test_every_page() -> None:
    assert wish(Policy.ALL, None).need == Need(5, NeedKind.ALL)
    assert wish("all_pages", None).gates


def test_the_last_pages_are_as_many_as_there_are_keys_and_at_least_one() -> None:
    assert wish(Policy.TRAILING, HASHES[-3:]).need == Need(5, NeedKind.LAST, 3)
    assert wish(Policy.TRAILING, []).need == Need(5, NeedKind.LAST, 1)
    assert wish(Policy.TRAILING, None).gates


def test_groups_gate_nothing_and_name_their_pages() -> None:
    told = wish(Policy.GROUPS, HASHES[:4], block_pages=3, group_pages=2)
    assert (told.gates, told.hashes, told.block_pages, told.group_pages) == (False, HASHES[:4], 3, 2)


def test_groups_without_keys_are_the_pages_at_each_whole_blocks_end() -> None:
    assert wish(Policy.GROUPS, None, block_pages=3, group_pages=2).hashes == [HASHES[i] for i in (1, 2, 4, 5)]


def test_what_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="hit policy newest_pages"):
        wish("newest_pages")
    with pytest.raises(ValueError, match="groups of 0 pages"):
        wish(Policy.GROUPS, HASHES)
