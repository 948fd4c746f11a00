"""What the door answers by itself to who asks a home: the same as Python does, and only while it may."""

from __future__ import annotations

import hashlib
import random
import time

import numpy as np
import pytest

from kvstore.directory.claims import Claims
from kvstore.directory.directory import Directory
from kvstore.directory.homes import SettledView
from kvstore.directory.messages import Announce, Bytes, Locate, LocateAnswer, Rows
from kvstore.directory.settings import MS, DirectorySettings
from kvstore.native import ClaimTable, namespace_word
from kvstore.testing.models.holdings import HoldingsModel
from kvstore.wire import claims as wire
from kvstore.wire import peers, store

NS = hashlib.sha256(b"ns").digest()
IDS = [hashlib.sha256(f"node {n}".encode()).digest()[:16] for n in range(5)]
KEYS = np.frombuffer(b"".join(hashlib.sha256(f"{n}".encode()).digest()[:16] for n in range(300)), np.uint8)
KEYS = KEYS.reshape(-1, 16)
MINUTE = 60_000 * MS


def ask(keys: Bytes = KEYS, spread: int = 7) -> bytes:
    return wire.message_bytes(Locate(NS, keys, spread))


def by_key(answer: LocateAnswer) -> list[list[tuple[bytes, int, int]]]:
    held = iter(zip(answer.holders.tolist(), answer.shards.tolist(), answer.tiers.tolist(), strict=True))
    return [
        [(answer.nodes[place], shards, tier) for place, shards, tier in (next(held) for _ in range(count))]
        for count in answer.counts.tolist()
    ]


@pytest.fixture
def view() -> SettledView:
    view = SettledView(IDS[0], DirectorySettings())
    view.update(dict.fromkeys(IDS, 1), 0)
    return view


@pytest.fixture
def claims(view: SettledView) -> Claims:
    """Each node but the first has said something of some keys."""
    claims, rng = Claims(view, ClaimTable(10_000, 3)), random.Random(5)
    for node in IDS[1:]:
        chosen = np.array(sorted(rng.sample(range(300), 150)))
        shards = np.array([rng.choice([1, 2, 3, 1 << 63]) for _ in chosen], np.uint64)
        tiers = np.array([rng.choice([1, 2]) for _ in chosen], np.uint8)
        rows = Rows(NS, np.ascontiguousarray(KEYS[chosen]), shards, tiers)
        every = (1 << 64) - 1
        assert claims.announce(Announce(node, 1, 1, (rows,), (), every, every)).status == 0
    return claims


def told(claims: Claims, message: bytes) -> LocateAnswer:
    body = claims.table.answer(message)
    assert body is not None
    asked = wire.message_of(store.METHOD_PEER_LOCATE, message, IDS[4], 1)
    answer = wire.answer_of(asked, body)
    assert isinstance(answer, LocateAnswer)
    return answer


@pytest.mark.parametrize("holders_max", [1, 2, 4])
@pytest.mark.parametrize("spread", [0, 7, 0xFFFFFFFF])
def test_it_says_what_python_says(claims: Claims, view: SettledView, holders_max: int, spread: int) -> None:
    claims.table.answer_until(time.monotonic_ns() + MINUTE, view.live_word, holders_max)
    for keys in (KEYS, KEYS[:1], KEYS[:0]):
        want = claims.locate(Locate(NS, keys, spread), holders_max)
        answer = told(claims, ask(keys, spread))
        assert by_key(answer) == by_key(want)
        assert answer.view == want.view and answer.status == want.status and set(answer.nodes) == set(want.nodes)


def test_who_is_dead_is_not_named_and_who_has_his_number_is_not_taken_for_him(
    claims: Claims, view: SettledView
) -> None:
    claims.table.answer_until(time.monotonic_ns() + MINUTE, 0, 4)
    claims.table.set_named(claims.tellers[IDS[1]].number, False)
    assert set(told(claims, ask()).nodes) == set(IDS[2:])
    number = claims.tellers[IDS[2]].number
    claims.table.drop_node(number)
    assert claims.table.add_node() == number
    claims.table.name_node(number, b"n" * 16)
    claims.table.apply(number, namespace_word(NS), KEYS[:1], np.ones(1, np.uint64), np.ones(1, np.uint8))
    assert b"n" * 16 in told(claims, ask(KEYS[:1])).nodes and IDS[2] not in told(claims, ask()).nodes


def test_what_is_unusual_is_left_to_python(claims: Claims) -> None:
    claims.table.answer_until(time.monotonic_ns() + MINUTE, 0, 4)
    good = ask()
    assert claims.table.answer(good) is not None
    many = np.zeros((8_193, 16), np.uint8)
    for bad in (
        good + b"\x48\x01",  # a field of a later release
        good[:-1],
        good[: len(good) // 2],
        ask(many),
        peers.PeerLocateRequest(namespace=NS[:31], keys=KEYS.tobytes()).SerializeToString(),
        peers.PeerLocateRequest(namespace=NS, keys=KEYS.tobytes()[:-1]).SerializeToString(),
        b"",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    ):
        assert claims.table.answer(bad) is None


def test_nothing_is_answered_of_a_node_without_a_name() -> None:
    table = ClaimTable(100, 3)
    table.answer_until(time.monotonic_ns() + MINUTE, 0, 4)
    table.apply(table.add_node(), namespace_word(NS), KEYS[:1], np.ones(1, np.uint64), np.ones(1, np.uint8))
    assert table.answer(ask(KEYS[:1])) is None and table.answer(ask(KEYS[1:2])) is not None


def test_it_answers_until_its_time_is_over(claims: Claims) -> None:
    assert claims.table.answer(ask()) is None
    claims.table.answer_until(time.monotonic_ns() + MINUTE, 0, 4)
    assert claims.table.answer(ask()) is not None
    claims.table.answer_until(time.monotonic_ns() - 1, 0, 4)
    assert claims.table.answer(ask()) is None


class Home:
    """A node's directory, of which the door may answer for a minute from `now`, as its ticks say."""

    def __init__(self) -> None:
        self.table = ClaimTable(100, 3)
        self.now = time.monotonic_ns()
        settings = DirectorySettings()
        self.settle = settings.settle_ms * MS + 1
        self.directory = Directory(IDS[0], 1, HoldingsModel(), self.table, settings)

    def ticks(self) -> bool:
        """Whether the door answers after a tick."""
        self.directory.answer_until(self.now + MINUTE, self.now)
        return self.answers

    @property
    def answers(self) -> bool:
        return self.table.answer(ask(KEYS[:1])) is not None


def test_a_home_that_is_new_or_stood_still_is_not_answered_for() -> None:
    home = Home()
    home.directory.view_changed(dict.fromkeys(IDS, 1), home.now)
    assert not home.ticks(), "others have not told it yet"
    home.now += home.settle
    assert home.ticks()
    home.directory.view_changed(dict.fromkeys(IDS[:3], 1), home.now)
    assert not home.answers, "by a view that is not its own any more"
    assert home.ticks()
    home.directory.stood_still(home.now)
    assert not home.answers and not home.ticks()
    home.directory.rejoined(home.now)
    assert not home.ticks(), "others may have told it things meanwhile"
    home.now += home.settle
    assert home.ticks()
