"""One request's way: its prefill, then its decode, whose answer is passed on as it arrives.

    prefill dies, is late, refuses     decode alone; it computes what prefill would have
    decode cannot be reached           another decode server; none left: 503
    decode breaks off                  before its answer began: 502; later: the client's answer is broken off, too
    the client goes                    the task is cancelled, and with it the connection that the server works for

A request is asked again only where it cannot have begun: one that kills its server shall not kill the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from engine_adapters.pd.asking import Asked, decode_body, handover_of, prefill_body, skips
from engine_adapters.pd.metrics import Metrics
from engine_adapters.pd.pool import Pool, Server
from engine_adapters.pd.settings import Settings

__all__ = ["BEGUN", "ID", "Relay", "break_off", "passed", "problem"]

PREFILL_ANSWER_BYTES_MAX: Final = 4 << 20
RETRY_AFTER_S: Final = 1

# Of a request: its id, and its answer once that has begun.
ID: Final = web.RequestKey("id", str)
BEGUN: Final = web.RequestKey("begun", web.StreamResponse)

# Of one connection, not of the message; and what is written anew with the body.
_NOT_PASSED: Final = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade", "host", "content-length", "expect",
})  # fmt: skip


def problem(status: int, message: str) -> web.Response:
    """An error, in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    error = {"message": message, "type": kind, "param": None, "code": status}
    return web.json_response({"error": error}, status=status, headers=headers)


def passed(headers: Mapping[str, str]) -> CIMultiDict[str]:
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in _NOT_PASSED and k.lower() not in named)


class Relay:
    def __init__(
        self, settings: Settings, session: aiohttp.ClientSession, prefill: Pool, decode: Pool, metrics: Metrics
    ) -> None:
        self._settings, self._session, self._metrics = settings, session, metrics
        self._prefill_pool, self._decode_pool = prefill, decode

    async def run(self, request: web.Request, asked: Asked, headers: CIMultiDict[str]) -> web.StreamResponse:
        """headers: for the servers and, as far as they are ours, for the answer."""
        came = time.monotonic()
        # aiohttp has undone what the body was packed in.
        headers.popall("Content-Encoding", None)
        outcome, handover = await self._prefill(asked, request.rel_url, headers)
        self._metrics.prefills.labels(outcome).inc()
        timing = f"prefill;dur={(time.monotonic() - came) * 1e3:.1f}"
        body = decode_body(asked, handover)
        tried: set[Server] = set()
        while (server := self._decode_pool.take(tried)) is not None:
            tried.add(server)
            try:
                answer = await self._ask(server, request.rel_url, body, headers)
                try:
                    return await self._pass_on(request, answer, server, timing, came)
                finally:
                    answer.close()  # where it was not read to its end the server sees that nobody waits any more
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                self._decode_pool.failed(server, gone=True)
            except aiohttp.ClientError as error:
                self._decode_pool.failed(server, gone=True)
                return problem(502, f"the decode server broke off: {type(error).__name__}")
            finally:
                self._decode_pool.give_back(server)
        return problem(503, "no decode server can be reached")

    async def _ask(self, server: Server, path: URL, body: bytes, headers: CIMultiDict[str]) -> aiohttp.ClientResponse:
        return await self._session.post(server.url + path.path_qs, data=body, headers=headers, allow_redirects=False)

    # ---- prefill

    async def _prefill(self, asked: Asked, path: URL, headers: CIMultiDict[str]) -> tuple[str, dict[str, Any] | None]:
        """What came of it (metrics.OUTCOMES), and what it told decode."""
        pool = self._prefill_pool
        if not pool.servers or skips(asked, self._settings.prefill_tokens_min):
            return "skipped", None
        server = pool.take()
        if server is None:
            return "nobody", None
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.prefill_ms / 1e3):
                answer = await self._ask(server, path, prefill_body(asked), _plain(headers))
                try:
                    raw = await _read(answer)
                finally:
                    answer.close()
        except aiohttp.ClientError:  # before TimeoutError: some are both
            pool.failed(server, gone=True)
            return "failed", None
        except (TimeoutError, ValueError) as error:
            pool.failed(server)
            return "late" if isinstance(error, TimeoutError) else "failed", None
        finally:
            pool.give_back(server)
        if answer.status >= 500:
            pool.failed(server)
        if answer.status != 200:
            return "failed", None  # what is wrong with the request, decode says as well
        pool.served(server)
        self._metrics.prefill_s.observe(time.monotonic() - began)
        told = handover_of(raw)
        return "untold" if told is None else "done", told

    # ---- decode

    async def _pass_on(
        self, request: web.Request, answer: aiohttp.ClientResponse, server: Server, timing: str, came: float
    ) -> web.StreamResponse:
        """Byte by byte. Raises aiohttp.ClientError only before the client's answer has begun."""
        reply = web.StreamResponse(status=answer.status, reason=answer.reason, headers=passed(answer.headers))
        reply.headers["Server-Timing"] = timing
        reply.headers["X-Request-Id"] = request[ID]
        if answer.content_length is not None:
            reply.content_length = answer.content_length
        first = await answer.content.readany()  # an error before the first byte can still be told
        self._metrics.first_s.observe(time.monotonic() - came)
        request[BEGUN] = reply
        try:
            await reply.prepare(request)
            piece = first
            while piece:
                await reply.write(piece)
                piece = await answer.content.readany()
        except aiohttp.ClientConnectionResetError:  # the client's: aiohttp cancels us as well, or is about to
            raise asyncio.CancelledError from None
        except aiohttp.ClientError:
            self._decode_pool.failed(server, gone=True)
            self._metrics.broken.labels("server").inc()
            break_off(request)
            return reply
        if answer.status >= 500:
            self._decode_pool.failed(server)
        else:
            self._decode_pool.served(server)
        await reply.write_eof()
        return reply


def break_off(request: web.Request) -> None:
    """So that the client does not take what it has for all there was."""
    if request.transport is not None:
        request.transport.close()


def _plain(headers: CIMultiDict[str]) -> CIMultiDict[str]:
    """For an answer that we read ourselves: unpacked."""
    return CIMultiDict(
        (key, value) for key, value in headers.items() if key.lower() not in ("accept-encoding", "accept")
    )


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """All of it. ValueError where it is longer than any prefill's."""
    raw = bytearray()
    async for piece in answer.content.iter_any():
        raw += piece
        if len(raw) > PREFILL_ANSWER_BYTES_MAX:
            raise ValueError("a prefill's answer is that long")
    return bytes(raw)
