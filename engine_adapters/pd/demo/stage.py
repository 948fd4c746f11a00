"""The demo's processes: a node, two vLLM servers, the proxy; all on loopback, all ended with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

from kvstore.demo.child import Child

START_MAX_S: Final = 300.0
STOP_MAX_S: Final = 20.0
SHOWN: Final = 3000  # of a log
MODEL: Final = "demo"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Engine:
    """A vLLM server. Its whole group is ended with it: engines have processes of their own."""

    def __init__(self, name: str, command: list[str], port: int, log: Path, env: dict[str, str]) -> None:
        self.url, self._name, self._log = f"http://127.0.0.1:{port}", name, log
        self._command, self._env = command, env
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self._env, start_new_session=True
            )

    def ready(self) -> None:
        """Waits until it is."""
        until = time.monotonic() + START_MAX_S
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the {self._name} server did not start:\n{self._log.read_text()[-SHOWN:]}")
            time.sleep(0.2)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_MAX_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Stage:
    """All that was started is stopped on leaving, the last first."""

    def __init__(self, scratch: Path, python: Path, model: Path) -> None:
        self._scratch, self._python, self._model = scratch, python, model
        self._stack = ExitStack()
        self._socket = scratch / "node.sock"

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def node(self, memory: str) -> None:
        flags = ["--data-dir", str(self._scratch / "data"), "--socket", str(self._socket), "--memory", memory]
        flags += ["--address", "none", "--grpc", "none", "--metrics", "none", "--json"]
        for setting in ("file.enabled=false", "object.url=none", "memory.keep=false"):
            flags += ["--set", setting]
        self._child("node", ["kvstore", "node", *flags]).answer()

    def engine(self, name: str, *, length: int, cache_bytes: int) -> Engine:
        """Begins to start. Each is kv_both: prefill finds what decode wrote, so a next turn is short for it, too."""
        port = free_port()
        store = {
            "kv_connector": "KVStoreConnector",
            "kv_connector_module_path": "engine_adapters.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            # Two engines, a node and clients share what may be two busy cores: there a second can be too short.
            "kv_connector_extra_config": {"address": f"unix:{self._socket}", "lookup_ms": 5_000},
        }
        given = {
            "--host": "127.0.0.1", "--port": str(port), "--served-model-name": MODEL, "--dtype": "float32",
            "--max-model-len": str(length), "--kv-cache-memory-bytes": str(cache_bytes),
            "--prefix-caching-hash-algo": "sha256_cbor", "--kv-transfer-config": json.dumps(store),
        }  # fmt: skip
        flags = [
            "--enforce-eager",
            "--enable-prompt-tokens-details",
            *(part for pair in given.items() for part in pair),
        ]
        # Not `vllm serve`: the wheel for CPUs has the module, and its command in another place.
        command = [str(self._python), "-m", "vllm.entrypoints.cli.main", "serve", str(self._model), *flags]
        # The sockets between an engine's processes lie where temporary files do, and one that is ended leaves them.
        env = environment(self._python) | {"TMPDIR": str(self._scratch)}
        engine = Engine(name, command, port, self._scratch / f"{name}.log", env)
        self._stack.callback(engine.stop)
        return engine

    def proxy(self, prefill: Engine, decode: Engine) -> str:
        """Its URL."""
        flags = ["--prefill", prefill.url, "--decode", decode.url, "--port", "0", "--json"]
        url: str = self._child("proxy", ["engine_adapters.pd.proxy", *flags]).answer()["url"]
        return url

    def _child(self, name: str, command: list[str]) -> Child:
        return Child(name, ["-m", *command], self._scratch / f"{name}.log", self._stack)


def environment(python: Path) -> dict[str, str]:
    """This tree is the store that engines import; nothing is fetched; threads do not spin on the other's core."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VLLM_"))}
    return {
        **kept,
        "PATH": f"{python.parent}{os.pathsep}{kept.get('PATH', os.defpath)}",
        "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2)),
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
