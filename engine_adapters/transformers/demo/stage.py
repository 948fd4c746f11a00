"""The demo's processes: one node, one prefill and one decode worker."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from kvstore.demo.child import Child


class Stage:
    """All that was started is stopped on leaving, the last first."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._stack = ExitStack()
        self._socket = scratch / "node.sock"

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def node(self, memory: str, files: str) -> None:
        """A node with all its tiers. Everything is admitted to files, because the demo asks for everything again."""
        settings = (f"file.bytes={files}", "file.slab_bytes=8MiB", "file.admission=always", "memory.keep=false")
        flags = ["--data-dir", str(self._scratch / "data"), "--socket", str(self._socket), "--memory", memory]
        flags += ["--address", "none", "--grpc", "none", "--metrics", "none", "--json"]
        flags += [part for setting in settings for part in ("--set", setting)]
        self._child("node", ["kvstore", "node", *flags]).answer()  # says where it listens, once it does

    def worker(self, name: str, flags: list[str]) -> Child:
        """Says one line when it is warm."""
        address = f"unix:{self._socket}"
        return self._child(name, ["engine_adapters.transformers.demo.worker", "--address", address, *flags])

    def _child(self, name: str, command: list[str]) -> Child:
        # Idle threads of one worker must not spin on the cores that the other is computing on.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        return Child(name, ["-m", *command], self._scratch / f"{name}.log", self._stack)
