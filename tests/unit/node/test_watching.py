"""Watch: which events a reader is told, from where, and when it is told that it missed some. Over a core of our own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from kvstore.clock import SystemClock
from kvstore.config import LimitsConfig
from kvstore.errors import Rejected
from kvstore.node import service, watching
from kvstore.node.auth import TRUSTED, Peer
from kvstore.node.handlers import Handlers
from kvstore.node.namespaces import NotOpen
from kvstore.wire import store

EPOCH = 7
ACME = Peer("a", frozenset({"acme"}))


class Opened(NamedTuple):
    """As much of a namespace as an event is told by."""

    tenant: str
    digest: bytes


OPENED = {1: Opened("acme", b"1" * 32), 2: Opened("zebra", b"2" * 32), 3: Opened("acme", b"3" * 32)}


class Core:
    """Events by sequence number; those before `oldest` are forgotten."""

    incarnation = EPOCH

    def __init__(self, namespaces: Sequence[int]) -> None:
        self.namespaces = list(namespaces)  # of event 1, 2, ...
        self.oldest = 1
        self.cleared: set[int] = set()  # events that are clears
        self.asked: list[int] = []

    @property
    def event_sequence(self) -> int:
        return len(self.namespaces)

    def events_since(self, after: int, most: int) -> tuple[list[SimpleNamespace], bool]:
        self.asked.append(most)
        first = max(after + 1, self.oldest)
        told = [
            SimpleNamespace(
                sequence=i,
                kind=store.Event.CLEARED if i in self.cleared else store.Event.STORED,
                ns=self.namespaces[i - 1],
                shard=0,
                tier=1,
                key=bytes(32),
                parent=bytes(32),
                meta=b"",
            )
            for i in range(first, len(self.namespaces) + 1)
        ]
        return told[:most], first > after + 1


class Rig:
    def __init__(self, namespaces: Sequence[int], *, hold_wait_ms_max: int = 60_000) -> None:
        self.core = Core(namespaces)
        known = SimpleNamespace(
            by_handle=OPENED.get, find=lambda digest: next((o for o in OPENED.values() if o.digest == digest), None)
        )
        self.handlers = Handlers(
            SimpleNamespace(  # type: ignore[arg-type]
                bridge=SimpleNamespace(core=self.core),
                namespaces=known,
                clock=SystemClock(),
                limits=LimitsConfig(hold_wait_ms_max=hold_wait_ms_max),
                several_tenants=lambda: True,
                cluster=None,
            )
        )

    def soon(self, namespace: int) -> None:
        """News that come while a reader waits."""
        asyncio.get_running_loop().call_later(0.01, self.core.namespaces.append, namespace)

    async def ask(self, request: store.WatchRequest, peer: Peer = TRUSTED) -> store.WatchBatch:
        """As the framed door does: one batch a call."""
        async with asyncio.timeout(20):
            raw = await self.handlers.call(peer, store.METHOD_WATCH, request.SerializeToString(), lambda _handle: None)
        return store.WatchBatch.FromString(raw)


def at(sequence: int, epoch: int = EPOCH) -> store.Cursor:
    return store.Cursor(epoch=epoch, sequence=sequence)


def told(batch: store.WatchBatch) -> list[int]:
    return [event.sequence for event in batch.events]


LONG_MS = 60_000


async def test_without_a_place_it_says_where_the_present_is() -> None:
    batch = await Rig([1, 1]).ask(store.WatchRequest(wait_ms=LONG_MS))
    assert (batch.cursor, batch.gap, told(batch)) == (at(2), False, [])


async def test_news_are_told_at_once_and_in_batches_of_the_size_asked_for() -> None:
    rig = Rig([1] * 5)
    batch = await rig.ask(store.WatchRequest(after=at(1), events_max=3, wait_ms=LONG_MS))
    assert (batch.cursor, told(batch), batch.gap) == (at(4), [2, 3, 4], False)
    batch = await rig.ask(store.WatchRequest(after=batch.cursor, events_max=3, wait_ms=LONG_MS))
    assert (batch.cursor, told(batch)) == (at(5), [5])


async def test_a_batch_is_no_larger_than_a_message() -> None:
    rig = Rig([1])
    for asked, given in ((0, watching.EVENTS_DEFAULT), (10, 10), (1 << 31, watching.EVENTS_MAX)):
        await rig.ask(store.WatchRequest(after=at(0), events_max=asked))
        assert rig.core.asked.pop() == given


@pytest.mark.parametrize(("wait_ms", "waits_s"), [(0, 0.0), (30, 0.03), (LONG_MS, 0.1)])
async def test_without_news_it_ends_when_it_was_asked_to_or_the_node_has_enough(wait_ms: int, waits_s: float) -> None:
    rig, began = Rig([1], hold_wait_ms_max=100), time.monotonic()
    batch = await rig.ask(store.WatchRequest(after=at(1), wait_ms=wait_ms))
    assert (batch.cursor, told(batch), batch.gap) == (at(1), [], False)
    assert time.monotonic() - began >= waits_s


async def test_news_end_the_wait() -> None:
    rig = Rig([1])
    rig.soon(1)
    assert told(await rig.ask(store.WatchRequest(after=at(1), wait_ms=LONG_MS))) == [2]


@pytest.mark.parametrize("after", [at(2, EPOCH + 1), at(4)])
async def test_a_place_in_another_life_is_a_gap(after: store.Cursor) -> None:
    """Also one that this life has not come to. All that it has to say is news."""
    batch = await Rig([1, 1, 1]).ask(store.WatchRequest(after=after))
    assert (batch.gap, batch.cursor, told(batch)) == (True, at(3), [1, 2, 3])
    empty = await Rig([]).ask(store.WatchRequest(after=after, wait_ms=LONG_MS))
    assert (empty.gap, empty.cursor, told(empty)) == (True, at(0), [])


async def test_what_was_forgotten_is_a_gap() -> None:
    rig = Rig([1] * 5)
    rig.core.oldest = 4
    batch = await rig.ask(store.WatchRequest(after=at(1)))
    assert (batch.gap, told(batch), batch.cursor) == (True, [4, 5], at(5))
    assert not (await rig.ask(store.WatchRequest(after=at(3)))).gap


async def test_a_reader_is_told_of_its_own_and_passes_over_the_rest() -> None:
    rig = Rig([1, 2, 3, 9, 2])  # nobody knows 9 any more
    batch = await rig.ask(store.WatchRequest(after=at(0)), ACME)
    assert (told(batch), batch.cursor) == ([1, 3], at(5))
    assert [event.namespace for event in batch.events] == [b"1" * 32, b"3" * 32]
    assert told(await rig.ask(store.WatchRequest(after=at(0), namespace=b"3" * 32), ACME)) == [3]
    for other in (b"2" * 32, b"9" * 32):
        with pytest.raises(NotOpen):
            await rig.ask(store.WatchRequest(after=at(0), namespace=other), ACME)


def test_who_is_told_nothing_is_told_how_far_it_is_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is where the stream was when it came, so that whoever waits for that place does not wait for ever; and
    so often that its place is not forgotten meanwhile.
    """
    monkeypatch.setattr(watching, "PASSED_MAX", 4)
    rig = Rig([1, 2, 2, 2, 2])
    watch = rig.handlers.watching(ACME, store.WatchRequest(after=at(1), events_max=2))
    assert watch.begin().cursor == at(1)
    assert watch.step() is None
    batch = watch.step()
    assert batch is not None and (told(batch), batch.cursor, batch.gap) == ([], at(5), False)
    for more, place in ((3, None), (1, at(9)), (3, None)):
        rig.core.namespaces += [2] * more
        batches = [batch for _ in range(3) if (batch := watch.step()) is not None]
        assert [batch.cursor for batch in batches] == ([place] if place else [])
    rig.core.namespaces += [1]
    batch = watch.step()
    assert batch is not None and told(batch) == [13]


