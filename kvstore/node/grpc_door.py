"""What every gRPC call of a node passes through: who is calling, how long it may take, and how a refusal is told.

A method is written as a plain coroutine or async generator that raises; this turns what it raises into a status, an
ErrorDetail in the trailing metadata, and nothing else: no trace, no path, no name of another tenant leaves the node.
"""

from __future__ import annotations

import asyncio
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


class Doorkeeper(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Over TCP: turns away who has no token, or a wrong one, before the node takes a message from it."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if not handler_call_details.method.startswith(OURS):
            return await continuation(handler_call_details)
        try:
            self._guard.turn_away(_headers(handler_call_details.invocation_metadata))
        except Denied as denied:
            code, told = status_of(denied)
            self._guard.denied("grpc", denied)

            async def refuse(_: AsyncIterator[bytes], context: Context) -> None:
                await _abort(context, code, told)

            return grpc.stream_stream_rpc_method_handler(refuse)
        return await continuation(handler_call_details)


class Decoding(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Parses our requests itself: bytes that are no message are the caller's fault, which gRPC would call UNKNOWN."""

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(OURS):
            return handler
        parse = handler.request_deserializer

        async def one(raw: bytes, context: Context) -> Any:
            try:
                message = parse(raw)
            except DecodeError:
                await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, errors.detail(NO_MESSAGE))
            return await (handler.unary_stream or handler.unary_unary)(message, context)

        async def many(raws: AsyncIterator[bytes], context: Context) -> Any:
            return await handler.stream_unary(_parsed(raws, parse), context)

        made = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        return made(many if handler.request_streaming else one, None, handler.response_serializer)


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
    """Admits calls. `deadline_s`: the longest a call may take, whatever its caller says; streams have it too."""

    def __init__(self, guard: Guard, deadline_s: float) -> None:
        self._guard = guard
        self._calls: set[_Call] = set()
        self.deadline_s = deadline_s

    def _admit(self, context: Context) -> _Call:
        """Raises Denied. A Unix socket can be opened by the node's own user only: its file is 0600."""
        task = asyncio.current_task()
        assert task is not None
        if str(context.peer()).startswith("unix:"):
            return _Call(TRUSTED, {}, (), task)
        headers = _headers(context.invocation_metadata())
        names = _certificate_names(context)
        return _Call(self._guard.authorize(headers, names), headers, names, task)

    def judge_again(self) -> int:
        """Ends the calls of those who would be refused now, or be given something else; returns how many."""
        ended = 0
        for call in tuple(self._calls):
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
        """Around the body of one call: its peer, its deadline, and what it raises."""
        call: _Call | None = None
        try:
            async with asyncio.timeout(None if endless else self.time_left(context)):
                call = self._admit(context)
                self._calls.add(call)
                yield call.peer
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:
            if call is None or call.ended is None:
                raise
            call.task.uncancel()
            await self._refuse(context, call.ended)
        except Exception as error:
            await self._refuse(context, error)
        finally:
            if call is not None:
                self._calls.discard(call)

    async def _refuse(self, context: Context, error: Exception) -> NoReturn:
        if isinstance(error, Denied):
            self._guard.denied("grpc", error)
        code, told = status_of(error)
        await _abort(context, code, told)


async def _abort(context: Context, code: grpc.StatusCode, told: store.ErrorDetail) -> NoReturn:
    await context.abort(code, errors.text_of(told), ((errors.DETAIL_KEY, told.SerializeToString()),))


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
