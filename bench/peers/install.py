"""Which peers there are, and a venv with them under build/peers. Says what it is about to download."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.peers import work

__all__ = ["FOLDER", "ROSTER", "Spec", "install", "venv_python"]

FOLDER = Path(__file__).parents[2] / "build" / "peers"
PIP_S = 900.0
COPIES = frozenset({work.GET_2MIB, work.PUT_2MIB, work.GET_64KIB, work.PUT_64KIB, work.LOOKUP})
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Spec:
    """`alone`: what is installed without its dependencies, because it asks for CUDA packages; `needs`: those of them
    that the measurement needs.
    """

    name: str  # the module bench.peers.NAME
    label: str
    works: frozenset[str]
    alone: tuple[str, ...]
    needs: tuple[str, ...]
    size: str


_LMCACHE_NEEDS = (
    "numpy<=2.2.6,aiofile,aiofiles,aiohttp,blake3,cachetools,cryptography,httpx,msgspec,numba,nvtx,"
    "opentelemetry-api,opentelemetry-sdk,prometheus_client,psutil,py-cpuinfo,pyyaml,pyzmq,redis,requests,safetensors,"
    "sortedcontainers,transformers>=5.4"
)
ROSTER = (
    Spec(
        name="lmcache",
        label="LMCache 0.5.6, LocalCPU",
        works=COPIES,
        alone=("lmcache==0.5.6",),
        needs=("torch==2.13.0", *_LMCACHE_NEEDS.split(",")),
        size="350 MB to download with a CPU build of torch, 1.5 GB on disk; several GB more with a CUDA build: "
        "TORCH_INDEX_URL chooses",
    ),
    Spec(
        name="mooncake",
        label="Mooncake 0.3.13, owner's process",
        works=COPIES | {work.KEYS_PER_S},
        alone=("mooncake-transfer-engine-non-cuda==0.3.13.post1",),
        needs=("numpy<=2.2.6", "aiohttp", "requests", "msgpack"),
        size="65 MB to download, 200 MB on disk",
    ),
    Spec(
        name="mooncake_tcp",
        label="Mooncake 0.3.13, transfer engine over TCP",
        works=frozenset(work.OVER_TCP),
        alone=("mooncake-transfer-engine-non-cuda==0.3.13.post1",),
        needs=("numpy<=2.2.6",),
        size="nothing more where its store is",
    ),
    Spec(
        name="nixl_tcp",
        label="NIXL 1.5.1, UCX over TCP",
        works=frozenset(work.OVER_TCP),
        alone=("nixl-cu12==1.5.1",),
        needs=("numpy<=2.2.6",),
        size="100 MB to download, 300 MB on disk",
    ),
    Spec(
        name="nixl_cma",
        label="NIXL 1.5.1, UCX by CMA",
        works=frozenset(work.ON_ONE_HOST),
        alone=("nixl-cu12==1.5.1",),
        needs=("numpy<=2.2.6",),
        size="nothing more where NIXL is",
    ),
    Spec(
        name="dynamo",
        label="Dynamo 1.6.1, RadixTree",
        works=frozenset({work.LONGEST}),
        alone=("ai-dynamo-runtime==1.6.1",),
        needs=("numpy<=2.2.6", "pydantic>=2.10.6,<=2.13.5", "uvloop>=0.21.0"),
        size="100 MB to download, 250 MB on disk",
    ),
)


def venv_python(folder: Path = FOLDER) -> Path:
    return folder / "venv" / "bin" / "python"


def install(spec: Spec, say: Say, folder: Path = FOLDER) -> str | None:
    """None where it is installed, now or earlier; otherwise why not."""
    mark = folder / f"{spec.name}.installed"
    wanted = hashlib.sha256(repr((spec.needs, spec.alone)).encode()).hexdigest()
    python = venv_python(folder)
    if python.exists() and mark.exists() and mark.read_text() == wanted:
        return None
    say(f"installing {spec.label} into {python.parents[1]}: about {spec.size}")
    folder.mkdir(parents=True, exist_ok=True)
    if not python.exists() and (reason := _done([sys.executable, "-m", "venv", str(python.parents[1])])):
        return reason
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    steps = [[*pip, "--no-deps", *spec.alone], [*pip, *spec.needs]]
    if torch := [need for need in spec.needs if need.startswith("torch==")]:
        index = os.environ.get("TORCH_INDEX_URL")  # as deploy/dev/setup.sh takes it
        steps.insert(0, [*pip, *(["--index-url", index] if index else []), *torch])
    for step in steps:
        if reason := _done(step):
            return reason
    mark.write_text(wanted)
    return None


def _done(command: list[str]) -> str | None:
    """Runs it; why it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["pip failed"])[-1]
