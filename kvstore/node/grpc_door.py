"""What every gRPC call of a node passes through: who is calling, how long it may take, and how a refusal is told.

A method is written as a plain coroutine or async generator that raises; this turns what it raises into a status, an
ErrorDetail in the trailing metadata, and nothing else: no trace, no path, no name of another tenant leaves the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from kvstore.errors import Rejected, Unavailable
from kvstore.node.auth import TRUSTED, Denied, Guard, Peer
from kvstore.node.namespaces import NotOpen
from kvstore.node.shares import Shares
from kvstore.node.streams import Stale
from kvstore.wire import errors, store

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

log = logging.getLogger(__name__)

STATUS: Final = (
    ((ValueError, TypeError), grpc.StatusCode.INVALID_ARGUMENT),
    ((Rejected,), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ((Unavailable,), grpc.StatusCode.UNAVAILABLE),
    ((NotOpen, Stale), grpc.StatusCode.NOT_FOUND),
    ((TimeoutError,), grpc.StatusCode.DEADLINE_EXCEEDED),
)
IDLE_S: Final = 30.0  # before a call's first message, and between two of one Put
OURS: Final = "/kvstore.v1."
NO_MESSAGE: Final = "request: not a message of this method"
TOLD_AS: Final = {
    NotOpen: "namespace: not open at this node; open it (again)",
    Stale: "namespace: not open at this node; open it (again)",
    TimeoutError: "the deadline has passed",
}


def status_of(error: Exception) -> tuple[grpc.StatusCode, store.ErrorDetail]:
    """How a refusal is told. What is not a refusal is the node's own failure, of which nothing is told."""
    if isinstance(error, Denied):
        code = grpc.StatusCode.PERMISSION_DENIED if error.known else grpc.StatusCode.UNAUTHENTICATED
        return code, errors.detail(str(error))
    for kinds, code in STATUS:
        if isinstance(error, kinds):
            limit = error.limit if isinstance(error, Rejected) else ""
            return code, errors.detail(TOLD_AS.get(type(error), str(error)), limit_name=limit)
    log.error("a call failed", exc_info=error)
    return grpc.StatusCode.INTERNAL, errors.detail("the node failed; its log says how")


