"""Which nodes a question goes to, and what is said of those that do not answer it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from kvstore.directory.base import Member
from kvstore.directory.liveness import State
from kvstore.errors import Unavailable
from kvstore.node.asking import ASKED_MAX, Asking, chosen
from kvstore.node.cluster import NodeSeen
from kvstore.node.namespaces import NotOpen
from kvstore.wire import admin, store


def seen(number: int, state: State = State.ALIVE, *, own: bool = False, name: str = "", problem: str = "") -> NodeSeen:
    member = Member(f"h:{number}", id=number.to_bytes(2, "big") * 8, incarnation=1, name=name or f"n{number}")
    return NodeSeen(member, state, 1.25, None, own=own, problem=problem)


ANSWER = admin.Answer(hits=admin.HitsResponse(far_memory=1))
QUESTION = admin.Question(hits=admin.HitsRequest())


@dataclass
class Others:
    """Stands for the cluster and its peers, and for this node's own answers."""

    rows: Sequence[NodeSeen]
    how: dict[str, object] = field(default_factory=dict)
    asked: list[tuple[str, float]] = field(default_factory=list)
    at_once: int = 0
    most: int = 0

    @property
    def peers(self) -> Others:
        return self

    def nodes(self) -> list[NodeSeen]:
        return list(self.rows)

    async def call(self, address: str, method: int, body: bytes, deadline_s: float) -> bytes:
        assert method == store.METHOD_PEER_ADMIN and admin.Question.FromString(body) == QUESTION
        self.asked.append((address, deadline_s))
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        how = self.how.get(address, ANSWER.SerializeToString())
        if isinstance(how, Exception):
            raise how
        assert isinstance(how, bytes)
        return how

    async def answer(self, question: admin.Question) -> admin.Answer:
        how = self.how.get("own")
        if isinstance(how, Exception):
            raise how
        return ANSWER


async def told(others: Any, **request: Any) -> dict[str, admin.NodeAnswer]:
    asking = Asking(others, others)
    return {one.node.name: one async for one in asking.ask(admin.AskRequest(question=QUESTION, **request))}


async def test_every_node_is_in_the_answer() -> None:
    others = Others(
        [seen(1, own=True), seen(2), seen(3, State.DEAD, problem="refused"), seen(4, State.SUSPECT), seen(5), seen(6)],
        {"h:4": Unavailable("h:4: no answer within 2 s"), "h:5": b"\xff", "h:6": NotOpen()},
    )
    found = await told(others)
    assert set(found) == {"n1", "n2", "n3", "n4", "n5", "n6"}
    assert [found[name].answer == ANSWER and not found[name].problem for name in ("n1", "n2")] == [True, True]
    assert {name: one.problem for name, one in found.items() if not one.HasField("answer")} == {
        "n3": "dead for 1.2 s: refused",
        "n4": "h:4: no answer within 2 s",
        "n5": "what it answered is no answer",
        "n6": "namespace: not open there",
    }
    assert others.asked == [("h:2", 2.0), ("h:4", 2.0), ("h:5", 2.0), ("h:6", 2.0)]  # nobody waits for the dead


@pytest.mark.parametrize(("said_ms", "within_s"), [(0, 2.0), (500, 0.5), (60_000, 8.0)])
async def test_each_has_the_deadline_that_was_said_within_bounds(said_ms: int, within_s: float) -> None:
    others = Others([seen(1, own=True), seen(2)])
    await told(others, deadline_ms=said_ms)
    assert others.asked == [("h:2", within_s)]


async def test_so_many_at_once() -> None:
    others = Others([seen(i) for i in range(1, 200)])
    assert len(await told(others)) == 199 and 1 < others.most <= ASKED_MAX


async def test_what_is_wrong_with_the_question_is_the_callers() -> None:
    with pytest.raises(ValueError, match="position"):
        await told(Others([seen(1, own=True), seen(2)], {"own": ValueError("chain.position: no")}))


async def test_a_node_that_cannot_answer_itself_asks_the_others() -> None:
    found = await told(Others([seen(1, own=True), seen(2)], {"own": Unavailable("this node is still starting")}))
    assert found["n1"].problem == "this node is still starting" and found["n2"].answer == ANSWER


async def test_whom_a_name_means() -> None:
    nodes = [seen(1, own=True), seen(2), seen(0xABCD), seen(4, name="abcd")]
    assert [one.member.name for one in chosen(nodes, [])] == ["n1", "n2", "n43981", "abcd"]
    for name, number in (("self", 1), ("n2", 2), ("h:2", 2), ("00020002", 2), ("ABCDab", 0xABCD)):
        assert [one.member.address for one in chosen(nodes, [name])] == [f"h:{number}"]
    assert len(chosen(nodes, ["n2", "h:2", "self"])) == 2
    for name, says in (("n", "no node"), ("00", "no node"), ("", "no node"), ("abcd", "several nodes")):
        with pytest.raises(ValueError, match=f"is the name of {says} of this cluster; there are: n1, n2"):
            chosen(nodes, [name])
