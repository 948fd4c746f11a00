"""Nodes in processes of their own, as a user starts them, on Unix sockets in a folder of the benchmark's."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Served", "cluster", "node"]

STOP_S = 60.0
SETTLE_MS = 300  # of a cluster that has just come up: then its homes are asked


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
    with _running([_command(folder, memory_bytes, *sets, grpc=grpc, address=address)], [folder]) as (served,):
        yield served


@contextmanager
def cluster(folder: Path, count: int, memory_bytes: int, *sets: str) -> Iterator[list[Served]]:
    """So many nodes of one list, as `node`, all settled. They start at once."""
    secret, ports = folder / "secret", _free_ports(count)
    secret.write_bytes(b"of benchmarks only, " * 2)
    secret.chmod(0o600)
    at = [f"127.0.0.1:{port}" for port in ports]
    said = (f"cluster.members={','.join(at)}", f"cluster.secret_file={secret}", f"cluster.settle_ms={SETTLE_MS}")
    folders = [folder / f"n{i}" for i in range(count)]
    for one in folders:
        one.mkdir()
    commands = [
        _command(one, memory_bytes, *said, f"node.name=bench-{one.name}", *sets, grpc="none", address=address)
        for one, address in zip(folders, at, strict=True)
    ]
    with _running(commands, folders) as nodes:
        time.sleep(3 * SETTLE_MS / 1e3)
        yield nodes


def _command(folder: Path, memory_bytes: int, *sets: str, grpc: str, address: str) -> list[str]:
    flags = ["--data-dir", str(folder / "data"), "--socket", str(folder / "s"), "--memory", str(memory_bytes)]
    flags += ["--address", address, "--grpc", grpc, "--metrics", "none", "--json"]
    flags += [part for one in ("memory.keep=false", "object.url=none", *sets) for part in ("--set", one)]
    return [sys.executable, "-m", "kvstore", "node", *flags]


@contextmanager
def _running(commands: list[list[str]], folders: list[Path]) -> Iterator[list[Served]]:
    processes = [subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) for command in commands]
    try:
        yield [_served(process, folder) for process, folder in zip(processes, folders, strict=True)]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(STOP_S)
            assert process.stdout is not None
            process.stdout.close()


def _served(process: subprocess.Popen[bytes], folder: Path) -> Served:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("the node did not start")
    facts = json.loads(line)
    assert facts["pid"] == process.pid
    told, remote = facts["addresses"], facts["address"] or ""
    doors = tuple(one for one in told if not one.startswith(("unix:", "tcp:", "rdma:")) and one != remote)
    return Served(f"unix:{folder}/s", doors, process.pid, remote)


def _free_ports(count: int) -> list[int]:
    """Of loopback, that nobody has now."""
    with contextlib.ExitStack() as stack:
        listening = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in listening]
