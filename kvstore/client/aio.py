"""The async face: the verbs of the sync face, awaited. Neither wraps the other; both drive kvstore.client.journeys.

One event loop a client. Cancelling a call is safe: it ends only when nothing touches the caller's memory any more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from kvstore.client.calls import Times, positive, times_of
from kvstore.client.channel import AsyncChannel, connect_async
from kvstore.client.face import DEADLINE_S, ClientFace, NamespaceFace
from kvstore.client.follows import AsyncFollow
from kvstore.client.held import Held
from kvstore.client.hints import NO_HINTS, Hints
from kvstore.client.journeys import Found, Got, Journey, Stored
from kvstore.client.slots import SlotsFace, check
from kvstore.client.space import Choices, Cleared, Space, parent_of
from kvstore.client.steps import Limits
from kvstore.client.views import View
from kvstore.layout import KVLayout, Need
from kvstore.quiet import quietly
from kvstore.security import DEFAULT_TENANT
from kvstore.wire import store

if TYPE_CHECKING:
    from kvstore.client.tls import Tls
    from kvstore.config import TransferConfig

T = TypeVar("T")


class AsyncClient(ClientFace):
    """As kvstore.Client, awaited. Belongs to the event loop of its first call."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        transfers: TransferConfig | None = None,
        deadline_s: float = DEADLINE_S,
        verify: bool = True,
        workers: int | None = None,
    ) -> None:
        super().__init__(deadline_s)
        threads = workers if workers is not None else min(4, os.cpu_count() or 1)
        self._channel = connect_async(address, token, tls, transfers, verify=verify, workers=threads)

    async def namespace(self, layout: KVLayout, *, tenant: str = DEFAULT_TENANT) -> AsyncNamespace:
        space = Space(layout, tenant, self._registry)
        await self._channel.open(space, times_of(self._deadline_s, None))
        return AsyncNamespace(self._channel, space, self._deadline_s)

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncNamespace(NamespaceFace):
    """As kvstore.client.sync.Namespace, awaited; arguments and answers are the same."""

    def __init__(self, channel: AsyncChannel, space: Space, deadline_s: float) -> None:
        super().__init__(space, deadline_s)
        self._channel = channel

    async def lookup(
        self, chain: object, needs: Sequence[Need] | None = None, *, deadline_s: float | None = None
    ) -> Found:
        times, limits = await self._ready(deadline_s, None)
        return await self._drive(self._space.lookup(limits, chain, needs), times)

    async def put(
        self,
        chain: object,
        source: object,
        *,
        shard: int = 0,
        metas: Sequence[bytes] | None = None,
        parent: object = None,
        position: int = 0,
        hints: Hints | None = None,
        replicas: int = 1,
        deadline_s: float | None = None,
    ) -> Stored:
        """`source` must stay as it is until this returns."""
        times, limits = await self._ready(deadline_s, None)
        choices = Choices(shard, hints or NO_HINTS, parent_of(parent), position, replicas)
        return await self._drive(self._space.put(limits, chain, source, metas, choices, times), times)

    async def get(
        self,
        chain: object,
        into: object,
        *,
        shard: int = 0,
        parts: range | tuple[int, int] | None = None,
        position: int = 0,
        hints: Hints | None = None,
        wait_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Got:
        times, limits = await self._ready(deadline_s, wait_s)
        choices = Choices(shard, hints or NO_HINTS, position=position)
        return await self._drive(self._space.get(limits, chain, into, choices, parts), times)

    async def hold(
        self,
        chain: object,
        *,
        shard: int = 0,
        position: int = 0,
        hints: Hints | None = None,
        wait_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Held:
        """What is held is not awaited: `with await ns.hold(chain)`, and close() waits for nothing."""
        times, limits = await self._ready(deadline_s, wait_s)
        choices = Choices(shard, hints or NO_HINTS, position=position)
        return await self._drive(self._space.hold(limits, chain, choices), times)

    async def view(
        self,
        chain: object,
        *,
        shard: int = 0,
        follow: bool = False,
        position: int = 0,
        hints: Hints | None = None,
        wait_s: float | None = None,
        deadline_s: float | None = None,
    ) -> View:
        """The view itself is not awaited: `with await ns.view(chain) as view`."""
        times, limits = await self._ready(deadline_s, wait_s)
        choices = Choices(shard, hints or NO_HINTS, position=position)
        lent = await self._drive(self._space.view(limits, chain, follow, choices), times)
        return View(lent, self._space.block_tokens)

    async def follow(
        self,
        chain: object,
        into: object,
        *,
        shard: int = 0,
        position: int = 0,
        hints: Hints | None = None,
        wait_s: float | None = None,
        deadline_s: float | None = None,
    ) -> AsyncFollow:
        """`async for part in await ns.follow(...)`; `await follow.finish()` gives the result."""
        times, limits = await self._ready(deadline_s, wait_s)
        choices = Choices(shard, hints or NO_HINTS, position=position)
        journey = self._space.follow(limits, chain, into, choices)
        return AsyncFollow(journey, partial(self._channel.perform, self._space), times)

    async def reserve(
        self,
        chain: object,
        *,
        shard: int = 0,
        metas: Sequence[bytes] | None = None,
        parent: object = None,
        position: int = 0,
        hints: Hints | None = None,
        deadline_s: float | None = None,
    ) -> AsyncSlots:
        """`async with await ns.reserve(chain) as slots`."""
        times, limits = await self._ready(deadline_s, None)
        choices = Choices(shard, hints or NO_HINTS, parent_of(parent), position)
        return AsyncSlots(await self._drive(self._space.reserve(limits, chain, metas, choices), times), times)

    async def prefetch(
        self, chain: object, *, hints: Hints | None = None, shards: Sequence[int] = (), deadline_s: float | None = None
    ) -> int:
        times, _ = await self._ready(deadline_s, None)
        body = await self._channel.call(
            store.METHOD_PREFETCH, self._space.prefetching(chain, shards, hints or NO_HINTS), times
        )
        return store.PrefetchResponse.FromString(body).blocks

    async def clear(self, *, deadline_s: float | None = None) -> Cleared:
        times, _ = await self._ready(deadline_s, None)
        request = store.ClearRequest(namespace=self.digest)
        body = await self._channel.call(store.METHOD_CLEAR, request.SerializeToString(), times)
        await self._channel.open(self._space, times)
        return Cleared.of(store.ClearResponse.FromString(body))

    # ---- driving ----------------------------------------------------------------------------------------------------

    async def _ready(self, deadline_s: float | None, wait_s: float | None) -> tuple[Times, Limits]:
        times = times_of(self._deadline_s if deadline_s is None else positive("deadline_s", deadline_s), wait_s)
        return times, await self._channel.limits(times.deadline)

    async def _drive(self, journey: Journey[T], times: Times) -> T:
        perform, space = self._channel.perform, self._space
        try:
            step = next(journey)
            while True:
                step = journey.send(await perform(space, step, times))
        except StopIteration as stop:
            result: T = stop.value
            return result


class AsyncSlots(SlotsFace):
    """As kvstore.client.slots.Slots. What copies or hashes runs in a thread, and is waited for even when cancelled."""

    async def write(self, part: int, sources: object) -> None:
        places = self._filling.places(part, sources)
        check(await _beside(self._filling.held.write, part, places, self._times.left()))

    async def publish(self, part: int) -> None:
        self._filling.check_next(part)
        check(await _beside(self._filling.held.publish, part, self._times.left()))
        self._filling.published()

    async def seal(self) -> Stored:
        self._filling.check_open()
        return self._filling.sealed(await _beside(self._filling.held.seal, self._times.left()))

    async def abort(self) -> None:
        if not self._filling.done:
            self._filling.done = True
            await _beside(self._filling.held.abort)

    async def __aenter__(self) -> AsyncSlots:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.abort()


async def _beside(call: Callable[..., T], *arguments: object) -> T:
    """In a thread; a cancellation is let through only when the thread is done with the caller's memory."""
    return await quietly(asyncio.get_running_loop().run_in_executor(None, partial(call, *arguments)))
