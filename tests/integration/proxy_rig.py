"""A proxy between real HTTP servers on loopback: what they are asked is kept, what they answer is the test's."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Self

import aiohttp
from aiohttp import web

from engine_adapters.pd.proxy import Proxy, serve
from engine_adapters.pd.settings import Settings

__all__ = ["PROMPT", "TOLD", "Origin", "proxied", "sampled", "until"]

TOLD = {"kvstore": {"blocks": 3}}
PROMPT: dict[str, Any] = {"model": "m", "prompt": list(range(10, 400))}
WAIT_MAX_S = 10.0


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_MAX_S):
        while not done():
            await asyncio.sleep(0.005)


class Origin:
    """A server of an engine's kind. `pieces` is its answer; `wait` is set when it may go on: before its answer, or with
    `pause` after that many pieces. `left` counts requests whose asker went away."""

    def __init__(self, *pieces: bytes, status: int = 200, **headers: str) -> None:
        self.pieces: Sequence[bytes] = pieces
        self.status, self.headers = status, {"Content-Type": "application/json", **headers}
        self.asked: list[tuple[str, dict[str, Any], Mapping[str, str]]] = []
        self.wait = asyncio.Event()
        self.wait.set()
        self.pause: int | None = None
        self.steps: asyncio.Semaphore | None = None  # one for each piece, if there are any
        self.breaks: int | None = None  # hangs up after so many pieces
        self.chunked = False
        self.well = True
        self.left = 0
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body, _ in self.asked]

    async def start(self) -> None:
        """Also again, at the same port."""
        app = web.Application(client_max_size=1 << 30)
        app.add_routes([web.post("/v1/{verb:.*}", self._answer), web.get("/v1/models", self._models)])
        app.add_routes([web.get("/health", self._health)])
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *failure: object) -> None:
        self.wait.set()
        await self.stop()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.well else 500)

    async def _models(self, request: web.Request) -> web.Response:
        self.asked.append((request.path_qs, {}, request.headers))
        return web.json_response({"data": [{"id": "m"}]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.asked.append((request.path_qs, json.loads(raw), request.headers))
        try:
            if self.pause is None:
                await self.wait.wait()
            return await self._say(request)
        except asyncio.CancelledError:
            self.left += 1
            raise

    async def _say(self, request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(status=self.status, headers=self.headers)
        if not self.chunked:
            reply.content_length = sum(map(len, self.pieces))
        assert request.transport is not None
        for number, piece in enumerate(self.pieces):
            if number == self.breaks:
                request.transport.abort()
                raise ConnectionResetError
            if number == 0:
                await reply.prepare(request)
            if number == self.pause:
                await self.wait.wait()
            if self.steps is not None:
                await self.steps.acquire()
            await reply.write(piece)
        if not self.pieces:
            await reply.prepare(request)
        await reply.write_eof()
        return reply


@contextlib.asynccontextmanager
async def proxied(
    prefill: Sequence[Origin], decode: Sequence[Origin], **limits: int
) -> AsyncIterator[aiohttp.ClientSession]:
    """A client's session whose base is the proxy."""
    given = {"health_ms": 20, "prefill_tokens_min": 16, **limits}
    settings = Settings(prefill=tuple(o.url for o in prefill), decode=tuple(o.url for o in decode), **given)
    ended, said = asyncio.Event(), asyncio.Queue[str]()
    task = asyncio.create_task(serve(Proxy(settings), "127.0.0.1", 0, ended.wait(), said.put_nowait))
    try:
        async with asyncio.timeout(WAIT_MAX_S):
            url = await said.get()
        timeout = aiohttp.ClientTimeout(total=WAIT_MAX_S)
        async with aiohttp.ClientSession(url, auto_decompress=False, timeout=timeout) as session:
            yield session
    finally:
        ended.set()
        await task


async def sampled(session: aiohttp.ClientSession, name: str) -> float:
    """The sum of a metric's samples that start so."""
    async with session.get("/metrics") as answer:
        assert answer.status == 200
        lines = (await answer.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))
