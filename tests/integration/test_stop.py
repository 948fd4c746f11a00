"""SIGTERM ends a node in good order, whenever it comes; what was begun is undone."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.nodes import STOP_MAX_S, NodeProcess, eventually, read_line

FILES = ("file.enabled=true", "file.bytes=16MiB", "file.slab_bytes=1MiB")

# How far a node has come, as others can see it; None: nowhere.
MOMENTS: dict[str, Callable[[NodeProcess], bool] | None] = {
    "at once": None,
    "the directory is taken": lambda node: (node.home / "data" / "lock").exists(),
    "files are laid out": lambda node: (node.home / "data" / "files").exists(),
    "the operators' door is there": lambda node: node.socket.with_name(node.socket.name + ".grpc").exists(),
    "the framed door is there": lambda node: node.socket.exists(),
    "it has said so": lambda node: node.process is not None and bool(read_line(node.process, STOP_MAX_S)),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_ends_whenever_it_is_told_to(tmp_path: Path, moment: str, number: int) -> None:
    node = NodeProcess(
        tmp_path,
        *FILES,
        f"object.url=file://{tmp_path / 'objects'}",
        "memory.keep=false",
        grpc="127.0.0.1:0",
        metrics="127.0.0.1:0",
    )
    (tmp_path / "objects").mkdir()
    node.process = process = node.spawn()
    reached = MOMENTS[moment]
    if reached is not None:
        eventually(lambda: reached(node) or process.poll() is not None, within_s=STOP_MAX_S)
    process.send_signal(number)
    process.send_signal(number)  # said twice, as the impatient do
    if reached is None:
        # Python may drop a KeyboardInterrupt that falls into a callback of an import; people press the keys again.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_MAX_S / 2)
        process.send_signal(number)
    code = process.wait(STOP_MAX_S)
    errors = process.stderr.read() if process.stderr is not None else ""
    node.process = None
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    if reached is None:  # before the node has begun the signal does what it does to every program
        assert code in {0, -number} or "KeyboardInterrupt" in errors or "Aborted" in errors
    else:
        assert (code, errors) == (0, "")
        assert not node.socket.exists() and not node.socket.with_name(node.socket.name + ".grpc").exists()


def test_a_hang_up_in_the_middle_of_a_start_ends_nothing(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path)
    node.process = process = node.spawn()
    try:
        eventually((tmp_path / "data" / "lock").exists)
        process.send_signal(signal.SIGHUP)
        assert read_line(process, STOP_MAX_S)
    finally:
        code = node.stop()
        node.close()
    assert code == 0
