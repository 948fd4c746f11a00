"""Follows as their callers have them: parts as they become ready, then the result.

with ns.follow(chain, into) as follow:    # leaving it early ends it
    for part in follow:                   # this part of every block is in `into`, verified
        use(part)                         # at one's own risk: unsealed blocks may still be given up
    done = follow.finish()                # which says how many blocks were sealed, and how it ended
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType

from kvstore.client.calls import Times
from kvstore.client.follow_journey import FollowDone, FollowJourney
from kvstore.client.steps import Answer, PartReady, Step

__all__ = ["AsyncFollow", "Follow"]


class _Following:
    """What both faces share: the journey, and where it stands."""

    def __init__(self, journey: FollowJourney, times: Times) -> None:
        self._journey = journey
        self._times = times
        self._done: FollowDone | None = None

    def _next(self) -> Step | PartReady | None:
        """None: it has ended."""
        return self._advance(lambda: next(self._journey))

    def _send(self, answer: Answer) -> Step | PartReady | None:
        return self._advance(lambda: self._journey.send(answer))

    def _advance(self, go: Callable[[], Step | PartReady]) -> Step | PartReady | None:
        try:
            return go()
        except StopIteration as stop:
            if stop.value is not None:
                self._done = stop.value
            return None

    def _result(self) -> FollowDone:
        if self._done is None:
            raise ValueError("follow: it was closed, or failed, before it had a result")
        return self._done


class Follow(_Following):
    """The sync face. Of one thread at a time."""

    def __init__(self, journey: FollowJourney, perform: Callable[[Step, Times], Answer], times: Times) -> None:
        super().__init__(journey, times)
        self._perform = perform

    def __iter__(self) -> Follow:
        return self

    def __next__(self) -> int:
        """The next part that has arrived of every block, in order."""
        try:
            step = self._next()
            while step is not None and not isinstance(step, PartReady):
                step = self._send(self._perform(step, self._times))
        except BaseException:
            self.close()
            raise
        if step is None:
            raise StopIteration
        return step.part

    def finish(self) -> FollowDone:
        """Waits for the end. Raises ValueError where it was closed before."""
        for _ in self:
            pass
        return self._result()

    def close(self) -> None:
        """Ends it; nothing touches `into` any more. May be called twice."""
        self._journey.close()

    def __enter__(self) -> Follow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncFollow(_Following):
    """The same, awaited; cancelled like any other call, which ends it."""

    def __init__(
        self, journey: FollowJourney, perform: Callable[[Step, Times], Awaitable[Answer]], times: Times
    ) -> None:
        super().__init__(journey, times)
        self._perform = perform

    def __aiter__(self) -> AsyncFollow:
        return self

    async def __anext__(self) -> int:
        try:
            step = self._next()
            while step is not None and not isinstance(step, PartReady):
                step = self._send(await self._perform(step, self._times))
        except BaseException:
            self.close()
            raise
        if step is None:
            raise StopAsyncIteration
        return step.part

    async def finish(self) -> FollowDone:
        async for _ in self:
            pass
        return self._result()

    def close(self) -> None:
        self._journey.close()

    async def __aenter__(self) -> AsyncFollow:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
