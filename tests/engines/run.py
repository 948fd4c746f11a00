"""Engines as tests use them: a process that is started once, asked many times, aborted, looked into and killed.

    with vllm("llama", tmp_path, kv_transfer_config={...}) as engine:
        first, again = engine.generate(Prompt(words(200))), engine.generate(Prompt(words(200)))

Every wait has a deadline; who passes it is killed, and the error shows the end of its log.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from tests.engines.models import model
from tests.engines.venvs import ENGINES, RECIPES, ROOT
from tests.engines.wire import Answer, Prompt

__all__ = ["Engine", "EngineFailed", "environment", "log_end", "sglang", "stop_group", "vllm"]

START_MAX_S = 240.0  # on two busy cores; alone it takes a tenth
ANSWER_MAX_S = 120.0
STOP_MAX_S = 30.0
LOG_SHOWN = 6000
STARTS: list[tuple[Path, float]] = []  # of this process: the log, and the seconds until the engine was ready

_ALWAYS = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # two engines, or two ranks, on two cores
    "PYTHONHASHSEED": "0",
    "PYTHONFAULTHANDLER": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_VLLM = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: starts in a third of the time
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_CACHE_ROOT": str(ENGINES / "cache" / "vllm"),
    "VLLM_CONFIG_ROOT": str(ENGINES / "cache" / "vllm"),
}
_SGLANG = {"SGLANG_USE_CPU_ENGINE": "1"}
SHIM = Path(__file__).with_name("sglang_shim")


class EngineFailed(Exception):
    """The engine's process ended, said that it failed, or was late."""


def environment(name: str, more: Mapping[str, str] = {}) -> dict[str, str]:
    """What a process of the engine `name` is started with: this checkout is what it imports as the store."""
    recipe = RECIPES[name]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "KVSTORE_", "VLLM_"))}
    path = [ROOT, *((SHIM, recipe.source) if recipe.unpacked else ())]
    own = _SGLANG if recipe.unpacked else _VLLM
    # The venv's programs too: engines look for ninja and the like on the path.
    searched = f"{recipe.home / 'bin'}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {**kept, **_ALWAYS, **own, "PATH": searched, "PYTHONPATH": os.pathsep.join(map(str, path)), **more}


def log_end(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_SHOWN))
        return file.read().decode(errors="replace")


