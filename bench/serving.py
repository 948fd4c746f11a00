"""A node in a process of its own, as a user starts it, on a Unix socket in a folder of the benchmark's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Served", "node"]

STOP_S = 60.0


@dataclass(frozen=True, slots=True)
class Served:
    address: str  # of the socket
    addresses: tuple[str, ...]  # of gRPC
    pid: int
    remote: str = ""  # HOST:PORT of the framed door

    def written_bytes(self) -> int:
        """What the process has handed to the disk so far."""
        lines = Path(f"/proc/{self.pid}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))


@contextmanager
def node(folder: Path, memory_bytes: int, *sets: str, grpc: str = "none", address: str = "none") -> Iterator[Served]:
    """Serving when it is given out, and ended before this returns. Without an object tier, metrics, memory that
    outlives it, and gRPC and clients of
    other machines unless they are given an address; `sets` (SECTION.KEY=VALUE) say the rest.
    """
    flags = ["--data-dir", str(folder / "data"), "--socket", str(folder / "s"), "--memory", str(memory_bytes)]
    flags += ["--address", address, "--grpc", grpc, "--metrics", "none", "--json"]
    flags += [part for one in ("memory.keep=false", "object.url=none", *sets) for part in ("--set", one)]
    command = [sys.executable, "-m", "kvstore", "node", *flags]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the node did not start")
        facts = json.loads(line)
        assert facts["pid"] == process.pid
        try:
            told, remote = facts["addresses"], facts["address"] or ""
            doors = tuple(one for one in told if not one.startswith(("unix:", "tcp:", "rdma:")) and one != remote)
            yield Served(f"unix:{folder}/s", doors, process.pid, remote)
        finally:
            process.terminate()
            process.wait(STOP_S)
