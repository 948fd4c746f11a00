"""vLLM's source distribution, of which the tests are laid open in build/engines/upstream; and what they need to run.

The file's digest is the pin. It comes from the index that pip is configured to use (PIP_INDEX_URL), or from PyPI, and
is not installed: its build would want a compiler and torch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import tarfile
import urllib.request
from pathlib import Path

from tests.engines.venvs import ENGINES, RECIPES, ROOT, SetupFailed, pip

__all__ = ["HOME", "LETTERS", "SITE", "TESTS", "fetch"]

NAME = "vllm-0.32.0.tar.gz"
SHA256 = "d2c957d5eee3d0985012151315ddc62cbe0cd368fc96a5fc3510438d9dddf2ad"
SIZE = 44_549_956
HOME = ENGINES / "upstream"
SITE = HOME / "site"  # pytest, for the engine's Python
TESTS = HOME / NAME.removesuffix(".tar.gz")
LETTERS = HOME / "letters"  # a tokenizer
PYTEST = ("pytest", "pytest-asyncio", "pytest-timeout")  # as they are here
FETCH_MAX_S = 600
STAND_IN = "facebook/opt-125m"  # upstream's default model: a folder of this name is taken for it


def _url() -> str:
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    asked = urllib.request.Request(f"{index}/vllm/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        files = json.load(answer)["files"]
    for file in files:
        if file["filename"] == NAME:
            return str(file["url"])
    raise SetupFailed(f"{index} has no {NAME}")


def _download(to: Path) -> None:
    print(f"test-upstream: {NAME}: {SIZE >> 20} MB to download", flush=True)
    digest, part = hashlib.sha256(), to.with_suffix(".part")
    with urllib.request.urlopen(_url(), timeout=FETCH_MAX_S) as answer, part.open("wb") as file:
        while piece := answer.read(1 << 20):
            digest.update(piece)
            file.write(piece)
    if digest.hexdigest() != SHA256:
        part.unlink()
        raise SetupFailed(f"{NAME} has the digest {digest.hexdigest()}; it must have {SHA256}")
    part.rename(to)


def _lay_open(packed: Path) -> None:
    """The tests only; the rest is in the engine's venv, built."""
    fresh = HOME / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    with tarfile.open(packed) as file:
        top = TESTS.name
        wanted = [item for item in file if item.name.startswith((f"{top}/tests/", f"{top}/pyproject.toml"))]
        file.extractall(fresh, wanted, filter="data")
    (fresh / top).rename(TESTS)
    fresh.rmdir()


def fetch() -> None:
    """Does what is missing."""
    HOME.mkdir(parents=True, exist_ok=True)
    python = RECIPES["vllm"].python
    if not TESTS.exists():
        packed = HOME / NAME
        if not packed.exists():
            _download(packed)
        _lay_open(packed)
        packed.unlink()
    if not SITE.exists():
        fresh = HOME / "site-fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        wanted = [f"{name}=={importlib.metadata.version(name)}" for name in PYTEST]
        pip(python, "install", "--target", str(fresh), *wanted)
        fresh.rename(SITE)
    for what, folder in (("model", TESTS / STAND_IN), ("letters", LETTERS)):
        if not folder.exists():
            quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
            command = [python, "-m", "tests.engines.upstream.stand_in", what, folder]
            subprocess.run(command, env=quiet, timeout=120, check=True, capture_output=True)
