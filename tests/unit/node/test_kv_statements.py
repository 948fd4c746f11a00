"""Which blocks are told, and what is true of them: over a core that says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from kvstore.block_meta import metas_of
from kvstore.event_settings import EventsConfig
from kvstore.node.held_slots import HeldSlot
from kvstore.node.kv_publisher import EVENTS_TURN, KvPublisher
from kvstore.node.kv_statements import Statements
from kvstore.wire import store

STORED, REMOVED, CLEARED = store.Event.STORED, store.Event.REMOVED, store.Event.CLEARED
SHARDS = [SimpleNamespace(group=name) for name in ("full", "full", "window")]


def opened(handle: int, tenant: str = "acme", model: str = "m") -> Any:
    return SimpleNamespace(
        handle=handle, tenant=tenant, digest=bytes([handle]), shards=SHARDS, identity=SimpleNamespace(model=model)
    )


NAMESPACES = {1: opened(1), 2: opened(2, tenant="zebra"), 3: opened(3, model="n")}


def key(number: int) -> bytes:
    return bytes([number]) * 32


def meta(number: int) -> bytes:
    return metas_of([number], parent=None, tokens=[], block_tokens=4)[0]


class Core:
    """held: shards by (tier, key); events as (kind, ns, shard, tier, number, meta)."""

    def __init__(
        self, *events: tuple[int, int, int, int, int, bytes], held: Mapping[tuple[int, int], int] = {}
    ) -> None:
        self.held, self.gap = dict(held), False
        self.events = [
            SimpleNamespace(
                sequence=i, kind=kind, ns=ns, shard=shard, tier=tier, key=key(number), parent=bytes(32), meta=raw
            )
            for i, (kind, ns, shard, tier, number, raw) in enumerate(events, 1)
        ]

    def events_since(self, after: int, most: int) -> tuple[list[SimpleNamespace], bool]:
        return self.events[after : after + most], self.gap

    def held_in(self, tier: int, ns: int, keys: np.ndarray) -> np.ndarray:
        return np.array([self.held.get((tier, int(one[0])), 0) for one in keys], np.uint64)


def statements(core: Core, tenants: tuple[str, ...] = ("acme",), model: str | None = None) -> Statements:
    find = SimpleNamespace(
        by_handle=NAMESPACES.get, find=lambda digest: next((o for o in NAMESPACES.values() if o.digest == digest), None)
    )
    return Statements(core, find, tenants, model)  # type: ignore[arg-type]


def told(core: Core, **more: Any) -> list[tuple[bool, str, object]]:
    says = statements(core, **more)
    return [(one.stored, one.medium, one.meta.hash) for one in says.true_of(says.turn(0, 100).places)]


def test_a_block_is_told_where_all_shards_of_its_group_are() -> None:
    one_rank = (STORED, 1, 0, 1, 5, meta(5))
    assert told(Core(one_rank, held={(1, 5): 0b001})) == [(False, "CPU", 5)]
    assert told(Core(one_rank, held={(1, 5): 0b101})) == [(False, "CPU", 5)], "the window's is another group"
    assert told(Core(one_rank, held={(1, 5): 0b011})) == [(True, "CPU", 5)]
    window = (STORED, 1, 2, 2, 5, meta(5))
    assert told(Core(window, held={(2, 5): 0b100, (1, 5): 0b011})) == [(True, "STORAGE", 5)]


def test_the_last_word_is_what_is_true_now_once_and_in_the_order_of_last_events() -> None:
    came, went = (STORED, 1, 0, 1, 5, meta(5)), (REMOVED, 1, 0, 1, 5, meta(5))
    other = (STORED, 1, 0, 1, 6, meta(6))
    assert told(Core(came, other, went, came, held={(1, 5): 3, (1, 6): 3})) == [(True, "CPU", 6), (True, "CPU", 5)]
    assert told(Core(came, went, other, held={(1, 6): 3})) == [(False, "CPU", 5), (True, "CPU", 6)]
    assert told(Core(went, held={(1, 5): 3})) == [(True, "CPU", 5)], "an event says where to look, not what is there"


def test_others_are_not_told_and_what_cannot_be_is_counted() -> None:
    events = [(STORED, ns, 0, 1, ns, meta(ns)) for ns in (1, 2, 3, 9)]
    held = {(1, ns): 3 for ns in range(10)}
    assert [one[2] for one in told(Core(*events, held=held))] == [1, 3]
    assert [one[2] for one in told(Core(*events, held=held), tenants=("zebra", "acme"), model="m")] == [1, 2]
    says = statements(Core((STORED, 1, 0, 1, 5, b""), (STORED, 1, 0, 1, 6, b"nobody's"), held=held))
    assert says.true_of(says.turn(0, 100).places) == [] and says.left_out == 2


def test_a_clear_of_what_is_told_and_a_gap_begin_anew() -> None:
    def anew(core: Core) -> bool:
        return statements(core).turn(0, 100).anew

    assert anew(Core((CLEARED, 1, 0, 0, 0, b"")))
    assert not anew(Core((CLEARED, 2, 0, 0, 0, b"")))
    assert anew(Core((CLEARED, 9, 0, 0, 0, b""))), "of whoever it was"
    fallen_behind = Core()
    fallen_behind.gap = True
    assert anew(fallen_behind)


def test_a_publisher_that_is_behind_does_not_pause(tmp_path: Path) -> None:
    """At 50 events a millisecond it would never catch up, and tell all that is held again and again."""
    core: Any = Core(*[(STORED, 1, 0, 1, i % 250, meta(1)) for i in range(2 * EVENTS_TURN + 1)])
    publisher = KvPublisher(EventsConfig(), core, SimpleNamespace(by_handle=NAMESPACES.get), tmp_path)  # type: ignore[arg-type]
    publisher._publish = lambda _told: None  # type: ignore[method-assign,misc]
    idle = []
    for _ in range(3):
        publisher._news()
        idle.append(publisher._idle())
    assert idle == [False, False, True]


def test_what_is_held_is_told_once_for_all_its_shards() -> None:
    slots = [HeldSlot(1, 1, shard, key(5), bytes(32), meta(5)) for shard in range(3)]
    slots += [HeldSlot(1, 1, 0, key(6), bytes(32), meta(6)), HeldSlot(2, 9, 0, key(7), bytes(32), meta(7))]
    found = statements(Core(held={(1, 5): 0b111, (1, 6): 0b001})).held(slots)
    assert [(one.medium, one.meta.hash) for one in found] == [("CPU", 5), ("CPU", 5)], "of each of its two groups"