def stop_group(process: subprocess.Popen[Any], number: int = signal.SIGKILL) -> None:
    """A signal to a process that leads its own group, and to all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


class Engine:
    """One engine process. `took_s`: its start. Its `log` holds all that it printed."""

    def __init__(
        self, name: str, child: str, arguments: dict[str, Any], log: Path, env: Mapping[str, str] = {}
    ) -> None:
        self.name, self.log = name, log
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._answers: dict[str, Answer] = {}
        self._firsts: set[str] = set()
        self._called: dict[str, dict[str, Any]] = {}
        self._numbers = itertools.count()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [RECIPES[name].python, "-m", child],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env=environment(name, env),
                text=True,
                bufsize=1,
                start_new_session=True,
            )
        threading.Thread(target=self._listen, daemon=True).start()
        self._started_s: float | None = None
        try:
            self._say(do="start", arguments=arguments)
            since = time.monotonic()
            self._until(lambda: self._started_s is not None, START_MAX_S, "start")
            STARTS.append((log, time.monotonic() - since))
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if failure[0] is None:
            self.stop()
        else:
            self.kill()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def took_s(self) -> float:
        assert self._started_s is not None
        return self._started_s

    def submit(self, prompts: Iterable[Prompt]) -> list[str]:
        """Their ids, in order; nobody waits."""
        named = [replace(prompt, id=prompt.id or f"p{next(self._numbers)}") for prompt in prompts]
        self._say(do="submit", prompts=[asdict(prompt) for prompt in named])
        return [prompt.id for prompt in named]

    def answers(self, ids: Sequence[str], max_s: float = ANSWER_MAX_S) -> list[Answer]:
        """Once each; who is aborted answers too."""
        self._until(lambda: all(name in self._answers for name in ids), max_s, "answer")
        return [self._answers.pop(name) for name in ids]

    def generate(self, prompt: Prompt, max_s: float = ANSWER_MAX_S) -> Answer:
        return self.generate_all([prompt], max_s)[0]

    def generate_all(self, prompts: Iterable[Prompt], max_s: float = ANSWER_MAX_S) -> list[Answer]:
        """All submitted at once: the engine batches them."""
        return self.answers(self.submit(prompts), max_s)

    def first_token(self, name: str, max_s: float = ANSWER_MAX_S) -> None:
        """Waits until it is there."""
        self._until(lambda: name in self._firsts or name in self._answers, max_s, "make a first token")

    def abort(self, ids: Sequence[str]) -> None:
        self._say(do="abort", ids=list(ids))

    def call(self, what: str, max_s: float = ANSWER_MAX_S, **given: Any) -> Any:
        """`module:function(engine, **given)` in the engine's process, between two steps. `engine` is a vLLM LLMEngine
        or an SGLang Engine; what comes back must be JSON."""
        number = f"c{next(self._numbers)}"
        self._say(do="call", id=number, what=what, given=given)
        self._until(lambda: number in self._called, max_s, f"call {what}")
        said = self._called.pop(number)
        if "error" in said:
            raise EngineFailed(f"{what}:\n{said['error']}")
        return said["result"]

    def stop(self) -> None:
        """In order; then by force. Once more is nothing."""
        with contextlib.suppress(BrokenPipeError, ValueError):  # it is gone, or was killed before
            self._say(do="stop")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_MAX_S)
        self.kill()

    def kill(self) -> None:
        """At once, with all of its ranks."""
        stop_group(self.process)
        self.process.wait(STOP_MAX_S)
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def _say(self, **what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):  # closed by kill
            for line in self.process.stdout:
                self._events.put(json.loads(line))
        self._events.put({"event": "ended"})

    def _until(self, done: Any, max_s: float, what: str) -> None:
        end = time.monotonic() + max_s
        while not done():
            try:
                self._hear(self._events.get(timeout=max(0.0, end - time.monotonic())))
            except queue.Empty:
                self.kill()
                raise EngineFailed(f"{self.name}: no {what} in {max_s:.0f} s:\n{log_end(self.log)}") from None

    def _hear(self, said: dict[str, Any]) -> None:
        event = said.pop("event")
        if event == "started":
            self._started_s = said["took_s"]
        elif event == "first":
            self._firsts.add(said["id"])
        elif event == "answer":
            self._answers[said["id"]] = Answer(**{**said, "tokens": tuple(said["tokens"])})
        elif event == "called":
            self._called[said.pop("id")] = said
        elif event == "ended":
            self._events.put({"event": "ended"})  # for who asks after this
            raise EngineFailed(f"{self.name}: ended, code {self.process.poll()}:\n{log_end(self.log)}")


def vllm(
    model_name: str,
    folder: Path,
    *,
    venv: str = "vllm",
    env: Mapping[str, str] = {},
    log: str = "vllm.log",
    **arguments: Any,
) -> Engine:
    """A vLLM engine (EngineArgs are the keywords); logs into `folder`. Not compiled, 64 MiB of KV cache, float32.
    `keep_prefix_cache=True` keeps it also for latent attention on a CPU without AMX (child_vllm.keep_prefix_cache)."""
    usual = {
        "model": str(model(model_name)),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 4096,
        "block_size": 32,
        "kv_cache_memory_bytes": 64 << 20,
        "prefix_caching_hash_algo": "sha256_cbor",
    }
    return Engine(venv, "tests.engines.child_vllm", {**usual, **arguments}, folder / log, env)


def sglang(
    model_name: str, folder: Path, *, env: Mapping[str, str] = {}, log: str = "sglang.log", **arguments: Any
) -> Engine:
    """An SGLang engine (ServerArgs are the keywords); logs into `folder`."""
    usual = {
        "model_path": str(model(model_name)),
        "dtype": "float32",
        "device": "cpu",
        "attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        "disable_cuda_graph": True,
        "disable_overlap_schedule": True,
        "max_total_tokens": 8192,
        "context_length": 4096,
        "page_size": 32,
        "log_level": "info",
    }
    return Engine("sglang", "tests.engines.child_sglang", {**usual, **arguments}, folder / log, env)
