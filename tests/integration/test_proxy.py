"""The proxy of prefill and decode servers, over real HTTP: what passes, and what becomes of it when a server does not.

Whether engines understand each other through it is asked in tests/engines/test_vllm_pd.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
from typing import Any

import aiohttp
import pytest

from tests.integration.proxy_rig import PROMPT, TOLD, WAIT_MAX_S, Origin, proxied, sampled, until

PREFILLED = json.dumps({"choices": [{"text": "x"}], "kv_transfer_params": TOLD}).encode()
ANSWER = b'{"choices": [{"text": "w1 w2"}]}'
EVENTS = [f'data: {{"n": {number}}}\n\n'.encode() for number in range(5)] + [b"data: [DONE]\n\n"]
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


async def test_prefill_then_decode() -> None:
    async with Origin(PREFILLED) as p, Origin(ANSWER) as d, proxied([p], [d]) as client:
        async with client.post(COMPLETIONS, json={**PROMPT, "max_tokens": 7}) as answer:
            assert (answer.status, await answer.read()) == (200, ANSWER)
            assert answer.headers["Server-Timing"].startswith("prefill;dur=")
        (to_p,), (to_d,) = p.bodies, d.bodies
        assert to_p == {**PROMPT, "stream": False, "max_tokens": 1, "kv_transfer_params": {"kvstore": {}}}
        assert to_d == {**PROMPT, "max_tokens": 7, "kv_transfer_params": TOLD}
        assert await sampled(client, 'kvstore_proxy_prefills_total{outcome="done"}') == 1
        assert await sampled(client, f'kvstore_proxy_requests_total{{path="{COMPLETIONS}",status="200"}}') == 1
        assert await sampled(client, "kvstore_proxy_server_outstanding") == 0


async def test_a_chat_goes_the_same_way() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "w " * 200}], "max_completion_tokens": 5}
    async with Origin(PREFILLED) as p, Origin(ANSWER) as d, proxied([p], [d]) as client:
        async with client.post(CHAT, json=body) as answer:
            assert await answer.read() == ANSWER
        assert [path for path, _, _ in p.asked + d.asked] == [CHAT, CHAT]
        assert p.bodies[0]["max_completion_tokens"] == 1
        assert d.bodies[0] == {**body, "kv_transfer_params": TOLD}


async def test_a_stream_arrives_as_it_is_made_byte_by_byte() -> None:
    async with Origin(PREFILLED) as p, Origin(*EVENTS) as d, proxied([p], [d]) as client:
        d.chunked, d.steps = True, asyncio.Semaphore(1)  # the head comes with the first piece
        d.headers["Content-Type"] = "text/event-stream; charset=utf-8"
        async with client.post(COMPLETIONS, json={**PROMPT, "stream": True}) as answer:
            for event in EVENTS:
                assert await answer.content.readexactly(len(event)) == event, "while the server has not made the next"
                d.steps.release()
            assert await answer.read() == b""
            assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert (p.bodies[0]["stream"], d.bodies[0]["stream"]) == (False, True)


async def test_a_packed_answer_stays_packed_and_none_is_packed_unasked() -> None:
    packed = gzip.compress(ANSWER)
    async with Origin(PREFILLED) as p, Origin(packed) as d, proxied([p], [d]) as client:
        d.headers["Content-Encoding"] = "gzip"
        async with client.post(COMPLETIONS, json=PROMPT, headers={"Accept-Encoding": "gzip"}) as answer:
            assert (answer.headers["Content-Encoding"], await answer.read()) == ("gzip", packed)
        assert "Accept-Encoding" not in p.asked[0][2], "the proxy reads it"
        assert d.asked[0][2]["Accept-Encoding"] == "gzip"
        async with client.post(COMPLETIONS, json=PROMPT, skip_auto_headers=("Accept-Encoding",)):
            assert "Accept-Encoding" not in d.asked[1][2]


async def test_a_packed_request_is_unpacked_for_both() -> None:
    async with Origin(PREFILLED) as p, Origin(ANSWER) as d, proxied([p], [d]) as client:
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        async with client.post(COMPLETIONS, data=gzip.compress(json.dumps(PROMPT).encode()), headers=headers) as answer:
            assert answer.status == 200
        for origin in (p, d):
            assert origin.bodies[0]["prompt"] == PROMPT["prompt"]
            assert "Content-Encoding" not in origin.asked[0][2]


async def test_who_asks_is_told_to_both_servers() -> None:
    headers = {"Authorization": "Bearer k", "X-Request-Id": "r-1", "Connection": "X-Hop", "X-Hop": "1", "X-Far": "2"}
    async with Origin(PREFILLED) as p, Origin(ANSWER) as d, proxied([p], [d]) as client:
        async with client.post(COMPLETIONS + "?a=b", json=PROMPT, headers=headers) as answer:
            assert answer.headers["X-Request-Id"] == "r-1"
        for origin in (p, d):
            ((path, _, got),) = origin.asked
            assert path == COMPLETIONS + "?a=b"
            assert (got["Authorization"], got["X-Request-Id"], got["X-Far"]) == ("Bearer k", "r-1", "2")
            assert ("X-Hop" in got, got["Host"]) == (False, f"127.0.0.1:{origin.port}")
        async with client.post(COMPLETIONS, json=PROMPT) as answer:
            made = answer.headers["X-Request-Id"]
        assert made
        assert p.asked[1][2]["X-Request-Id"] == d.asked[1][2]["X-Request-Id"] == made


async def test_a_short_prompt_goes_to_decode_alone_as_it_came() -> None:
    async with Origin(PREFILLED) as p, Origin(ANSWER) as d, proxied([p], [d]) as client:
        async with client.post(COMPLETIONS, json={"prompt": "w"}) as answer:
            assert await answer.read() == ANSWER
        assert (p.asked, d.bodies) == ([], [{"prompt": "w"}])
        assert await sampled(client, 'kvstore_proxy_prefills_total{outcome="skipped"}') == 1


async def asks(client: aiohttp.ClientSession, **more: Any) -> int:
    async with client.post(COMPLETIONS, json={**PROMPT, **more}) as answer:
        await answer.read()
        return answer.status


@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        ("never there", "nobody"),
        ("stopped", "failed"),
        ("hangs up", "failed"),
        ("500", "failed"),
        ("400", "failed"),
        ("nonsense", "untold"),
        ("endless", "failed"),
    ],
)
async def test_no_prefill_is_no_error(how: str, outcome: str) -> None:
    async with Origin(PREFILLED) as p, Origin(ANSWER) as d:
        if how == "never there":
            await p.stop()
        # Looked at once: that it has stopped a request is the first to find out.
        async with proxied([p], [d], health_ms=60_000) as client:
            if how == "stopped":
                await p.stop()
            elif how == "hangs up":
                p.breaks = 0
            elif how == "nonsense":
                p.pieces = [b"\xff{"]
            elif how == "endless":
                p.pieces = [b" " * (1 << 20)] * 5
            elif how.isdigit():
                p.status = int(how)
            assert await asks(client) == 200
            assert await sampled(client, f'kvstore_proxy_prefills_total{{outcome="{outcome}"}}') == 1
            assert await asks(client) == 200
            assert all("kv_transfer_params" not in body for body in d.bodies)
            if how in ("never there", "stopped"):
                async with client.get("/health") as health:
                    told = {"status": "degraded", "down": {"prefill": [p.url], "decode": []}}
                    assert (health.status, await health.json()) == (200, told)


async def test_a_late_prefill_is_aborted_and_decode_goes_on_alone() -> None:
    async with Origin(PREFILLED) as p, Origin(ANSWER) as d, proxied([p], [d], prefill_ms=400) as client:
        p.wait.clear()
        assert await asks(client) == 200
        await until(lambda: p.left == 1)
        assert "kv_transfer_params" not in d.bodies[0]
        assert await sampled(client, 'kvstore_proxy_prefills_total{outcome="late"}') == 1


@pytest.mark.parametrize("where", ["prefill", "decode", "stream"])
async def test_a_client_that_goes_takes_its_work_along(where: str) -> None:
    async with Origin(PREFILLED) as p, Origin(*EVENTS) as d, proxied([p], [d]) as client:
        at = p if where == "prefill" else d
        at.wait.clear()
        if where == "stream":
            d.chunked, d.pause = True, 2
        asking = asyncio.create_task(client.post(COMPLETIONS, json=PROMPT))
        await until(lambda: len(at.asked) == 1)
        if where == "stream":
            answer = await asking
            assert await answer.content.readexactly(len(EVENTS[0] + EVENTS[1]))
            answer.close()
        asking.cancel()
        await until(lambda: at.left == 1)
        assert len(d.asked) == (0 if where == "prefill" else 1)
        assert await sampled(client, "kvstore_proxy_server_outstanding") == 0
        assert await sampled(client, 'kvstore_proxy_broken_total{by="client"}') == 1


@pytest.mark.parametrize("status", [400, 404, 429, 500])
async def test_what_decode_refuses_is_passed_on(status: int) -> None:
    said = b'{"error": {"message": "no"}}'
    more = {"Retry-After": "9"}
    async with Origin(PREFILLED) as p, Origin(said, status=status, **more) as d, proxied([p], [d]) as client:
        async with client.post(COMPLETIONS, json=PROMPT) as answer:
            assert (answer.status, await answer.read(), answer.headers["Retry-After"]) == (status, said, "9")
        assert len(d.asked) == 1


async def test_a_decode_server_that_is_gone_is_left_out_until_it_is_back() -> None:
    async with Origin(PREFILLED) as p, Origin(ANSWER) as d, proxied([p], [d]) as client:
        assert await asks(client) == 200
        await d.stop()
        async with client.post(COMPLETIONS, json=PROMPT) as answer:
            told = await answer.json(content_type=None)
            assert (answer.status, told["error"]["code"], answer.headers["Retry-After"]) == (503, 503, "1")
        async with client.get("/health") as health:
            down = {"status": "down", "down": {"prefill": [], "decode": [d.url]}}
            assert (health.status, await health.json()) == (503, down)
        assert await sampled(client, 'kvstore_proxy_server_up{role="decode"') == 0
        await d.start()
        async with asyncio.timeout(WAIT_MAX_S):
            while await asks(client) != 200:
                await asyncio.sleep(0.01)
        async with client.get("/health") as health:
            assert (health.status, (await health.json())["status"]) == (200, "ok")


async def test_another_decode_server_answers_where_one_cannot_be_reached() -> None:
    servers = Origin(ANSWER), Origin(ANSWER)
    async with (
        Origin(PREFILLED) as p,
        servers[0] as d,
        servers[1] as e,
        proxied([p], [d, e], health_ms=60_000) as client,
    ):
        await d.stop()
        assert [await asks(client) for _ in range(4)] == [200] * 4
        assert (len(e.asked), len(p.asked)) == (4, 4), "a prompt is prefilled once"


async def test_a_request_that_kills_its_server_is_not_tried_on_the_next() -> None:
    async with Origin(PREFILLED) as p, Origin(ANSWER) as one, Origin(ANSWER) as other:
        one.breaks = other.breaks = 0
        async with proxied([p], [one, other], health_ms=60_000) as client:
            assert await asks(client) == 502
            assert len(one.asked) + len(other.asked) == 1


async def test_a_stream_that_breaks_off_does_not_look_whole() -> None:
    async with Origin(PREFILLED) as p, Origin(*EVENTS) as d, proxied([p], [d]) as client:
        d.chunked, d.breaks = True, 3
        async with client.post(COMPLETIONS, json=PROMPT) as answer:
            assert await answer.content.readexactly(len(EVENTS[0])) == EVENTS[0]
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        assert await sampled(client, 'kvstore_proxy_broken_total{by="server"}') == 1


@pytest.mark.parametrize("begun", [False, True])
async def test_an_answer_has_a_deadline(begun: bool) -> None:
    async with Origin(PREFILLED) as p, Origin(*EVENTS) as d, proxied([p], [d], answer_ms=1_000) as client:
        d.wait.clear()
        if begun:
            d.chunked, d.pause = True, 1
            async with client.post(COMPLETIONS, json=PROMPT) as answer:
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.read()
            assert await sampled(client, 'kvstore_proxy_broken_total{by="deadline"}') == 1
        else:
            assert await asks(client) == 504
        await until(lambda: d.left == 1)


async def test_requests_at_once_have_a_limit() -> None:
    async with Origin(PREFILLED) as p, Origin(ANSWER) as d, proxied([p], [d], requests_max=2) as client:
        d.wait.clear()
        two = [asyncio.create_task(asks(client)) for _ in range(2)]
        await until(lambda: len(d.asked) == 2)
        async with client.post(COMPLETIONS, json=PROMPT) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert "requests_max" in await answer.text()
        async with client.get("/health") as health:
            assert health.status == 200
        d.wait.set()
        assert await asyncio.gather(*two) == [200, 200]
        assert await asks(client) == 200


async def test_bodies_have_a_length_and_a_deadline() -> None:
    async with Origin(PREFILLED) as p, Origin(ANSWER) as d:
        async with proxied([p], [d], body_bytes_max=4096, body_ms=1_000) as client:
            assert await asks(client) == 200
            async with client.post(COMPLETIONS, data=b" " * 5000) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (413, 413)

            async def slowly() -> Any:
                yield b'{"prompt"'
                await asyncio.sleep(WAIT_MAX_S)

            async with client.post(COMPLETIONS, data=slowly()) as answer:
                assert answer.status == 408
        assert len(d.asked) == 1


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"model": "m"}', b"[" * 9999])
async def test_what_is_malformed_reaches_no_server(raw: bytes) -> None:
    async with Origin(PREFILLED) as p, Origin(ANSWER) as d, proxied([p], [d]) as client:
        for path in (COMPLETIONS, CHAT):
            async with client.post(path, data=raw) as answer:
                told = await answer.json()
                assert (answer.status, told["error"]["type"]) == (400, "invalid_request_error")
                assert answer.headers["X-Request-Id"]
        assert p.asked + d.asked == []


async def test_requests_are_spread_over_servers() -> None:
    four = p, q, d, e = Origin(PREFILLED), Origin(PREFILLED), Origin(ANSWER), Origin(ANSWER)
    async with p, q, d, e, proxied([p, q], [d, e]) as client:
        d.wait.clear()
        e.wait.clear()
        asking = [asyncio.create_task(asks(client)) for _ in range(4)]
        await until(lambda: len(d.asked) + len(e.asked) == 4)
        assert [len(origin.asked) for origin in four] == [2, 2, 2, 2]
        d.wait.set()
        e.wait.set()
        assert await asyncio.gather(*asking) == [200] * 4


async def test_a_server_that_says_it_is_unwell_gets_nothing() -> None:
    async with Origin(ANSWER) as d, Origin(ANSWER) as e, proxied([], [d, e], failures_max=1) as client:
        d.well = False
        async with asyncio.timeout(WAIT_MAX_S):
            while await sampled(client, "kvstore_proxy_server_up") != 1:
                await asyncio.sleep(0.01)
        assert [await asks(client) for _ in range(3)] == [200] * 3
        assert (len(d.asked), len(e.asked)) == (0, 3)


async def test_models_are_the_decode_servers() -> None:
    async with Origin() as d, proxied([], [d]) as client:
        async with client.get("/v1/models", headers={"Authorization": "Bearer k"}) as answer:
            assert (await answer.json())["data"] == [{"id": "m"}]
        assert d.asked[0][2]["Authorization"] == "Bearer k"
        async with client.get("/v1/nothing") as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (404, 404)


def run(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "engine_adapters.pd.proxy", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--host", "0.0.0.0"), "0.0.0.0: reachable from other machines"),
        (("--requests-max", "0"), "requests_max = 0: must be"),
        (("--prefill", "nowhere"), "prefill = nowhere: must be"),
        (("--host", "192.0.2.1", "--insecure"), "192.0.2.1:0"),
    ],
)
def test_the_command_refuses_what_cannot_be(arguments: tuple[str, ...], why: str) -> None:
    process = run("--decode", "http://127.0.0.1:9", "--port", "0", *arguments)
    try:
        out, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out) == (2, "")
    assert why in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_serves_until_it_is_told_to_stop(number: int) -> None:
    async with Origin(ANSWER) as d:
        process = run("--decode", d.url, "--port", "0", "--json")
        try:
            assert process.stdout is not None
            line = await asyncio.to_thread(process.stdout.readline)
            url = json.loads(line)["url"]
            async with aiohttp.ClientSession(url) as client:
                assert await asks(client) == 200
            os.kill(process.pid, number)
            _, errors = await asyncio.to_thread(process.communicate, None, 30)
            assert (process.returncode, errors) == (0, "")
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
