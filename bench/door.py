"""The framed socket: puts and gets through a node in another process, against the best copy of the same bytes; lookups
against an echo of as many bytes.

Blocks are got in random order from memory that no cache holds. `python -m bench.door lookups ADDRESS SEED SECONDS` is
one of the four clients of the last row.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt

from bench.harness import Figure, Row, at_least, at_most, measure, ratio_at_least, ratio_at_most
from bench.peers import work
from bench.peers.process import NO_PEERS, Peers
from kvstore import Client, Extents, KVLayout, native

__all__ = ["rows"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MEMORY_BYTES = 3 * GIB // 2
HELD_BYTES = 512 * MIB  # that gets draw from: far more than any cache
CALLS = 50  # a figure of a short call is the median of so many
LOOKUP_KEYS = 1_024
HELD_KEYS = 256_000
LOOKUP_CLIENTS = 4
PUT_KEYS = 32_768
Bytes = npt.NDArray[np.uint8]


def layout(block_bytes: int, parts: int = 1) -> KVLayout:
    """Blocks of one token of one head, so that a chain of n blocks needs n tokens."""
    return KVLayout.uniform(
        engine="bench",
        model=f"{block_bytes}x{parts}",
        revision="1",
        dtype="int8",
        block_tokens=1,
        layers=parts,
        kv_heads=1,
        head_dim=block_bytes // parts // 2,
    )


@contextmanager
def _node() -> Iterator[str]:
    """A node of its own, without tiers below memory, over a socket in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-") as folder:
        flags = [
            "--data-dir",
            f"{folder}/data",
            "--socket",
            f"{folder}/s",
            "--memory",
            str(MEMORY_BYTES),
            "--grpc",
            "none",
        ]
        command = [
            sys.executable,
            "-m",
            "kvstore",
            "node",
            *flags,
            "--set",
            "memory.keep=false",
            "--set",
            "file.enabled=false",
            "--set",
            "object.url=none",
            "--json",
        ]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError("the node did not start")
            try:
                yield f"unix:{folder}/s"
            finally:
                process.terminate()


# ---- puts and gets --------------------------------------------------------------------------------------------------


