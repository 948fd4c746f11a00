"""Several nodes as one channel: which of them a step is asked of, and what is held against those that it is not for."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import numpy as np
import pytest

from kvstore.client.buffers import Registry
from kvstore.client.calls import times_of
from kvstore.client.followed import Followed
from kvstore.client.space import Known, Space
from kvstore.client.spread import AsyncSpreadChannel, SpreadChannel
from kvstore.client.steps import Follow, Reopen, Reopened, Status, Told, WireHint
from tests.integration.nodes import layout

NODES = [f"10.0.0.{i}:7400" for i in range(3)]
KEYS = np.random.default_rng(1).integers(0, 256, (4, 32), np.uint8)
NO_PLACES: Any = None


class Node:
    """As its channel answers a follow (client/follow.py): one that another connection has begun is nobody's here."""

    def __init__(self) -> None:
        self.current: object = object()
        self.fails = False
        self.asked = 0

    def perform(self, space: Space, step: object, times: object) -> Told:
        if isinstance(step, Reopen):
            space.adopt(Known(b"d" * 32, 1, b"seed", 4, True))
            return Reopened(same=True)
        assert isinstance(step, Follow)
        self.asked += 1
        followed = step.followed
        if followed.line not in {None, self.current}:
            return Told(Status.UNAVAILABLE, reason="the node was restarted")
        followed.line = self.current
        return Told(Status.UNAVAILABLE if self.fails else Status.OK)


class Awaited(Node):
    async def perform(self, space: Space, step: object, times: object) -> Told:  # type: ignore[override]
        return super().perform(space, step, times)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def world(request: pytest.FixtureRequest) -> tuple[list[Node], Any, Any]:
    nodes = [Awaited() if request.param else Node() for _ in NODES]
    spread: Any = (AsyncSpreadChannel if request.param else SpreadChannel)(NODES, nodes)  # type: ignore[arg-type]
    space = Space(layout("m"), "default", Registry())
    space.adopt(Known(b"d" * 32, 1, b"seed", 4, True))

    def ask(step: Follow) -> Told:
        told = spread.perform(space, step, times_of(5.0, None))
        answer: Told = asyncio.run(told) if inspect.isawaitable(told) else told  # type: ignore[arg-type]
        return answer

    return nodes, spread._placement, ask


def test_a_follow_goes_on_where_it_began(world: tuple[list[Node], Any, Any]) -> None:
    nodes, placement, ask = world
    step = Follow(0, KEYS, NO_PLACES, WireHint(family=7), Followed(len(KEYS), 1))
    assert ask(step).status == Status.OK
    (home,) = (i for i, node in enumerate(nodes) if node.asked)
    placement.away(home)  # another call of the same client had no answer in time
    assert ask(step).status == Status.OK
    assert [node.asked for node in nodes] == [2 * (i == home) for i in range(3)]
    assert [until > 0 for until in placement._until] == [i == home for i in range(3)], "the others did nothing wrong"
    nodes[home].current = object()
    assert ask(step).status == Status.UNAVAILABLE, "its next life knows nothing of it"


def test_a_node_that_loses_a_follow_is_away_and_no_other(world: tuple[list[Node], Any, Any]) -> None:
    nodes, placement, ask = world
    for node in nodes:
        node.fails = True
    step = Follow(0, KEYS, NO_PLACES, WireHint(family=7), Followed(len(KEYS), 1))
    assert ask(step).status == Status.UNAVAILABLE
    assert sum(until > 0 for until in placement._until) == sum(node.asked > 0 for node in nodes) == 1
