"""Events as vLLM's types have them: runs of blocks, each told once, in maps and in arrays."""

from __future__ import annotations

import pytest

from kvstore.block_meta import BlockMeta
from kvstore.observe import kv_events
from kvstore.observe.kv_events import Statement, events_of


def chain(first: int, count: int, **more: object) -> list[BlockMeta]:
    return [
        BlockMeta(n, n - 1 if n > first else None, 2, (n, n + 1), **more)  # type: ignore[arg-type]
        for n in range(first, first + count)
    ]


def stored(*metas: BlockMeta, medium: str = "CPU") -> list[Statement]:
    return [Statement(True, medium, meta) for meta in metas]


def test_blocks_that_build_on_one_another_are_one_event() -> None:
    (event,) = events_of(stored(*chain(10, 3, lora_id=4, lora_name="x", group=1)), "maps")
    assert event == {
        "type": "BlockStored",
        "block_hashes": [10, 11, 12],
        "parent_block_hash": None,
        "token_ids": [10, 11, 11, 12, 12, 13],
        "block_size": 2,
        "lora_id": 4,
        "medium": "CPU",
        "lora_name": "x",
        "group_idx": 1,
    }


def test_whatever_differs_begins_another_event() -> None:
    a, b, c = chain(10, 3)
    odd = [
        Statement(True, "STORAGE", c),
        Statement(False, "CPU", c),
        Statement(True, "CPU", BlockMeta(12, 99, 2, (1, 2))),
        Statement(True, "CPU", BlockMeta(12, 11, 2)),
        Statement(True, "CPU", BlockMeta(12, 11, 1, (1,))),
        Statement(True, "CPU", BlockMeta(12, 11, 2, (1, 2), group=1)),
        Statement(True, "CPU", BlockMeta(12, 11, 2, (1, 2), lora_id=1)),
        Statement(True, "CPU", BlockMeta(12, 11, 2, (1, 2), lora_name="x")),
    ]
    for other in odd:
        assert len(events_of([*stored(a, b), other], "maps")) == 2, other
    assert len(events_of(stored(a, b, c), "maps")) == 1


def test_removals_are_joined_whatever_they_built_on(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = [Statement(False, "CPU", meta) for meta in (*chain(10, 2), *chain(30, 1))]
    assert events_of(gone, "maps") == [
        {"type": "BlockRemoved", "block_hashes": [10, 11, 30], "medium": "CPU", "group_idx": 0}
    ]
    monkeypatch.setattr(kv_events, "RUN_MAX", 2)
    assert len(events_of(gone, "maps")) == 2 and len(events_of(stored(*chain(1, 5)), "maps")) == 3


def test_arrays_are_in_the_order_of_older_releases() -> None:
    told = events_of([*stored(*chain(10, 1)), Statement(False, "STORAGE", chain(7, 1)[0])], "arrays", cleared=True)
    assert told == [
        ["AllBlocksCleared"],
        ["BlockStored", [10], None, [10, 11], 2, None, "CPU", None],
        ["BlockRemoved", [7], "STORAGE"],
    ]
    assert events_of([], "maps", cleared=True) == [{"type": "AllBlocksCleared"}]