class Held:
    """Chains of `batch` blocks that the node has, and buffers as large to copy between."""

    def __init__(self, client: Client, block_bytes: int, batch: int, parts: int = 1) -> None:
        self.space = client.namespace(layout(block_bytes, parts))
        self.block_bytes, self.batch = block_bytes, batch
        self.random = np.random.default_rng(1)
        self.source = self.random.integers(0, 256, HELD_BYTES, dtype=np.uint8)
        self.target = np.zeros_like(self.source)
        self.fresh = 1 << 10
        chain = self.space.chain(np.arange(HELD_BYTES // block_bytes))
        for first in range(0, len(chain), PUT_KEYS):  # a call takes no more keys than it may
            some = chain[first : first + PUT_KEYS]
            source = self.source[first * block_bytes : (first + len(some)) * block_bytes]
            if self.space.put(some, source).stored < len(some):
                raise RuntimeError("the node did not take what was put")
        self.chains = np.split(chain, len(chain) // batch)

    def piece(self, buffer: Bytes, i: int) -> Bytes:
        """Place `i` of the buffer, modulo its length, for one batch."""
        size = self.block_bytes * self.batch
        at = i % (len(buffer) // size) * size
        return buffer[at : at + size]

    def get(self, into: object = None) -> None:
        i = int(self.random.integers(len(self.chains)))
        target = self.piece(self.target, int(self.random.integers(1 << 20))) if into is None else into
        if self.space.get(self.chains[i], target).blocks != self.batch:
            raise RuntimeError("a block that was held did not come")

    def put(self) -> None:
        self.fresh += 1
        chain = self.space.chain(np.arange(self.fresh << 20, (self.fresh << 20) + self.batch) % (1 << 31))
        stored = self.space.put(chain, self.piece(self.source, int(self.random.integers(1 << 20))))
        if stored.stored != self.batch:
            raise RuntimeError("the node did not take a put")

    def copy(self, kind: str) -> None:
        """The same bytes from a random place to another, block by block."""
        span = HELD_BYTES // self.block_bytes
        drawn = self.random.integers(span, size=self.batch).tolist()
        native.copy_blocks(kind, self.target, self.source, self.block_bytes, drawn)

    def rate(self, work: Callable[[], object]) -> Figure:
        def once() -> float:
            start = time.perf_counter()
            work()
            return self.block_bytes * self.batch / GIB / (time.perf_counter() - start)

        return once

    def best_copy(self) -> Figure:
        libc, stream = self.rate(lambda: self.copy("memcpy")), self.rate(lambda: self.copy("stream"))
        return lambda: max(libc(), stream())


def _scatter(held: Held, pieces: int) -> Extents:
    """Each block to `pieces` places, as an engine's layers lie: piece after piece of all blocks."""
    length = held.block_bytes // pieces
    layers = np.split(held.target[: held.batch * held.block_bytes], pieces)
    return Extents.strided(layers, np.arange(held.batch) * length, length)


@contextmanager
def _spinning() -> Iterator[None]:
    """A second Python thread that never waits."""
    stop = threading.Event()

    def spin() -> None:
        n = 0
        while not stop.is_set():
            n += 1

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _batches(client: Client, rounds: int, peers: Peers) -> Iterator[Row]:
    limit_is = "best memcpy, one thread, GiB/s"
    large = Held(client, 2 * MIB, 32, parts=32)
    yield measure(
        "get 32 x 2 MiB",
        unit="GiB/s",
        ours=large.rate(large.get),
        limit=large.best_copy(),
        limit_is=limit_is,
        target=ratio_at_least(0.85),
        peers=peers.of(work.GET_2MIB),
        rounds=rounds,
    )
    into = _scatter(large, 32)
    yield measure(
        "get 32 x 2 MiB, scattered to 32 places each",
        unit="GiB/s",
        ours=large.rate(lambda: large.get(into)),
        limit=large.best_copy(),
        limit_is=limit_is,
        target=ratio_at_least(0.8),
        rounds=rounds,
    )
    with _spinning():
        yield measure(
            "get 32 x 2 MiB, a second Python thread spinning",
            unit="GiB/s",
            ours=large.rate(large.get),
            limit=large.best_copy(),
            limit_is=limit_is,
            target=ratio_at_least(0.75),
            rounds=rounds,
        )
    yield measure(
        "put 32 x 2 MiB",
        unit="GiB/s",
        ours=large.rate(large.put),
        limit=large.best_copy(),
        limit_is=limit_is,
        target=ratio_at_least(0.85),
        peers=peers.of(work.PUT_2MIB),
        rounds=rounds,
    )
    large.space.clear()
    small = Held(client, 64 * KIB, 256)
    yield measure(
        "get 256 x 64 KiB",
        unit="GiB/s",
        ours=small.rate(small.get),
        limit=small.best_copy(),
        limit_is=limit_is,
        target=ratio_at_least(0.7),
        peers=peers.of(work.GET_64KIB),
        rounds=rounds,
    )
    yield measure(
        "put 256 x 64 KiB",
        unit="GiB/s",
        ours=small.rate(small.put),
        limit=small.best_copy(),
        limit_is=limit_is,
        target=ratio_at_least(0.7),
        peers=peers.of(work.PUT_64KIB),
        rounds=rounds,
    )
    small.space.clear()


def _median_us(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e6


def _singles(client: Client, rounds: int) -> Iterator[Row]:
    for block_bytes, name in ((2 * MIB, "2 MiB"), (64 * KIB, "64 KiB"), (4 * KIB, "4 KiB")):
        one = Held(client, block_bytes, 1)
        yield measure(
            f"get 1 x {name}, p50",
            unit="us",
            ours=partial(_median_us, one.get),
            limit=partial(_median_us, partial(one.copy, "memcpy")),
            limit_is="memcpy of it, us",
            target=ratio_at_most(1.3, 30, "us"),
            rounds=rounds,
        )
        one.space.clear()


# ---- lookups --------------------------------------------------------------------------------------------------------


@contextmanager
def _echo(asked: int, answered: int) -> Iterator[Callable[[], object]]:
    """A bare socket in another process that answers so many bytes for so many."""
    ours, theirs = socket.socketpair()
    code = (
        "import socket,sys\n"
        f"s=socket.socket(fileno={theirs.fileno()});b=bytearray({asked});a=bytes({answered})\n"
        "while True:\n"
        "    n=0\n"
        "    while n<len(b):\n"
        "        g=s.recv_into(memoryview(b)[n:])\n"
        "        if not g: sys.exit()\n"
        "        n+=g\n"
        "    s.sendall(a)\n"
    )
    with ours, subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()]):
        theirs.close()
        question, answer = bytes(asked), bytearray(answered)

        def once() -> None:
            ours.sendall(question)
            got = 0
            while got < answered:
                got += ours.recv_into(memoryview(answer)[got:])

        yield once
        ours.close()


def _keys(client: Client) -> list[npt.NDArray[np.uint8]]:
    """Chains of 1,024 keys of which the first half is held: 256,000 held in all."""
    space = client.namespace(layout(4 * KIB))
    half = LOOKUP_KEYS // 2
    block = np.zeros(half * 4 * KIB, dtype=np.uint8)
    chains = [space.chain(np.arange(i * LOOKUP_KEYS, (i + 1) * LOOKUP_KEYS)) for i in range(HELD_KEYS // half)]
    for chain in chains:
        if space.lookup(chain[:half]).blocks < half:
            space.put(chain[:half], block)
    return chains


def _lookups(client: Client, address: str, rounds: int, seconds: float, peers: Peers) -> Iterator[Row]:
    chains = _keys(client)
    space = client.namespace(layout(4 * KIB))
    random = np.random.default_rng(2)
    whole = [np.concatenate((a[:512], b[:512])) for a, b in zip(chains[::2], chains[1::2], strict=True)]

    def look() -> None:
        if space.lookup(whole[int(random.integers(len(whole)))]).blocks != LOOKUP_KEYS:
            raise RuntimeError("a held chain was not found")

    with _echo(LOOKUP_KEYS * 32 + 32, LOOKUP_KEYS + 24) as echo:
        yield measure(
            "lookup of 1,024 held keys, p50",
            unit="us",
            ours=lambda: _median_us(look),
            limit=lambda: _median_us(echo),
            limit_is="an echo of as many bytes (Python), us",
            target=at_most(150, "us"),
            peers=peers.of(work.LOOKUP),
            rounds=rounds,
        )

    def together() -> float:
        command = [sys.executable, "-m", "bench.door", "lookups", address]
        with ExitStack() as stack:
            clients = [
                stack.enter_context(
                    subprocess.Popen(
                        [*command, str(i), str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                    )
                )
                for i in range(LOOKUP_CLIENTS)
            ]
            for process in clients:
                assert process.stdout is not None
                process.stdout.readline()
            for process in clients:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            return sum(float(process.stdout.readline()) for process in clients if process.stdout is not None)

    yield measure(
        "keys looked up a second, 4 clients, half of each 1,024 held",
        unit="keys/s",
        ours=together,
        limit=None,
        limit_is="",
        target=at_least(5e6, "keys/s"),
        peers=peers.of(work.KEYS_PER_S, ", one client"),
        rounds=max(1, rounds // 5),
    )


def look_up(address: str, seed: int, seconds: float) -> None:
    """One of several clients: says when it is ready, then how many keys a second it has looked up."""
    with Client(address) as client:
        chains, random = _keys(client), np.random.default_rng(seed)
        space = client.namespace(layout(4 * KIB))
        order = random.permutation(len(chains)).tolist()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        start, calls = time.perf_counter(), 0
        while (took := time.perf_counter() - start) < seconds:
            if space.lookup(chains[order[calls % len(order)]]).blocks != LOOKUP_KEYS // 2:
                raise RuntimeError("a held chain was not found")
            calls += 1
        sys.stdout.write(f"{calls * LOOKUP_KEYS / took}\n")


def rows(quick: bool, peers: Peers = NO_PEERS) -> list[Row]:
    rounds = 3 if quick else 15
    with _node() as address, Client(address) as client:
        return [
            *_batches(client, rounds, peers),
            *_singles(client, rounds),
            *_lookups(client, address, rounds, 0.5 if quick else 2.0, peers),
        ]


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        look_up(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
