"""`vllm serve` processes as tests use them: a port that is free, waited for until healthy, asked over HTTP, killed.

with serve("llama", tmp_path, "--kv-transfer-config", json.dumps({...})) as server:
    answer = server.post("/v1/completions", {"model": server.model, "prompt": words(200), "max_tokens": 8})
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from tests.engines.models import model
from tests.engines.run import START_MAX_S, STOP_MAX_S, EngineFailed, environment, log_end, stop_group
from tests.engines.venvs import RECIPES, ROOT
from tests.ports import free_ports

__all__ = ["Server", "serve"]

REQUEST_MAX_S = 120.0
STARTS: list[tuple[Path, float]] = []  # of this process: the log, and the seconds until the server was healthy


class Server:
    """One server process; `took_s` until it was healthy. It begins to start at once, so that several
    start side by side; entering waits."""

    def __init__(self, command: list[str], port: int, model_name: str, log: Path, env: dict[str, str]) -> None:
        self.port, self.model, self.log = port, model_name, log
        self.url = f"http://127.0.0.1:{port}"
        self.took_s = 0.0
        self._since = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT, env=env, start_new_session=True
            )

    def __enter__(self) -> Self:
        try:
            while not self.healthy():
                if self.process.poll() is not None:
                    raise EngineFailed(f"vllm serve ended, code {self.process.returncode}:\n{log_end(self.log)}")
                if time.monotonic() - self._since > START_MAX_S:
                    raise EngineFailed(f"vllm serve: not healthy in {START_MAX_S:.0f} s:\n{log_end(self.log)}")
                time.sleep(0.2)
        except BaseException:
            self.kill()
            raise
        self.took_s = time.monotonic() - self._since
        STARTS.append((self.log, self.took_s))
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _ask(self, path: str, body: dict[str, Any] | None, max_s: float) -> Any:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            return urllib.request.urlopen(asked, timeout=max_s)
        except urllib.error.HTTPError as error:
            raise EngineFailed(f"{path}: {error.code}: {error.read().decode(errors='replace')[:2000]}") from None

    def get(self, path: str, max_s: float = REQUEST_MAX_S) -> str:
        with self._ask(path, None, max_s) as answer:
            return str(answer.read().decode())

    def post(self, path: str, body: dict[str, Any], max_s: float = REQUEST_MAX_S) -> dict[str, Any]:
        with self._ask(path, body, max_s) as answer:
            return dict(json.load(answer))

    def stream(self, path: str, body: dict[str, Any], max_s: float = REQUEST_MAX_S) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer, as they arrive."""
        with self._ask(path, {**body, "stream": True}, max_s) as answer:
            for line in answer:
                text = line.decode().strip()
                if text.startswith("data: ") and text != "data: [DONE]":
                    yield json.loads(text.removeprefix("data: "))

    def metric(self, name: str) -> float:
        """The sum of a metric's samples, whatever their labels."""
        lines = (line for line in self.get("/metrics").splitlines() if line.partition("{")[0].partition(" ")[0] == name)
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_MAX_S)
        self.kill()

    def kill(self) -> None:
        stop_group(self.process)
        self.process.wait(STOP_MAX_S)


def serve(
    model_name: str,
    folder: Path,
    *arguments: str,
    venv: str = "vllm",
    env: Mapping[str, str] = {},
    log: str = "serve.log",
) -> Server:
    """A vLLM server with `arguments` of its command line, with the settings of run.vllm; enter it to wait for it."""
    (port,) = free_ports(1)
    usual = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--served-model-name": model_name,
        "--dtype": "float32",
        "--max-model-len": "4096",
        "--block-size": "32",
        "--kv-cache-memory-bytes": str(64 << 20),
        "--prefix-caching-hash-algo": "sha256_cbor",
    }
    spread = [part for pair in usual.items() for part in pair]
    given = ["--enforce-eager", "--enable-prompt-tokens-details", *spread, *arguments]
    command = [str(RECIPES[venv].python), "-m", "vllm.entrypoints.cli.main", "serve", str(model(model_name)), *given]
    return Server(command, port, model_name, folder / log, environment(venv, env))
