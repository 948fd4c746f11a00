"""Watch: where a reader of events stands, and what it is told next.

A reader is told of what its peer may see and nothing else; its cursor passes over the rest, and it is told so now and
then: when it has come to where the stream was when it came, and after PASSED_MAX that were not its. Where its place is
lost it is told of a gap; one that asked for it (`held`) is then told all that is held, with the news of meanwhile in
between.
Each block is told as it is when it is told, and all news from before the telling on follow in order, so that whoever
takes them one after the other ends at the truth. Decides only; service.py writes and waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from kvstore.errors import Rejected
from kvstore.node.held_slots import HeldSlots
from kvstore.node.shares import Tenants, check_share
from kvstore.wire import convert, store

if TYPE_CHECKING:
    from kvstore.node.auth import Peer
    from kvstore.node.handlers import NodeHost
    from kvstore.node.namespaces import Opened

__all__ = ["EVENTS_DEFAULT", "EVENTS_MAX", "Telling", "Watch"]

EVENTS_MAX: Final = 2_048  # of one batch: with the longest metas still a message of every gRPC library's default size
EVENTS_DEFAULT: Final = 1_024
HELD_SLOTS: Final = 512  # of one batch, beside its news
TELLINGS_MAX: Final = 16
PASSED_MAX: Final = 4_096  # events of others, before a reader that is told nothing is told at least a place


class Telling:
    """Which readers are being told what is held: each costs 13 bytes a slot while it lasts. several: whether tenants
    are told apart, of whom each then has a share (shares.py).
    """

    def __init__(self, several: Callable[[], bool]) -> None:
        self._several = several
        self._taken: Counter[Tenants] = Counter()

    def begin(self, who: Tenants) -> None:
        """Raises Rejected."""
        total = self._taken.total()
        if total >= TELLINGS_MAX:
            raise Rejected(f"held: {TELLINGS_MAX} readers are being told what is held", limit="held")
        if who is not None and self._several():
            check_share("held", TELLINGS_MAX, self._taken[who], total - self._taken[who])
        self._taken[who] += 1

    def end(self, who: Tenants) -> None:
        self._taken[who] -= 1
        if not self._taken[who]:
            del self._taken[who]


class Watch:
    """One reader. only: the namespace it asked for; None: all that the peer may use. `close` when it is gone."""

    def __init__(
        self, host: NodeHost, telling: Telling, peer: Peer, only: Opened | None, request: store.WatchRequest
    ) -> None:
        self._host, self._telling, self._peer, self._only = host, telling, peer, only
        self._most = min(request.events_max or EVENTS_DEFAULT, EVENTS_MAX)
        self._wants_held = request.held
        self._pages: Iterator[list[store.Event]] | None = None
        core = host.bridge.core
        now = store.Cursor(epoch=core.incarnation, sequence=core.event_sequence)
        self._at, self._lost = now, False
        self._present, self._said = now.sequence, now.sequence  # when it came; of the last place that it was told
        self._fresh = not request.HasField("after")
        if not self._fresh:
            self._at = request.after
            if request.after.epoch != now.epoch or request.after.sequence > now.sequence:
                # Another life of the node: everything it has to say of this one is news.
                self._at, self._lost = store.Cursor(epoch=now.epoch, sequence=0), True

    @property
    def sequence(self) -> int:
        """Of the last event that was looked at."""
        return self._at.sequence

    @property
    def busy(self) -> bool:
        """Whether there is more to tell without news."""
        return self._pages is not None

    def begin(self) -> store.WatchBatch:
        """Where the stream begins. Raises Rejected."""
        if self._wants_held and (self._fresh or self._lost):
            return self._tell_held(gap=self._lost)
        self._said = self._at.sequence
        return store.WatchBatch(cursor=self._at, gap=self._lost)

    def step(self) -> store.WatchBatch | None:
        """What is to be told now; None: nothing. Raises Rejected."""
        batch = self.news()
        if batch.gap and self._wants_held:
            return self._tell_held(gap=True)
        if self._pages is None:
            if not (batch.events or batch.gap or self._passed()):
                return None
            self._said = self._at.sequence
            return batch
        page = next(self._pages, None)
        if page is None:
            self.close()
            self._said = self._at.sequence
            return batch
        batch.events.extend(page)
        batch.held = True
        batch.ClearField("cursor")
        return batch if batch.events else None

    def close(self) -> None:
        if self._pages is not None:
            self._pages = None
            self._telling.end(self._peer.tenants)

    def news(self) -> store.WatchBatch:
        """The next events that the peer may see, perhaps none."""
        core, find = self._host.bridge.core, self._host.namespaces.by_handle
        events, gap = core.events_since(self._at.sequence, self._most)
        if events:
            self._at = store.Cursor(epoch=self._at.epoch, sequence=events[-1].sequence)
        batch = store.WatchBatch(gap=gap, cursor=self._at)
        for event in events:
            opened = find(event.ns)
            if opened is None:  # cleared so long ago that nobody knows whose it was: who was not told forgets all
                batch.gap |= int(event.kind) == store.Event.CLEARED
            elif self._sees(opened):
                batch.events.append(convert.event(event, opened.digest))
        return batch

    def _passed(self) -> bool:
        """Whether it is time to tell no more than how far it is."""
        return self._said < self._present <= self._at.sequence or self._at.sequence - self._said >= PASSED_MAX

    def _tell_held(self, *, gap: bool) -> store.WatchBatch:
        """From now on: what is held, and the news."""
        if self._pages is None:
            self._telling.begin(self._peer.tenants)
        core = self._host.bridge.core
        self._at = store.Cursor(epoch=core.incarnation, sequence=core.event_sequence)
        self._pages = self._told(HeldSlots(core, self._wanted))
        return store.WatchBatch(gap=gap, held=True)

    def _told(self, slots: HeldSlots) -> Iterator[list[store.Event]]:
        for _ in slots.scan():
            yield []
        find: Callable[[int], Opened | None] = self._host.namespaces.by_handle
        for page in slots.pages(HELD_SLOTS):
            yield [
                convert.held_event(opened.digest, slot.shard, slot.tier, slot.key, slot.parent, slot.meta)
                for slot in page
                if (opened := find(slot.ns)) is not None
            ]

    def _wanted(self, handle: int) -> bool:
        opened = self._host.namespaces.by_handle(handle)
        return opened is not None and self._host.namespaces.find(opened.digest) is opened and self._sees(opened)

    def _sees(self, opened: Opened) -> bool:
        return self._peer.may_use(opened.tenant) and (self._only is None or opened is self._only)
