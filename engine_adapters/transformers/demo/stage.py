"""Starts and stops the demo's processes: one node, one prefill and one decode worker, each by its own pid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

START_MAX_S = 120.0
ANSWER_MAX_S = 300.0


class Process:
    """A child with its standard error in a file that is shown if it dies."""

    def __init__(self, name: str, command: list[str], log: Path, *, piped: bool) -> None:
        self.name = name
        self.log = log
        self._stderr: IO[bytes] = log.open("wb")
        pipe = subprocess.PIPE if piped else subprocess.DEVNULL
        self.child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._stderr)

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(command).encode() + b"\n")
        self.child.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            raise SystemExit(f"the {self.name} process ended: {self.log.read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        self._stderr.close()


class Stage:
    """The demo's processes, all stopped on leaving."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.socket = scratch / "node.sock"
        self.address = f"unix:{self.socket}"
        self.processes: list[Process] = []

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self.processes):
            process.stop()

    def node(self, memory: str, files: str) -> Process:
        """A node with all its tiers. Everything is admitted to files, because the demo asks for everything again."""
        settings = [f"file.bytes={files}", "file.slab_bytes=8MiB", "file.admission=always", "memory.keep=false"]
        command = [sys.executable, "-m", "kvstore", "node", "--data-dir", str(self.scratch / "data")]
        command += ["--memory", memory, *(part for setting in settings for part in ("--set", setting))]
        command += ["--socket", str(self.socket), "--grpc", "none", "--metrics", "none"]
        process = self._start("node", command, piped=False)
        deadline = time.monotonic() + START_MAX_S
        while not self.socket.exists():
            if process.child.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the node did not start: {process.log.read_text()[-2000:]}")
            time.sleep(0.05)
        return process

    def worker(self, name: str, flags: list[str]) -> Process:
        module = "engine_adapters.transformers.demo.worker"
        return self._start(name, [sys.executable, "-m", module, "--address", self.address, *flags], piped=True)

    def _start(self, name: str, command: list[str], *, piped: bool) -> Process:
        # Idle threads of one worker must not spin on the cores that the other is computing on.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        process = Process(name, command, self.scratch / f"{name}.log", piped=piped)
        self.processes.append(process)
        return process
