"""An operator's question, put to other nodes for him: all at once, each with its deadline, nobody left out in silence.

Rules
- Who asks has the right `admin` at this node; the others answer this node, which has introduced itself (peer_desk.py).
- A node that is dead in this node's own eyes is not asked: the answer says since when, and why.
- ASKED_MAX at once, so that what has come and is not handed on yet stays small.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from kvstore.directory.liveness import State
from kvstore.errors import KvStoreError, Unavailable
from kvstore.node.namespaces import NotOpen
from kvstore.wire import admin, store

if TYPE_CHECKING:
    from kvstore.node.cluster import Cluster, NodeSeen
    from kvstore.node.questions import Questions

__all__ = ["Asking", "node_row"]

ASK_S: Final = 2.0
ASK_S_MAX: Final = 8.0
ASKED_MAX: Final = 64
SELF: Final = "self"
ID_DIGITS_MIN: Final = 4


@dataclass(frozen=True, slots=True)
class Asking:
    """Of a node."""

    cluster: Cluster
    questions: Questions

    async def answered(self, body: bytes) -> bytes:
        """One CALL of METHOD_PEER_ADMIN, of a node that has introduced itself. Raises as Questions.answer."""
        try:
            question = admin.Question.FromString(body)
        except DecodeError as error:
            raise ValueError("body: not a message of this method") from error
        return (await self.questions.answer(question)).SerializeToString()

    async def ask(self, request: admin.AskRequest) -> AsyncGenerator[admin.NodeAnswer, None]:
        """Raises ValueError for nodes that nobody is called. What is wrong with the question is the same everywhere:
        it raises as Questions.answer, where this node is asked.
        """
        nodes = chosen(self.cluster.nodes(), request.nodes)
        deadline_s = min(request.deadline_ms / 1e3 or ASK_S, ASK_S_MAX)
        turns = asyncio.Semaphore(ASKED_MAX)

        async def one(node: NodeSeen) -> admin.NodeAnswer:
            async with turns:
                return await self._one(node, request.question, deadline_s)

        tasks = [asyncio.ensure_future(one(node)) for node in nodes]
        try:
            for answered in asyncio.as_completed(tasks):
                yield await answered
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, node: NodeSeen, question: admin.Question, deadline_s: float) -> admin.NodeAnswer:
        if node.own:
            try:
                return admin.NodeAnswer(node=node_row(node), answer=await self.questions.answer(question))
            except Unavailable as error:  # of itself: the others are asked all the same
                return admin.NodeAnswer(node=node_row(node), problem=str(error))
        if node.state is State.DEAD:
            why = f": {node.problem}" if node.problem else ""
            return admin.NodeAnswer(node=node_row(node), problem=f"dead for {node.state_s:,.1f} s{why}")
        try:
            body = await self.cluster.peers.call(
                node.member.address, store.METHOD_PEER_ADMIN, question.SerializeToString(), deadline_s
            )
            return admin.NodeAnswer(node=node_row(node), answer=admin.Answer.FromString(body))
        except DecodeError:
            return admin.NodeAnswer(node=node_row(node), problem="what it answered is no answer")
        except (KvStoreError, NotOpen, ValueError) as error:
            return admin.NodeAnswer(node=node_row(node), problem=str(error) or "namespace: not open there")


def chosen(nodes: Sequence[NodeSeen], names: Sequence[str]) -> list[NodeSeen]:
    """Those that are called so: by name, address, the first digits of the id, or "self". None named: all. Raises
    ValueError for a name that is nobody's, or several nodes'.
    """
    if not names:
        return list(nodes)
    out: dict[str, NodeSeen] = {}
    for name in names:
        found = [node for node in nodes if _is_called(node, name)]
        if len(found) != 1:
            known = ", ".join(node.member.name or node.member.address for node in nodes[:20])
            raise ValueError(
                f"nodes: {name[:80]!r} is the name of {'no node' if not found else 'several nodes'} of this cluster; "
                f"there are: {known}"
            )
        out[found[0].member.address] = found[0]
    return list(out.values())


def _is_called(node: NodeSeen, name: str) -> bool:
    member = node.member
    if name == SELF:
        return node.own
    digits = len(name) >= ID_DIGITS_MIN and re.fullmatch("[0-9a-fA-F]+", name)
    return name in {member.name, member.address} - {""} or bool(digits and member.id.hex().startswith(name.lower()))


def node_row(node: NodeSeen) -> admin.NodeRow:
    member = node.member
    return admin.NodeRow(
        name=member.name,
        id=member.id,
        address=member.address,
        grpc=member.grpc,
        version=member.version,
        host=member.host,
        state=admin.NodeState.ValueType(node.state),
        state_s=node.state_s,
        rtt_ms=(node.rtt_s or 0.0) * 1e3,
        self=node.own,
        problem=node.problem,
    )
