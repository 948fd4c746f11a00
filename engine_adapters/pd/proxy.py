"""An OpenAI-compatible proxy that has prompts computed by one kind of server and answers by another.

python -m engine_adapters.pd.proxy --prefill http://a:8000,http://b:8000 --decode http://c:8000 --port 8080
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import fields
from typing import Final

import aiohttp
import click
from aiohttp import web
from multidict import CIMultiDict

from engine_adapters.pd.asking import Malformed, parse
from engine_adapters.pd.metrics import Metrics
from engine_adapters.pd.pool import Pool, Server
from engine_adapters.pd.relay import BEGUN, ID, Relay, break_off, passed, problem
from engine_adapters.pd.settings import LIMITS, Settings, urls_of
from kvstore.errors import Misconfigured
from kvstore.security import is_local

__all__ = ["Proxy", "main", "serve"]

COMPLETIONS: Final = "/v1/completions"
CHAT: Final = "/v1/chat/completions"
ID_MAX: Final = 256
LOOK_S_MAX: Final = 5.0  # an engine that computes answers slowly, even this
STOP_S_MAX: Final = 5.0
LINE_BYTES_MAX: Final = 64 << 10  # of a header, either way

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Proxy:
    """One event loop's. `app` serves; servers are looked at while it does."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.prefill = Pool("prefill", settings.prefill, settings.failures_max)
        self.decode = Pool("decode", settings.decode, settings.failures_max)
        self.metrics = Metrics((self.prefill, self.decode))
        self._running = 0
        self.app = web.Application(client_max_size=settings.body_bytes_max, middlewares=[self._around])
        self.app.cleanup_ctx.append(self._connected)
        self.app.add_routes([
            web.post(COMPLETIONS, self._answer),
            web.post(CHAT, self._answer),
            web.get("/v1/models", self._models),
            web.get("/health", self._health),
            web.get("/metrics", self._metrics),
        ])  # fmt: skip

    async def _connected(self, _: web.Application) -> AsyncIterator[None]:
        connect_s = self.settings.connect_ms / 1e3
        async with aiohttp.ClientSession(
            # A connection a request: one kept open may be closed by its server just as a request is sent, and that
            # could not be told from a server that died of it. `requests_max` bounds them.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            # What a client did not ask for, nobody asks for in its name.
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
        ) as self._session:
            self._relay = Relay(self.settings, self._session, self.prefill, self.decode, self.metrics)
            every = [(pool, server) for pool in (self.prefill, self.decode) for server in pool.servers]
            await asyncio.gather(*(self._look(pool, server) for pool, server in every))
            watching = [asyncio.create_task(self._watch(pool, server)) for pool, server in every]
            yield
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    # ---- the health of servers

    async def _watch(self, pool: Pool, server: Server) -> None:
        while True:
            await asyncio.sleep(self.settings.health_ms / 1e3)
            await self._look(pool, server)

    async def _look(self, pool: Pool, server: Server) -> None:
        since = server.looked
        well = gone = False
        try:
            async with asyncio.timeout(LOOK_S_MAX), self._session.get(f"{server.url}/health") as answer:
                well = answer.status == 200
        except aiohttp.ClientError:
            gone = True
        except TimeoutError:
            pass
        pool.looked(server, well=well, since=since, gone=gone)

    # ---- what clients ask

    @web.middleware
    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every request has an id and an answer that is counted."""
        request[ID] = request.headers.get("X-Request-Id", "")[:ID_MAX] or uuid.uuid4().hex
        try:
            reply = await handler(request)
        except web.HTTPException as refused:  # no such path, too long
            reply = problem(refused.status, refused.reason)
        except asyncio.CancelledError:
            self.metrics.broken.labels("client").inc()
            raise
        if not reply.prepared:
            reply.headers["X-Request-Id"] = request[ID]
        path = request.path if request.path in (COMPLETIONS, CHAT) else "other"
        self.metrics.requests.labels(path, reply.status).inc()
        return reply

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self._running >= self.settings.requests_max:
            return problem(503, f"{self._running} requests are being answered (requests_max)")
        self._running += 1
        try:
            async with asyncio.timeout(self.settings.answer_ms / 1e3):
                return await self._relayed(request)
        except TimeoutError:
            begun: web.StreamResponse | None = request.get(BEGUN)
            if begun is None:
                return problem(504, f"no answer in {self.settings.answer_ms} ms (answer_ms)")
            self.metrics.broken.labels("deadline").inc()
            break_off(request)
            return begun
        finally:
            self._running -= 1

    async def _relayed(self, request: web.Request) -> web.StreamResponse:
        try:
            async with asyncio.timeout(self.settings.body_ms / 1e3):
                raw = await request.read()
        except TimeoutError:
            return problem(408, f"no body in {self.settings.body_ms} ms (body_ms)")
        try:
            asked = parse(raw, chat=request.path == CHAT)
        except Malformed as wrong:
            return problem(400, str(wrong))
        return await self._relay.run(request, asked, self._onward(request))

    def _onward(self, request: web.Request) -> CIMultiDict[str]:
        headers = passed(request.headers)
        headers["X-Request-Id"] = request[ID]
        return headers

    async def _models(self, request: web.Request) -> web.StreamResponse:
        """Any decode server's: they all serve the same."""
        server = self.decode.take()
        if server is None:
            return problem(503, "no decode server can be reached")
        try:
            async with (
                asyncio.timeout(LOOK_S_MAX),
                self._session.get(server.url + request.path_qs, headers=self._onward(request)) as answer,
            ):
                return web.Response(status=answer.status, body=await answer.read(), headers=passed(answer.headers))
        except (aiohttp.ClientError, TimeoutError) as error:
            self.decode.failed(server, gone=isinstance(error, aiohttp.ClientError))
            return problem(502, f"the decode server did not answer: {type(error).__name__}")
        finally:
            self.decode.give_back(server)

    async def _health(self, _: web.Request) -> web.Response:
        """503 where nothing can be answered; a prefill server that is down makes answers late, no more."""
        down = {"prefill": self.prefill.down, "decode": self.decode.down}
        status = "ok" if not any(down.values()) else "degraded" if self.decode.up else "down"
        return web.json_response({"status": status, "down": down}, status=200 if self.decode.up else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self.metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4"})


async def serve(proxy: Proxy, host: str, port: int, ended: Awaitable[object], say: Callable[[str], None]) -> None:
    """Until `ended`; `say` gets the URL once it can be asked. A client that goes cancels what is done for it."""
    runner = web.AppRunner(
        proxy.app,
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=STOP_S_MAX,
        max_line_size=LINE_BYTES_MAX,
        max_field_size=LINE_BYTES_MAX,
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise Misconfigured(f"{host}:{port}: {error.strerror}") from None
        bound = runner.addresses[0]
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        say(f"http://{shown}:{bound[1]}")
        await ended
    finally:
        await runner.cleanup()


def _limits(command: Callable[..., None]) -> Callable[..., None]:
    for one in reversed(fields(Settings)):
        if one.name in LIMITS:
            flag = "--" + one.name.replace("_", "-")
            command = click.option(
                flag, one.name, type=int, default=one.default, show_default=True, help=one.metadata["text"]
            )(command)
    return command


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--prefill", default="", metavar="URL[,URL]", help="Servers that compute prompts; none: decode alone.")
@click.option("--decode", required=True, metavar="URL[,URL]", help="Servers that answer.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8080, show_default=True, help="0: one that is free.")
@click.option("--insecure", is_flag=True, help="Allow an address that others reach: it is plain HTTP.")
@click.option("--json", "as_json", is_flag=True, help="Say where it listens as one line of JSON.")
@_limits
def main(prefill: str, decode: str, host: str, port: int, insecure: bool, as_json: bool, **limits: int) -> None:
    """Prefill and decode apart, behind one OpenAI-compatible address. Stops with SIGTERM or SIGINT."""

    def say(url: str) -> None:
        click.echo(json.dumps({"url": url}) if as_json else f"listening on {url}")

    async def run(settings: Settings) -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        await serve(Proxy(settings), host, port, ended.wait(), say)

    try:
        if not insecure and not is_local(f"{host}:{port}"):
            raise Misconfigured(
                f"{host}: reachable from other machines without TLS; bind to loopback, with something that speaks TLS"
                " in front, or say --insecure"
            )
        settings = Settings(prefill=urls_of("prefill", prefill), decode=urls_of("decode", decode), **limits)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(run(settings))
    except Misconfigured as error:
        click.echo(f"proxy: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
