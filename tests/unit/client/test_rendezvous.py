"""Which of several nodes a call goes to."""

from __future__ import annotations

import gc
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvstore.client import rendezvous
from kvstore.client.address import NODES_MAX, parse_all
from kvstore.client.buffers import Registry
from kvstore.client.calls import times_of
from kvstore.client.followed import Followed
from kvstore.client.hints import NO_HINTS, Hints, to_wire
from kvstore.client.journeys import Load
from kvstore.client.rendezvous import AWAY_S, Placement, asked_by, family_of, of_another_time
from kvstore.client.space import Choices, Known, Space
from kvstore.client.steps import (
    Fetch,
    Follow,
    Lookup,
    LookupFar,
    Put,
    Reopen,
    Reopened,
    Replicate,
    Status,
    Told,
    WireHint,
)
from kvstore.wire import store
from tests.integration.nodes import layout

NODES = [f"10.0.0.{i}:7400" for i in range(5)]
KEYS = np.random.default_rng(1).integers(0, 256, (9, 32), np.uint8)
NO_PLACES: Any = None


def space(generation: int = 1) -> Space:
    made = Space(layout("m"), "default", Registry())
    made.adopt(Known(bytes([generation]) * 32, generation, b"seed", 4, True))
    return made


def test_families_are_shared_out_and_few_move_when_a_node_goes() -> None:
    things = [f"family {i}".encode() for i in range(2_000)]
    all_of, without = Placement(NODES), Placement(NODES[:-1])
    homes = [all_of.order(thing)[0] for thing in things]
    shares = Counter(homes)
    assert len(shares) == 5 and max(shares.values()) < 1.3 * len(things) / 5
    for thing, home in zip(things, homes, strict=True):
        assert sorted(all_of.order(thing)) == list(range(5))
        assert home == 4 or without.order(thing)[0] == home
    turned = Placement(NODES[::-1])
    assert [4 - turned.order(thing)[0] for thing in things] == homes, "the order of the addresses says nothing"


def test_who_is_away_stands_last_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(rendezvous, "time", SimpleNamespace(monotonic=lambda: now[0]))
    placement = Placement(NODES)
    first, second, *rest = placement.order(b"x")
    assert placement.judge(first, Told(Status.UNAVAILABLE), 1.0) is False
    assert placement.order(b"x") == [second, *rest, first]
    now[0] += AWAY_S
    assert placement.order(b"x") == [first, second, *rest]
    assert placement.judge(first, Told(Status.LATE), 0.0) is True, "no time is left for others"
    assert placement.judge(second, Told(Status.UNAVAILABLE), 0.0) is True, "it was not given any"
    assert placement.order(b"x")[0] == second
    assert placement.judge(second, Told(Status.UNAVAILABLE, blocks=1), 1.0) is True, "what came is the answer"
    assert placement.judge(second, Told(Status.REJECTED), 1.0) is True
    assert placement.judge(second, Told(Status.STALE_NAMESPACE), 1.0) is False, "others may know this generation"
    now[0] += AWAY_S
    assert placement.judge(second, Told(), 1.0) is True and placement.order(b"x") == [first, second, *rest]


def test_all_steps_of_a_prompt_go_by_its_family() -> None:
    ns = space()
    thing = family_of(ns, Fetch(0, KEYS, NO_PLACES, to_wire(NO_HINTS, KEYS, 4, 0)))
    assert thing == bytes([1]) * 32 + KEYS[3, :8].tobytes()
    request = store.LookupRequest(namespace=b"n", chain=store.Chain(keys=KEYS.tobytes())).SerializeToString()
    assert family_of(ns, Lookup(KEYS, ())) == family_of(ns, LookupFar(request)) == thing
    assert family_of(ns, Fetch(0, KEYS[5:], NO_PLACES, to_wire(NO_HINTS, KEYS, 4, 0).at(5))) == thing, "its rest"
    assert family_of(ns, Lookup(KEYS[:2], ())) == bytes([1]) * 32 + KEYS[1, :8].tobytes(), "shorter than a family"
    assert family_of(ns, Fetch(0, KEYS, NO_PLACES, WireHint(family=7))) == bytes([1]) * 32 + (7).to_bytes(8, "little")
    assert family_of(ns, Reopen()) == bytes([1]) * 32
    prefetch = store.PrefetchRequest(namespace=bytes([1]) * 32, chain=store.Chain(keys=KEYS.tobytes()))
    assert asked_by(store.METHOD_PREFETCH, prefetch.SerializeToString(), 4) == thing


@pytest.mark.parametrize(
    ("hints", "position"), [(NO_HINTS, 0), (NO_HINTS, 4), (Hints(family="chat"), 0), (Hints(family=7), 4)]
)
def test_whoever_was_given_blocks_is_asked_for_replicas_of_them(hints: Hints, position: int) -> None:
    ns = space()
    hint = to_wire(hints, KEYS, 4, position)
    asked = ns._replicating(Load(KEYS, NO_PLACES), hint, Choices(hints=hints, replicas=2), times_of(5.0, None))
    assert family_of(ns, Replicate(asked)) == family_of(ns, Put(0, KEYS, NO_PLACES, hint, b"", ()))
    follow = Follow(0, KEYS, NO_PLACES, hint, Followed(len(KEYS), 1))
    assert family_of(ns, follow) == family_of(ns, Fetch(0, KEYS, NO_PLACES, hint))


def test_what_was_cleared_is_opened_again_before_anything_is_asked() -> None:
    ns, placement = space(), Placement(NODES)
    twin = placement.at(0, ns)
    assert placement.at(0, ns) is twin and placement.at(1, ns) is not twin
    twin.placed = (object(), 5)
    assert placement.at(0, ns).placed is not None
    ns.adopt(Known(bytes([2]) * 32, 2, b"seed", 4, True))
    assert placement.at(0, ns).placed is None
    told = of_another_time(ns, twin, Reopened(same=True))
    assert told is not None and told.status == Status.STALE_NAMESPACE, "this node has not heard of it"
    twin.adopt(ns.known)
    assert of_another_time(ns, twin, Reopened(same=False)) is None
    gone = of_another_time(ns, twin, Told(Status.UNAVAILABLE, reason="gone"))
    assert gone is not None and (gone.status, gone.reason) == (Status.UNAVAILABLE, "gone")
    del ns
    gc.collect()
    assert not placement._twins, "a namespace that nobody has any more is forgotten"


def test_addresses() -> None:
    assert [str(one) for one in parse_all("b:2, a:1,b:2")] == ["a:1", "b:2"]
    assert [str(one) for one in parse_all("unix:/a,b")] == ["unix:/a,b"], "a path may have a comma"
    for wrong in ("a:1,unix:/x", "a:1,", ",", "a:1,b", ",".join(f"h:{i + 1}" for i in range(NODES_MAX + 1))):
        with pytest.raises(ValueError, match="address"):
            parse_all(wrong)