class Turnstile(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """In front of every method: before anything of a call is read or waited for, it is known who calls, and that there
    is room for it.

    So the first message is read here, and not by gRPC, which would wait for it as long as the caller likes; and bytes
    that are no message are the caller's fault, which gRPC would call UNKNOWN.
    """

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        ours = handler_call_details.method.startswith(OURS)
        admitted = self._entrance.admitted if ours else self._entrance.passing
        parse = handler.request_deserializer

        async def one(raws: AsyncIterator[bytes], context: Context) -> Any:
            async with admitted(context):
                message = await _first(raws, parse)
                return await (handler.unary_stream or handler.unary_unary)(message, context)

        async def many(raws: AsyncIterator[bytes], context: Context) -> Any:
            async with admitted(context):
                return await handler.stream_unary(_parsed(raws, parse), context)

        async def both(raws: AsyncIterator[bytes], context: Context) -> None:
            async with (
                admitted(context),
                contextlib.aclosing(handler.stream_stream(_parsed(raws, parse), context)) as messages,
            ):
                async for message in messages:
                    await context.write(message)

        if handler.response_streaming:
            told = both if handler.request_streaming else one
            return grpc.stream_stream_rpc_method_handler(told, None, handler.response_serializer)
        told = many if handler.request_streaming else one
        return grpc.stream_unary_rpc_method_handler(told, None, handler.response_serializer)


async def _first(raws: AsyncIterator[bytes], parse: Callable[[bytes], Any]) -> Any:
    """The one message of a unary request. Raises ValueError, TimeoutError."""
    try:
        async with asyncio.timeout(IDLE_S):
            raw = await anext(raws, None)
    except TimeoutError:
        raise TimeoutError(f"request: nothing came for {IDLE_S:.0f} s") from None
    if raw is None:
        raise ValueError(NO_MESSAGE)
    try:
        return parse(raw)
    except DecodeError as error:
        raise ValueError(NO_MESSAGE) from error


async def _parsed(raws: AsyncIterator[bytes], parse: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for raw in raws:
        try:
            yield parse(raw)
        except DecodeError as error:
            raise ValueError(NO_MESSAGE) from error


@dataclass(slots=True, eq=False)
class _Call:
    """One call under way: who made it, how that was shown, and what ended it if the node did."""

    peer: Peer
    headers: Mapping[str, str]
    certificate_names: Sequence[str]
    task: asyncio.Task[Any]
    ended: Exception | None = None

    def end(self, error: Exception) -> None:
        self.ended = error
        self.task.cancel()


class Entrance:
    """Admits calls. `deadline_s`: the longest a call may take, whatever its caller says; streams have it too.

    calls_max: over TCP, ours by who calls; others' (health, reflection), which anybody may make, have a quarter of it.
    A Unix socket can be opened by the node's own user only, since its file is 0600, and has no limit.
    """

    def __init__(self, guard: Guard, deadline_s: float, calls_max: int) -> None:
        self._guard = guard
        self._calls: dict[asyncio.Task[Any], _Call] = {}
        self._shares = Shares("calls_max", calls_max, lambda: guard.several_tenants)
        self._passing = Shares("calls_max", max(1, calls_max // 4), lambda: False)
        self.deadline_s = deadline_s

    def judge_again(self) -> int:
        """Ends the calls of those who would be refused now, or be given something else; returns how many."""
        ended = 0
        for call in tuple(self._calls.values()):
            try:
                if call.peer is TRUSTED or self._guard.authorize(call.headers, call.certificate_names) == call.peer:
                    continue
                call.end(Unavailable("authorization: gives something else now; call again"))
            except Denied as denied:
                call.end(denied)
            ended += 1
        return ended

    def time_left(self, context: Context) -> float:
        said = context.time_remaining()
        return self.deadline_s if said is None else min(float(said), self.deadline_s)

    @asynccontextmanager
    async def call(self, context: Context, *, endless: bool = False) -> AsyncIterator[Peer]:
        """Around the body of an admitted call: its peer and its deadline."""
        task = asyncio.current_task()
        assert task is not None
        async with asyncio.timeout(None if endless else self.time_left(context)):
            yield self._calls[task].peer

    @asynccontextmanager
    async def admitted(self, context: Context) -> AsyncIterator[None]:
        """Around the whole of a call: who it is, its place among the calls, and how what it raises is told."""
        task = asyncio.current_task()
        assert task is not None
        call: _Call | None = None
        try:
            call = self._judged(context, task)
            with contextlib.nullcontext() if call.peer is TRUSTED else self._shares.taken(call.peer.tenants):
                self._calls[task] = call
                yield
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:
            if call is None or call.ended is None:
                raise
            task.uncancel()
            await self._refuse(context, call.ended)
        except Exception as error:
            await self._refuse(context, error)
        finally:
            self._calls.pop(task, None)

    @asynccontextmanager
    async def passing(self, context: Context) -> AsyncIterator[None]:
        """Around a call that is none of ours, made by whoever likes."""
        try:
            with contextlib.nullcontext() if _is_local(context) else self._passing.taken(None):
                yield
        except (Rejected, ValueError, TimeoutError) as error:
            await self._refuse(context, error)

    def _judged(self, context: Context, task: asyncio.Task[Any]) -> _Call:
        """Raises Denied."""
        if _is_local(context):
            return _Call(TRUSTED, {}, (), task)
        headers, names = _headers(context.invocation_metadata()), _certificate_names(context)
        return _Call(self._guard.authorize(headers, names), headers, names, task)

    async def _refuse(self, context: Context, error: Exception) -> NoReturn:
        if isinstance(error, Denied):
            self._guard.denied("grpc", error)
        code, told = status_of(error)
        await _abort(context, code, told)


async def _abort(context: Context, code: grpc.StatusCode, told: store.ErrorDetail) -> NoReturn:
    await context.abort(code, errors.text_of(told), ((errors.DETAIL_KEY, told.SerializeToString()),))


def _is_local(context: Context) -> bool:
    return str(context.peer()).startswith("unix:")


def _headers(metadata: Any) -> dict[str, str]:
    return {key: value for key, value in metadata or () if isinstance(value, str)}


def _certificate_names(context: Context) -> Sequence[str]:
    """Subject alternative and common names of a certificate that the handshake has verified."""
    proven = context.auth_context()
    return [
        name.decode(errors="replace")
        for key in ("x509_subject_alternative_name", "x509_common_name")
        for name in proven.get(key, ())
    ]
