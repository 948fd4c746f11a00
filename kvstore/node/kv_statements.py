"""Which of a node's blocks are told in an engine's words, and what is true of them when they are told.

Nothing is remembered of what was told: events say which blocks to look at, and the core says what is true of them now.
So a block may be told twice, and never wrongly for longer than its next event takes. A medium has a block where it has
all shards of its cache group. What carries no meta of docs/format/meta.md cannot be told, and is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from kvstore import block_meta
from kvstore.observe.kv_events import MEDIA, Statement
from kvstore.wire import store

if TYPE_CHECKING:
    from kvstore import native
    from kvstore.node.held_slots import HeldSlot
    from kvstore.node.namespaces import Namespaces, Opened

__all__ = ["Place", "Statements", "Turn"]

KEY_BYTES: Final = 32


class Place(NamedTuple):
    """A block in a tier. shards: those of its cache group, as a bitmap."""

    ns: int
    tier: int
    shards: int
    key: bytes


@dataclass(slots=True)
class Turn:
    """What some events come to. anew: what was told does not hold any more, all is to be told again. after: to go on
    from. places: in the order of their last event, with what was put beside each.
    """

    after: int
    anew: bool
    places: dict[Place, bytes]


class Statements:
    """tenants, model: whose blocks are told; None: of every model. Calls may come from one thread at a time."""

    def __init__(
        self, core: native.NodeCore, namespaces: Namespaces, tenants: Iterable[str], model: str | None
    ) -> None:
        self._core, self._namespaces = core, namespaces
        self._tenants, self._model = frozenset(tenants), model
        self._groups: dict[int, tuple[int, ...]] = {}  # by namespace: of each shard, all shards of its group
        self.left_out = 0

    def tells(self, handle: int) -> bool:
        """Whether blocks of a namespace that is open are told."""
        opened = self._namespaces.by_handle(handle)
        return opened is not None and self._namespaces.find(opened.digest) is opened and self._ours(opened)

    def turn(self, after: int, most: int) -> Turn:
        """The next events."""
        events, gap = self._core.events_since(after, most)
        turn = Turn(events[-1].sequence if events else after, gap, {})
        for event in events:
            opened = self._namespaces.by_handle(event.ns)
            if int(event.kind) == store.Event.CLEARED:
                turn.anew |= opened is None or self._ours(opened)
            elif opened is not None and self._ours(opened) and event.tier in MEDIA:
                place = Place(event.ns, event.tier, self._group(opened, event.shard), event.key)
                meta = turn.places.pop(place, b"")
                turn.places[place] = event.meta or meta
        return turn

    def held(self, slots: Iterable[HeldSlot]) -> list[Statement]:
        """Of slots that are held, each block once."""
        places: dict[Place, bytes] = {}
        for slot in slots:
            opened = self._namespaces.by_handle(slot.ns)
            if opened is None:
                continue
            shards = self._group(opened, slot.shard)
            if not shards & ((1 << slot.shard) - 1):  # the group's first
                places[Place(slot.ns, slot.tier, shards, slot.key)] = slot.meta
        return [told for told in self.true_of(places) if told.stored]

    def true_of(self, places: Mapping[Place, bytes]) -> list[Statement]:
        there = self._there(places)
        told = []
        for place, raw in places.items():
            meta = block_meta.read(raw)
            if meta is None:
                self.left_out += 1
            else:
                told.append(Statement(place in there, MEDIA[place.tier], meta))
        return told

    def _there(self, places: Iterable[Place]) -> set[Place]:
        """Those that their tier has whole."""
        asked: dict[tuple[int, int], list[Place]] = {}
        for place in places:
            asked.setdefault((place.tier, place.ns), []).append(place)
        there: set[Place] = set()
        for (tier, ns), some in asked.items():
            keys = np.frombuffer(b"".join(place.key for place in some), np.uint8).reshape(-1, KEY_BYTES)
            held = self._core.held_in(tier, ns, keys).tolist()
            there.update(
                place for place, shards in zip(some, held, strict=True) if shards & place.shards == place.shards
            )
        return there

    def _ours(self, opened: Opened) -> bool:
        return opened.tenant in self._tenants and self._model in {None, opened.identity.model}

    def _group(self, opened: Opened, shard: int) -> int:
        groups = self._groups.get(opened.handle)
        if groups is None:
            names = [one.group for one in opened.shards]
            bits = {name: sum(1 << i for i, other in enumerate(names) if other == name) for name in set(names)}
            groups = self._groups[opened.handle] = tuple(bits[name] for name in names)
        return groups[shard]
