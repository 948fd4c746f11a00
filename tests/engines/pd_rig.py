"""A prefill and a decode server of vLLM, the store between them, the proxy in front: real ones, over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.engines.run import environment
from tests.engines.serve import Server, serve
from tests.engines.store_rig import config
from tests.engines.venvs import ROOT
from tests.integration.nodes import NodeProcess

__all__ = ["Pair", "ProxyProcess", "cached", "said", "text"]


def text(answer: dict[str, Any]) -> str:
    """Of an answer or of one event of a stream: every word is a token."""
    choice = (answer["choices"] or [{}])[0]
    spoken = choice.get("message") or choice.get("delta") or {}
    return str(choice.get("text") or spoken.get("content") or "")


def cached(answer: dict[str, Any]) -> int:
    return int((answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def said(server: Server, path: str, body: dict[str, Any]) -> tuple[str, int]:
    """What it answers, and how many tokens of the prompt it had; streamed where the body says so."""
    if not body.get("stream"):
        answer = server.post(path, body)
        return text(answer), cached(answer)
    events = list(server.stream(path, {**body, "stream_options": {"include_usage": True}}))
    assert sum(bool(text(event)) for event in events) > 1, "one by one"
    return "".join(map(text, events)), cached(events[-1])


class ProxyProcess(Server):
    """Asked as the servers are."""

    def __init__(self, prefill: Server, decode: Server, log: Path) -> None:
        command = [sys.executable, "-m", "engine_adapters.pd.proxy", "--prefill", prefill.url, "--decode", decode.url]
        command += ["--port", "0", "--json", "--prefill-tokens-min", "32", "--health-ms", "200"]
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )
        assert self.process.stdout is not None
        self.url, self.log, self.model = json.loads(self.process.stdout.readline())["url"], log, decode.model

    def __enter__(self) -> Self:
        return self

    def stop(self) -> None:
        super().stop()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Pair:
    """`heal` starts again, at the same place, what a test has killed."""

    def __init__(self, model: str, folder: Path) -> None:
        self._stack = ExitStack()
        self.node = NodeProcess(folder, memory="256MiB")
        store = json.dumps(config(self.node))
        self._flags = ("--kv-transfer-config", store)
        self._model, self._folder = model, folder
        self.prefill: Server
        self.decode: Server
        self.proxy: ProxyProcess

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self.node)
            self.prefill, self.decode = (
                serve(self._model, self._folder, *self._flags, log=f"{name}.log") for name in ("prefill", "decode")
            )
            self._stack.callback(self._stop)
            for server in (self.prefill, self.decode):  # they start side by side
                server.__enter__()
            self.proxy = ProxyProcess(self.prefill, self.decode, self._folder / "proxy.log")
            self._stack.callback(self.proxy.stop)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    def _stop(self) -> None:
        """Those of now: `heal` may have put others in their place."""
        for server in (self.prefill, self.decode):
            server.stop()

    def heal(self) -> None:
        if self.node.process is None or self.node.process.poll() is not None:
            self.node.start()
        for name in ("prefill", "decode"):
            old: Server = getattr(self, name)
            if old.process.poll() is not None:
                again = Server(list(old.process.args), old.port, old.model, old.log, environment("vllm"))  # type: ignore[arg-type]
                setattr(self, name, again)
                again.__enter__()
