"""Several nodes as one channel, for either face: each step goes to its family's node, and to the next while that one
is away (rendezvous.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvstore.client.async_socket import AsyncSocketChannel
from kvstore.client.rendezvous import Placement, asked_by, begun_by, brief, briefly, family_of, of_another_time
from kvstore.client.socket import GONE, SocketChannel, as_told
from kvstore.client.steps import Answer, Limits, Reopen, Reopened, Report, Status, Step
from kvstore.errors import KvStoreError, Unavailable

if TYPE_CHECKING:
    from kvstore.client.calls import Times
    from kvstore.client.space import Space

__all__ = ["AsyncSpreadChannel", "SpreadChannel"]


class SpreadChannel:
    """Thread-safe, as its channels are: one a node."""

    def __init__(self, addresses: Sequence[str], channels: Sequence[SocketChannel]) -> None:
        self._channels = list(channels)
        self._placement = Placement(addresses)
        self._family_blocks = 1

    def check(self) -> None:
        self._channels[0].check()

    def limits(self, deadline: float) -> Limits:
        """Of one that is there."""
        for channel in self._channels:
            if (line := channel.current) is not None:
                return line.limits
        error = Unavailable("no node was reached")
        for i in self._placement.order(b""):
            try:
                return self._channels[i].limits(brief(deadline))
            except Unavailable as now:
                self._placement.away(i)
                error = now
        raise error

    def open(self, space: Space, times: Times) -> bool:
        """At the first that is there; at the others with the first step that goes there."""
        error = Unavailable("no node was reached")
        order = self._placement.order(b"")
        for at, i in enumerate(order):
            twin = self._placement.at(i, space)
            try:
                self._channels[i].open(twin, briefly(times, len(order) - at - 1))
            except Unavailable as now:
                self._placement.away(i)
                error = now
                continue
            self._family_blocks = twin.known.family_blocks
            return space.adopt(twin.known)
        raise error

    def perform(self, space: Space, step: Step, times: Times) -> Answer:
        if isinstance(step, Reopen):
            try:
                return Reopened(same=self.open(space, times))
            except KvStoreError as error:
                return as_told(error)
        if (line := begun_by(step)) is not None:
            i = next((i for i, channel in enumerate(self._channels) if channel.current is line), None)
            return GONE if i is None else self._channels[i].perform(self._placement.at(i, space), step, times)
        answer: Answer = GONE
        stale: Answer | None = None
        order = self._placement.order(family_of(space, step))
        if isinstance(step, Report):  # nobody answers; who is not there has nothing to count
            return self._channels[order[0]].perform(self._placement.at(order[0], space), step, times)
        for at, i in enumerate(order):
            answer = self._at(i, space, step, times, len(order) - at - 1)
            if self._placement.judge(i, answer, times.left()) or begun_by(step) is not None:
                return answer
            stale = answer if answer.status == Status.STALE_NAMESPACE else stale
        return stale or answer

    def _at(self, i: int, space: Space, step: Step, times: Times, others: int) -> Answer:
        channel, twin = self._channels[i], self._placement.at(i, space)
        answer = channel.perform(twin, step, times)
        if answer.blocks or answer.status not in {Status.UNAVAILABLE, Status.STALE_NAMESPACE}:
            return answer
        opened = channel.perform(twin, Reopen(), briefly(times, others))
        return of_another_time(space, twin, opened) or channel.perform(twin, step, times)

    def call(self, method: int, body: bytes, times: Times) -> bytes:
        error = Unavailable("no node was reached")
        order = self._placement.order(asked_by(method, body, self._family_blocks))
        for at, i in enumerate(order):
            try:
                self._channels[i].limits(briefly(times, len(order) - at - 1).deadline)
                return self._channels[i].call(method, body, times)
            except Unavailable as now:
                self._placement.away(i)
                error = now
        raise error

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


class AsyncSpreadChannel:
    """The same, awaited, on one event loop."""

    def __init__(self, addresses: Sequence[str], channels: Sequence[AsyncSocketChannel]) -> None:
        self._channels = list(channels)
        self._placement = Placement(addresses)
        self._family_blocks = 1

    async def limits(self, deadline: float) -> Limits:
        """Of one that is there."""
        for channel in self._channels:
            if (line := channel.current) is not None:
                return line.limits
        error = Unavailable("no node was reached")
        for i in self._placement.order(b""):
            try:
                return await self._channels[i].limits(brief(deadline))
            except Unavailable as now:
                self._placement.away(i)
                error = now
        raise error

    async def open(self, space: Space, times: Times) -> bool:
        """At the first that is there; at the others with the first step that goes there."""
        error = Unavailable("no node was reached")
        order = self._placement.order(b"")
        for at, i in enumerate(order):
            twin = self._placement.at(i, space)
            try:
                await self._channels[i].open(twin, briefly(times, len(order) - at - 1))
            except Unavailable as now:
                self._placement.away(i)
                error = now
                continue
            self._family_blocks = twin.known.family_blocks
            return space.adopt(twin.known)
        raise error

    async def perform(self, space: Space, step: Step, times: Times) -> Answer:
        if isinstance(step, Reopen):
            try:
                return Reopened(same=await self.open(space, times))
            except KvStoreError as error:
                return as_told(error)
        if (line := begun_by(step)) is not None:
            i = next((i for i, channel in enumerate(self._channels) if channel.current is line), None)
            return GONE if i is None else await self._channels[i].perform(self._placement.at(i, space), step, times)
        answer: Answer = GONE
        stale: Answer | None = None
        order = self._placement.order(family_of(space, step))
        if isinstance(step, Report):  # nobody answers; who is not there has nothing to count
            return await self._channels[order[0]].perform(self._placement.at(order[0], space), step, times)
        for at, i in enumerate(order):
            answer = await self._at(i, space, step, times, len(order) - at - 1)
            if self._placement.judge(i, answer, times.left()) or begun_by(step) is not None:
                return answer
            stale = answer if answer.status == Status.STALE_NAMESPACE else stale
        return stale or answer

    async def _at(self, i: int, space: Space, step: Step, times: Times, others: int) -> Answer:
        channel, twin = self._channels[i], self._placement.at(i, space)
        answer = await channel.perform(twin, step, times)
        if answer.blocks or answer.status not in {Status.UNAVAILABLE, Status.STALE_NAMESPACE}:
            return answer
        opened = await channel.perform(twin, Reopen(), briefly(times, others))
        return of_another_time(space, twin, opened) or await channel.perform(twin, step, times)

    async def call(self, method: int, body: bytes, times: Times) -> bytes:
        error = Unavailable("no node was reached")
        order = self._placement.order(asked_by(method, body, self._family_blocks))
        for at, i in enumerate(order):
            try:
                await self._channels[i].limits(briefly(times, len(order) - at - 1).deadline)
                return await self._channels[i].call(method, body, times)
            except Unavailable as now:
                self._placement.away(i)
                error = now
        raise error

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
