"""Real node processes and real client processes for tests. Everything is on Unix sockets, in temporary directories and
in shared memory of its own, and gone at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from kvstore import KVLayout, Namespace

START_MAX_S = 60.0
STOP_MAX_S = 20.0
SIZE = 64 << 10  # of a block of `layout()`
BLOCK_TOKENS = 4


def layout(model: str = "m", layers: int = 4) -> KVLayout:
    """Blocks of 64 KiB in four parts."""
    return KVLayout.uniform(
        engine="test",
        model=model,
        revision="1",
        dtype="bfloat16",
        block_tokens=BLOCK_TOKENS,
        layers=layers,
        kv_heads=4,
        head_dim=SIZE // (layers * 4 * BLOCK_TOKENS * 2 * 2),
    )


def tokens(blocks: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1 << 31, size=blocks * BLOCK_TOKENS, dtype=np.uint32)


def block_of(key: np.ndarray, size: int = SIZE) -> np.ndarray:
    """What a block of this key must hold: anybody can check it."""
    seed = int.from_bytes(key[:8].tobytes(), "little")
    return np.random.default_rng(seed).integers(256, size=size, dtype=np.uint8)


def blocks_of(chain: np.ndarray, size: int = SIZE) -> np.ndarray:
    return np.stack([block_of(key, size) for key in chain]) if len(chain) else np.empty((0, size), np.uint8)


class NodeProcess:
    """`kvstore node`, started, killed and started again on the same data."""

    def __init__(
        self,
        home: Path,
        *sets: str,
        memory: str = "16MiB",
        address: str = "none",
        grpc: str = "none",
        metrics: str = "none",
    ) -> None:
        self.home = home
        self.socket = home / "kv.sock"
        self.address = f"unix:{self.socket}"
        self._flags = ["--data-dir", str(home / "data"), "--socket", str(self.socket), "--memory", memory]
        # Without files, unless a test says otherwise: most ask about memory, and the default would take 10 GiB of disk.
        self._flags += ["--address", address, "--grpc", grpc, "--metrics", metrics, "--json"] + [
            part for one in ("file.enabled=false", "object.url=none", *sets) for part in ("--set", one)
        ]
        self.process: subprocess.Popen[str] | None = None
        self.facts: dict[str, Any] = {}
        self._segments: set[str] = set()

    def command(self) -> list[str]:
        return [sys.executable, "-m", "kvstore", "node", *self._flags]

    def spawn(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def start(self) -> NodeProcess:
        self.process = self.spawn()
        return self.finish_start()

    def finish_start(self) -> NodeProcess:
        """Waits for what was spawned."""
        assert self.process is not None and self.process.stdout is not None
        line = read_line(self.process, START_MAX_S)
        self.facts = json.loads(line)
        self._segments.add(self.facts["memory_at"])
        return self

    def kill(self) -> None:
        """As kill -9 does it: no goodbye."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def restart(self) -> None:
        self.kill()
        self.start()

    def signal(self, number: int) -> None:
        """After SIGSTOP, returns when every thread has stopped: until then the node may still answer."""
        assert self.process is not None
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            eventually(lambda pid=self.process.pid: threads_of(pid) <= {"T"})

    def _end(self, number: int) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            process.wait(STOP_MAX_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            errors = process.stderr.read() if process.stderr is not None else ""
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self.said = errors
        return process.returncode

    def close(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._end(signal.SIGTERM)
        for payload in self._segments:
            for suffix in (".payload", ".meta"):
                Path(payload).with_suffix(suffix).unlink(missing_ok=True)

    def __enter__(self) -> NodeProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def holds(self) -> int:
        from kvstore.wire import admin, services

        with grpc.insecure_channel(f"unix:{self.socket}.grpc") as channel:
            return services.AdminStub(channel).Status(admin.StatusRequest(), timeout=10).holds

    def connections(self) -> int:
        """Of the framed door."""
        from kvstore.wire import admin, services

        with grpc.insecure_channel(f"unix:{self.socket}.grpc") as channel:
            return services.AdminStub(channel).Status(admin.StatusRequest(), timeout=10).connections

    def counters(self, tier: int) -> dict[str, int]:
        """What the node counts of one tier (1 memory, 2 files, 3 objects)."""
        from kvstore.wire import admin, services

        with grpc.insecure_channel(f"unix:{self.socket}.grpc") as channel:
            tiers = services.AdminStub(channel).Tiers(admin.TiersRequest(), timeout=10).tiers
        return next({"used": one.used_bytes, **dict(one.counters)} for one in tiers if one.tier == tier)

    def tier(self) -> dict[str, int]:
        """What the node counts of its memory tier, over its operators' door."""
        from kvstore.wire import admin, services

        with grpc.insecure_channel(f"unix:{self.socket}.grpc") as channel:
            told = services.AdminStub(channel).Tiers(admin.TiersRequest(), timeout=10).tiers[0]
        return {
            "sealed": told.slots_sealed,
            "reserved": told.slots_reserved,
            "retired": told.slots_retired,
            **dict(told.counters),
        }


class ClientProcess:
    """A client in a process of its own (client_child.py): asked and answering JSON lines."""

    def __init__(self, address: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.client_child", address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answer()

    def ask(self, verb: str, **arguments: object) -> Any:
        self.tell(verb, **arguments)
        return self.answer()

    def tell(self, verb: str, **arguments: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"verb": verb, **arguments}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        return json.loads(read_line(self.process, START_MAX_S))

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> ClientProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def read_line(process: subprocess.Popen[str], within_s: float) -> str:
    """One line; the process is killed when it does not come, so that a test fails and does not hang."""
    assert process.stdout is not None
    timer = threading.Timer(within_s, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    if not line:
        process.wait()
        errors = process.stderr.read() if process.stderr is not None else ""
        raise AssertionError(f"the process ended with {process.returncode}: {errors[-3000:]}")
    return line


def threads_of(pid: int) -> set[str]:
    """The states of a process's threads, as /proc names them."""
    return {stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")}


def eventually(check: Callable[[], bool], within_s: float = 20.0) -> None:
    """For what another process does in its own time. Less than what the store repairs by itself later on takes (30 s: a
    comparison of digests, a lapse), so that a repair is not taken for it."""
    until = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < until, "did not happen"
        time.sleep(0.02)


@contextlib.contextmanager
def clients(address: str, count: int) -> Iterator[Sequence[ClientProcess]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(ClientProcess(address)) for _ in range(count)]


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def right(ns: Namespace, seed: int, blocks: int) -> int:
    """How many blocks a get brings, every one of them right."""
    chain = ns.chain(tokens(blocks, seed))
    into = np.zeros((blocks, SIZE), np.uint8)
    got = ns.get(chain, into, wait_s=0)
    assert np.array_equal(into[: got.blocks], blocks_of(chain[: got.blocks]))
    return got.blocks


def put(ns: Namespace, seed: int, blocks: int) -> int:
    chain = ns.chain(tokens(blocks, seed))
    return ns.put(chain, blocks_of(chain)).stored
