"""`make demo-vllm`, quickly: it says that all went well, and leaves nothing behind, also where it is interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engines.store_rig import until
from tests.engines.venvs import RECIPES, ROOT, ready

DEMO_MAX_S = 400.0
END_MAX_S = 60.0


def below(pid: int) -> set[int]:
    """Processes that it started, and those that these did."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found, more = set(), {pid}
    while more:
        found |= more
        more = {child for child, parent in parents.items() if parent in more}
    return found - {pid}


def alive(pids: set[int]) -> set[int]:
    def lives(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    return {pid for pid in pids if lives(pid)}


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where the demo has its files. A short path: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="kvd-") as path:
        yield Path(path)


@pytest.fixture
def demo(scratch: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    if not ready(RECIPES["vllm"]):
        pytest.skip("build/engines/vllm is not there: make setup-engines")
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "engine_adapters.pd.demo", "--quick"]
        env = {**os.environ, "TMPDIR": str(scratch)}
        started.append(
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_tokens_are_the_same_and_the_blocks_came_from_the_store(
    demo: Callable[[], subprocess.Popen[str]], scratch: Path
) -> None:
    process = demo()
    out, _ = process.communicate(timeout=DEMO_MAX_S)
    assert process.returncode == 0, out
    assert "GOOD: the tokens are the same with and without the store" in out
    rows = dict(re.findall(r"^(first|again|next turn|restarted) +\d+ +(\d+) .*yes$", out, re.MULTILINE))
    assert rows == {"first": "640", "again": "640", "next turn": "768", "restarted": "640"}
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_interrupted(demo: Callable[[], subprocess.Popen[str]], scratch: Path, number: int) -> None:
    process = demo()
    until(lambda: len(list(scratch.glob("*/decode.log"))) == 1, END_MAX_S)
    time.sleep(3)  # the servers are in the middle of their start
    children = below(process.pid)
    assert len(children) >= 3
    os.kill(process.pid, number)
    process.communicate(timeout=END_MAX_S)
    assert process.returncode == 128 + number
    until(lambda: not alive(children), END_MAX_S)
    assert list(scratch.iterdir()) == []
