"""What peers' connectors need beside vLLM, in a folder each under build/engines/peers, which goes before the engine's
own packages on the path. Says what it is about to download.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.engines.venvs import ENGINES, RECIPES, SetupFailed, pip

__all__ = ["LMCACHE", "MOONCAKE", "Packages", "install"]


@dataclass(frozen=True, slots=True)
class Packages:
    """`pins`: without their dependencies, which the engine's venv has."""

    name: str
    pins: tuple[str, ...]
    size: str

    @property
    def folder(self) -> Path:
        return ENGINES / "peers" / self.name


MOONCAKE = Packages(
    "mooncake",
    ("mooncake-transfer-engine-non-cuda==0.3.13.post1", "msgpack==1.2.4"),
    "47 MB to download, 140 MB on disk",
)
LMCACHE = Packages(
    "lmcache",
    (
        "lmcache==0.5.6",
        "aiofile==3.12.3",
        "caio==0.12.10",
        "nvtx==0.2.17",
        "redis==8.1.0",
        "sortedcontainers==2.4.0",
        "opentelemetry-exporter-prometheus==0.66b2",
    ),
    "22 MB to download, 110 MB on disk",
)


def install(packages: Packages, say: Callable[[str], None]) -> str | None:
    """None where they are there, now or earlier; otherwise why not."""
    mark = packages.folder / "made-from"
    wanted = hashlib.sha256("\0".join(packages.pins).encode()).hexdigest()
    if mark.exists() and mark.read_text() == wanted:
        return None
    say(f"installing {packages.name} into {packages.folder.relative_to(ENGINES.parent.parent)}: {packages.size}")
    shutil.rmtree(packages.folder, ignore_errors=True)
    packages.folder.mkdir(parents=True)
    try:
        pip(RECIPES["vllm"].python, "install", "--no-deps", "--target", str(packages.folder), *packages.pins)
    except (SetupFailed, subprocess.SubprocessError, OSError) as error:
        return str(error).strip().splitlines()[-1]
    mark.write_text(wanted)
    return None
