"""The demo's processes: nodes and workers, each with a data directory and a log of its own."""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from kvstore.demo.child import Child

__all__ = ["Stage", "StagedNode", "free_addresses"]


@dataclass(frozen=True, slots=True)
class StagedNode:
    name: str
    child: Child
    home: Path
    facts: dict[str, Any]

    @property
    def socket(self) -> Path:
        return self.home / "node.sock"

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    def cut_off(self) -> None:
        """Takes away the sockets by which processes of one machine reach each other's memory: what is left is TCP."""
        for end in (".peer", ".lanes"):
            self.socket.with_name(self.socket.name + end).unlink()

    def destroy(self) -> int:
        """Kills it, and deletes its memory and its disk. Returns how many bytes that was."""
        self.child.process.kill()
        self.child.process.wait()
        return self.delete()

    def delete(self) -> int:
        payload = Path(self.facts["memory_at"])
        data = [path for path in (self.home / "data").rglob("*") if path.is_file()]
        segments = [path for path in (payload, payload.with_suffix(".meta")) if path.exists()]
        size = sum(path.stat().st_size for path in (*data, *segments))
        for path in segments:
            path.unlink()
        shutil.rmtree(self.home / "data", ignore_errors=True)
        return size


def free_addresses(count: int) -> list[str]:
    """Of this machine, that nobody listens on just now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


class Stage:
    """All that was started is stopped on leaving, the last first."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._stack = ExitStack()

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def nodes(self, names_and_memory: dict[str, str], addresses: list[str], *settings: str) -> list[StagedNode]:
        """Of one cluster: they start side by side, and each is asked once all have been started."""
        begun = [
            (name, self._begun(name, memory, address, *settings))
            for (name, memory), address in zip(names_and_memory.items(), addresses, strict=True)
        ]
        return [self._ready(name, child) for name, child in begun]

    def node(self, name: str, memory: str, *settings: str) -> StagedNode:
        """One by itself."""
        return self._ready(name, self._begun(name, memory, "none", *settings))

    def _begun(self, name: str, memory: str, address: str, *settings: str) -> Child:
        home = self._scratch / name
        home.mkdir()
        flags = ["--data-dir", str(home / "data"), "--socket", str(home / "node.sock"), "--memory", memory]
        flags += ["--address", address, "--grpc", "none", "--json"]
        named = ("metrics.address=none", *settings, "memory.keep=false", f"node.name=demo-{os.getpid()}-{name}")
        flags += [part for setting in named for part in ("--set", setting)]
        return self._child(name, ["kvstore", "node", *flags])

    def _ready(self, name: str, child: Child) -> StagedNode:
        node = StagedNode(name, child, self._scratch / name, child.answer())  # says where it listens, once it does
        self._stack.callback(node.delete)
        self._stack.callback(child.stop)  # before that: a node deletes what it has, unless it was killed
        return node

    def worker(self, name: str, address: str, flags: list[str]) -> Child:
        """Says one line when it is warm."""
        return self._child(name, ["engine_adapters.transformers.demo.worker", "--address", address, *flags])

    def _child(self, name: str, command: list[str]) -> Child:
        # Idle threads of one worker must not spin on the cores that the other is computing on.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        return Child(name, ["-m", *command], self._scratch / f"{name}.log", self._stack)
