"""Each store, started with what it needs beside the engine, and what its user writes in --kv-transfer-config.

All keep blocks in memory of this host, 1 GiB of it; vLLM's tiering in files, too.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.engines.installed import LMCACHE, MOONCAKE, Packages
from tests.engines.run import environment
from tests.engines.venvs import RECIPES, ROOT
from tests.integration.nodes import NodeProcess

__all__ = ["NONE", "OURS", "PEERS", "Given", "Store"]

GIB = 1 << 30
START_S = 60.0
MASTER_PORT, CLIENT_PORT, METRICS_PORT, LMCACHE_PORT = 50_151, 50_152, 50_153, 50_155


@dataclass(frozen=True, slots=True)
class Given:
    """What an engine is started with, for one store."""

    transfer: dict[str, Any] | None
    env: Mapping[str, str] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        return {"env": self.env} | ({"kv_transfer_config": self.transfer} if self.transfer else {})


@dataclass(frozen=True, slots=True)
class Store:
    """`label`: in the rows. `files`: it also keeps blocks where `forget(connector=True)` does not reach, and finds them
    there. `alone`: its programs listen on all interfaces, so that it wants a network of its own.
    """

    name: str
    label: str
    start: Callable[[Path], AbstractContextManager[Given]]
    needs: Packages | None = None
    files: str = ""
    alone: bool = False


def _transfer(connector: str, module: str | None = None, **extra: Any) -> dict[str, Any]:
    named = {"kv_connector": connector, "kv_role": "kv_both", "kv_connector_extra_config": extra}
    return {**named, "kv_connector_module_path": module} if module else named


def _path(packages: Packages) -> dict[str, str]:
    return {"PYTHONPATH": f"{ROOT}:{packages.folder}"}


@contextmanager
def _program(command: Sequence[str | Path], log: Path, port: int, env: Mapping[str, str] = {}) -> Iterator[None]:
    """Until it listens, and to its end, which is this process's too."""
    prefix = ["setpriv", "--pdeathsig", "KILL"]
    with log.open("wb") as said, subprocess.Popen(
        [*prefix, *map(str, command)], stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=ROOT,
        env=environment("vllm", env),
    ) as process:  # fmt: skip
        try:
            end = time.monotonic() + START_S
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > end:
                        raise RuntimeError(f"{Path(command[0]).name} did not start, see {log.name}") from None
                    time.sleep(0.1)
            yield
        finally:
            process.kill()


@contextmanager
def _nothing(_folder: Path) -> Iterator[Given]:
    yield Given(None)


@contextmanager
def _ours(folder: Path) -> Iterator[Given]:
    folder.mkdir(parents=True, exist_ok=True)
    with NodeProcess(folder, memory="1GiB") as node:
        transfer = _transfer("KVStoreConnector", "engine_adapters.vllm", address=node.address)
        yield Given({**transfer, "kv_load_failure_policy": "recompute"})


@contextmanager
def _tiering(folder: Path) -> Iterator[Given]:
    yield Given(
        _transfer(
            "OffloadingConnector",
            spec_name="CpuTieringSpec",
            spec_module_path="bench.engines.tiering",
            cpu_bytes_to_use=GIB,
            secondary_tiers=[{"type": "fs", "root_dir": str(folder / "files")}],
        )
    )


@contextmanager
def _mooncake(folder: Path) -> Iterator[Given]:
    programs = MOONCAKE.folder / "mooncake"
    master = f"127.0.0.1:{MASTER_PORT}"
    config = folder / "mooncake.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    settings = {"metadata_server": "P2PHANDSHAKE", "master_server_address": master, "protocol": "tcp"}
    memory = {"mode": "standalone-store", "global_segment_size": 0, "local_buffer_size": "512MB"}
    config.write_text(json.dumps(settings | memory))
    listens = [f"-rpc_port={MASTER_PORT}", "-rpc_address=127.0.0.1"]
    metrics = ["-metrics_host=127.0.0.1", f"-metrics_port={METRICS_PORT}"]
    owner = ["-host=127.0.0.1", f"-port={CLIENT_PORT}", "-global_segment_size=1 GB", "-protocol=tcp"]
    with (
        _program([programs / "mooncake_master", *listens, *metrics], folder / "master.log", MASTER_PORT),
        _program(
            [programs / "mooncake_client", *owner, f"-master_server_address={master}", "-metadata_server=P2PHANDSHAKE"],
            folder / "store.log",
            CLIENT_PORT,
        ),
    ):
        yield Given(_transfer("MooncakeStoreConnector"), {**_path(MOONCAKE), "MOONCAKE_CONFIG_PATH": str(config)})


@contextmanager
def _lmcache(folder: Path) -> Iterator[Given]:
    folder.mkdir(parents=True, exist_ok=True)
    memory = ["--l1-size-gb", "1", "--l1-init-size-gb", "1", "--no-l1-use-lazy", "--eviction-policy", "LRU"]
    command = [RECIPES["vllm"].python, "-m", "lmcache.v1.multiprocess.server", "--port", str(LMCACHE_PORT)]
    # Without a name it would pickle blocks through a socket, which takes ten times as long.
    how = ["--shm-name", f"bench-{os.getpid()}", "--supported-transfer-mode", "auto", "--disable-observability"]
    env = {**_path(LMCACHE), "LMCACHE_TRACK_USAGE": "false", "LMCACHE_LOG_LEVEL": "WARNING"}
    with _program([*command, *memory, *how], folder / "server.log", LMCACHE_PORT, env):
        where = {"lmcache.mp.host": "tcp://localhost", "lmcache.mp.port": LMCACHE_PORT}
        yield Given(_transfer("LMCacheMPConnector", "bench.engines.lmcache_cpu", **where), env)


NONE = Store("none", "no store", _nothing)
OURS = Store("ours", "ours", _ours)
PEERS = (
    Store("tiering", "vLLM 0.32 tiering, in its own process", _tiering, files="vLLM 0.32 tiering, from its fs tier"),
    Store("mooncake", "Mooncake 0.3.13, store over TCP", _mooncake, needs=MOONCAKE, alone=True),
    Store("lmcache", "LMCache 0.5.6, server", _lmcache, needs=LMCACHE, alone=True),
)
