"""How soon what a node holds is found again from elsewhere when it was killed and comes back: 100,000 small blocks.

Two `kvstore node` processes. One holds all blocks, in memory that outlives it, and is killed (SIGKILL). From the moment
that its next process says that it serves, to the moment that the other node keeps a claim of every block; that lookups
there then find all of them is looked at off the clock. The other one has forgotten the first meanwhile: while it has
not (`cluster.grace_ms`), what it was told before is right, and there is nothing to wait for, which is the other row.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.harness import Row, at_most, measure
from kvstore import Client, KVLayout, Namespace

__all__ = ["rows"]

MIB = 1 << 20
BLOCKS = 100_000
BLOCK_BYTES = 4 << 10
CHAIN = 1_000
FOUND_MAX_S = 60.0
GRACE_MS = 1_000
STOP_S = 60.0
LAYOUT = KVLayout.uniform(
    engine="bench", model="m", revision="1", dtype="int8", block_tokens=1, layers=1, kv_heads=1, head_dim=2 << 10
)


class Member:
    """One of two nodes, each in a folder of its own, with memory that outlives the process."""

    def __init__(self, folder: Path, memory_bytes: int, port: int, members: str, secret: Path, grace_ms: int) -> None:
        folder.mkdir()
        self.socket = folder / "s"
        self.facts: dict[str, Any] = {}
        sets = (
            f"cluster.members={members}",
            f"cluster.secret_file={secret}",
            f"cluster.grace_ms={grace_ms}",
            "object.url=none",
            "file.enabled=false",
        )
        self._command = [sys.executable, "-m", "kvstore", "node", "--json", "--data-dir", str(folder / "data")]
        self._command += ["--socket", str(self.socket), "--memory", str(memory_bytes), "--grpc", "none"]
        self._command += ["--address", f"127.0.0.1:{port}", "--metrics", "127.0.0.1:0"]
        self._command += [part for one in sets for part in ("--set", one)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """When it said that it serves."""
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        said = time.perf_counter()
        if not line:
            raise RuntimeError("a node did not start")
        self.facts = json.loads(line)
        return said

    def end(self, *, kill: bool = False) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if kill:
            process.kill()
        else:
            process.terminate()
        process.wait(STOP_S)
        assert process.stdout is not None
        process.stdout.close()

    def remove(self) -> None:
        self.end()
        for suffix in (".payload", ".meta"):
            Path(self.facts["memory_at"]).with_suffix(suffix).unlink(missing_ok=True)

    def client(self) -> Client:
        return Client(f"unix:{self.socket}")

    def claims(self) -> int:
        """Of other nodes and of itself, as it keeps them now."""
        url = next(one for one in self.facts["addresses"] if one.endswith("/metrics"))
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return next(int(float(line.split()[1])) for line in lines if line.startswith("kvstore_directory_claims "))


class Pair:
    """`first` holds `blocks` blocks; `second` is looked up at."""

    def __init__(self, first: Member, second: Member, blocks: int) -> None:
        self.first, self.second, self.blocks = first, second, blocks

    def chain(self, ns: Namespace, which: int) -> npt.NDArray[np.uint8]:
        return ns.chain(np.arange(which * CHAIN, (which + 1) * CHAIN, dtype=np.uint32))

    def fill(self) -> None:
        source = np.random.default_rng(1).integers(256, size=(CHAIN, BLOCK_BYTES), dtype=np.uint8)
        with self.first.client() as client:
            ns = client.namespace(LAYOUT)
            for which in range(self.blocks // CHAIN):
                if ns.put(self.chain(ns, which), source).stored != CHAIN:
                    raise RuntimeError("a put did not fit")

    def told_all(self) -> float:
        """When the second node has been told of everything."""
        until = time.perf_counter() + FOUND_MAX_S
        while self.second.claims() < self.blocks:
            if time.perf_counter() > until:
                raise RuntimeError("not all was told")
            time.sleep(0.005)
        return time.perf_counter()

    def found(self) -> int:
        with self.second.client() as client:
            ns = client.namespace(LAYOUT)
            return sum(ns.lookup(self.chain(ns, which)).blocks for which in range(self.blocks // CHAIN))

    def back(self, *, forgotten: bool) -> float:
        """Seconds from its next start until all of it is found."""
        self.first.end(kill=True)
        until = time.perf_counter() + FOUND_MAX_S
        while forgotten and self.second.claims():
            if time.perf_counter() > until:
                raise RuntimeError("a node that is gone was not forgotten")
            time.sleep(0.05)
        said = self.first.start()
        took = (self.told_all() if forgotten else self._named()) - said
        if self.found() != self.blocks:
            raise RuntimeError(f"{self.found()} of {self.blocks} blocks are found")
        return max(0.0, took)

    def _named(self) -> float:
        """When a lookup names it again."""
        with self.second.client() as client:
            ns = client.namespace(LAYOUT)
            until = time.perf_counter() + FOUND_MAX_S
            while ns.lookup(self.chain(ns, 0)).blocks < CHAIN:
                if time.perf_counter() > until:
                    raise RuntimeError("not found again")
        return time.perf_counter()


@contextmanager
def pair(blocks: int, grace_ms: int) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        secret = folder / "secret"
        secret.write_bytes(b"of this cluster!" * 2)
        secret.chmod(0o600)
        ports = free_ports(2)
        members = ",".join(f"127.0.0.1:{port}" for port in ports)
        sizes = (blocks * BLOCK_BYTES * 5 // 4 + 64 * MIB, 64 * MIB)
        nodes = [
            Member(folder / f"n{i}", size, port, members, secret, grace_ms)
            for i, (size, port) in enumerate(zip(sizes, ports, strict=True))
        ]
        for node in nodes:
            node.start()
            stack.callback(node.remove)
        made = Pair(nodes[0], nodes[1], blocks)
        made.fill()
        made.told_all()
        yield made


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def rows(quick: bool) -> list[Row]:
    blocks = BLOCKS // 10 if quick else BLOCKS
    made = []
    for forgotten, what in ((True, "by a node that has forgotten it"), (False, "by a node that remembers it")):
        with pair(blocks, GRACE_MS if forgotten else 60_000) as two:
            made.append(
                measure(
                    f"{blocks:,} blocks in the memory of a node that was killed are found again {what}, from its start",
                    unit="s",
                    ours=lambda two=two, forgotten=forgotten: two.back(forgotten=forgotten),  # type: ignore[misc]
                    limit=None,
                    limit_is="",
                    target=at_most(2.0 * blocks / BLOCKS, "s") if not quick else at_most(2.0, "s"),
                    rounds=1 if quick else 5,
                )
            )
    return made