async def test_news_of_others_do_not_end_the_wait() -> None:
    rig, began = Rig([2, 2]), time.monotonic()
    rig.soon(2)
    batch = await rig.ask(store.WatchRequest(after=at(0), wait_ms=100), ACME)
    assert (told(batch), batch.cursor) == ([], at(3))
    assert time.monotonic() - began >= 0.1


async def test_a_clear_that_nobody_can_be_told_of_any_more_is_a_gap() -> None:
    """Whose it was is forgotten: whoever may have been its reader forgets what he believes."""
    rig = Rig([1, 9, 1])
    assert not (await rig.ask(store.WatchRequest(after=at(0)), ACME)).gap
    rig.core.cleared = {2}
    batch = await rig.ask(store.WatchRequest(after=at(0)), ACME)
    assert (batch.gap, told(batch)) == (True, [1, 3])


def test_a_tenant_has_a_share_of_the_places_of_those_who_are_told_what_is_held() -> None:
    telling, acme, zebra = watching.Telling(lambda: True), frozenset({"acme"}), frozenset({"zebra"})
    for _ in range(12):
        telling.begin(acme)
    with pytest.raises(Rejected, match="held: this tenant's share of the node's 16 is used up"):
        telling.begin(acme)
    telling.begin(zebra)
    telling.end(acme)
    telling.begin(None)
    alone = watching.Telling(lambda: False)
    for _ in range(16):
        alone.begin(acme)
    with pytest.raises(Rejected, match="held: 16 readers are being told what is held"):
        alone.begin(None)


async def test_who_does_not_read_while_being_told_what_is_held_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "HELD_READ_S", 0.02)
    rig, ended = Rig([1]), []

    class Reader(SimpleNamespace):
        """Of a watch that goes on telling, to whom nothing can be written."""

        busy = True
        begin = step = staticmethod(store.WatchBatch)

        async def surely(self) -> None: ...

        async def write(self, _batch: store.WatchBatch) -> None:
            await asyncio.Event().wait()

        def close(self) -> None:
            ended.append(self)

    reader: Any = Reader()
    rig.handlers.host.cluster = reader
    monkeypatch.setattr(Handlers, "watching", lambda *_: reader)
    with pytest.raises(Rejected, match="held: nothing was read for"):
        async with asyncio.timeout(20):
            await service.tell_events(rig.handlers, TRUSTED, store.WatchRequest(held=True), reader)
    assert ended == [reader]


async def test_what_is_held_is_not_told_where_there_are_no_streams() -> None:
    with pytest.raises(ValueError, match="held: what is held is told over gRPC"):
        await Rig([1]).ask(store.WatchRequest(held=True))
