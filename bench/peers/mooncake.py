"""Mooncake's store in the process that owns the memory: its short cut by memcpy, with its master on loopback.

Its client listens on all interfaces whatever it is told, so this runs only where loopback is the only one: see
`process.alone`.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mooncake
import numpy as np
from mooncake.store import MooncakeDistributedStore

from bench.peers import work
from bench.peers.network import loopback_only
from bench.peers.serve import Works, gib_per_s, median_us, serve

KIB, MIB = 1 << 10, 1 << 20
SEGMENT_BYTES = 2 << 30
LOCAL_BYTES = 256 * MIB
PORT = 50_051
MASTER_S = 20.0
PUT_BATCH = 1_000


@contextmanager
def master() -> Iterator[str]:
    program = Path(next(iter(mooncake.__path__))) / "mooncake_master"
    # It ends with this process, however that ends. setpriv and unshare come in one package.
    command = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        str(program),
        f"-rpc_port={PORT}",
        "-rpc_address=127.0.0.1",
        "-metrics_host=127.0.0.1",
    ]
    # stdout is the way back to the benchmark: whoever inherits it has to leave it alone.
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2) as process:
        try:
            deadline = time.monotonic() + MASTER_S
            while True:
                try:
                    socket.create_connection(("127.0.0.1", PORT), timeout=1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError("its master did not start") from None
                    time.sleep(0.05)
            yield f"127.0.0.1:{PORT}"
        finally:
            process.kill()


def done(answers: int | Sequence[int], wanted: int) -> None:
    for answer in [answers] if isinstance(answers, int) else answers:
        if answer != wanted:
            raise RuntimeError(f"it answered {answer} where {wanted} was due")


class Blocks:
    """Blocks of one size: those held, and buffers that the store knows."""

    def __init__(self, store: MooncakeDistributedStore, block_bytes: int, batch: int) -> None:
        self.store, self.block_bytes, self.batch = store, block_bytes, batch
        self.random = np.random.default_rng(1)
        self.source = self.random.integers(0, 256, work.HELD_BYTES, dtype=np.uint8)
        self.target = np.zeros_like(self.source)
        for buffer in (self.source, self.target):
            done(store.register_buffer(buffer.ctypes.data, buffer.nbytes), 0)
        self.places = work.HELD_BYTES // (block_bytes * batch)
        self.fresh = self.places
        self.sizes = [block_bytes] * batch
        for place in range(self.places):
            self.write(self.keys(place), self.source, place)

    def keys(self, number: int) -> list[str]:
        return [f"{self.block_bytes}/{number}/{i}" for i in range(self.batch)]

    def pointers(self, buffer: np.ndarray, place: int) -> list[int]:
        start = buffer.ctypes.data + place * self.block_bytes * self.batch
        return [start + i * self.block_bytes for i in range(self.batch)]

    def write(self, keys: list[str], buffer: np.ndarray, place: int) -> None:
        done(self.store.batch_put_from(keys, self.pointers(buffer, place), self.sizes), 0)

    def get(self) -> float:
        number, place = (int(n) for n in self.random.integers(self.places, size=2))
        keys, pointers = self.keys(number), self.pointers(self.target, place)
        rate = gib_per_s(
            self.block_bytes * self.batch,
            lambda: done(self.store.batch_get_into(keys, pointers, self.sizes), self.block_bytes),
        )
        span = self.block_bytes * self.batch
        if not np.array_equal(self.target[place * span :][:span], self.source[number * span :][:span]):
            raise RuntimeError("the bytes that came are not those that went")
        return rate

    def put(self) -> float:
        self.fresh += 1
        keys, place = self.keys(self.fresh), int(self.random.integers(self.places))
        rate = gib_per_s(self.block_bytes * self.batch, lambda: self.write(keys, self.source, place))
        for key in keys:  # off the clock: there is room for the next, and nothing held is evicted
            done(self.store.remove(key, True), 0)
        return rate


class Lookups:
    """HELD_KEYS keys with small values."""

    def __init__(self, store: MooncakeDistributedStore) -> None:
        self.store = store
        self.random = np.random.default_rng(2)
        for at in range(0, work.HELD_KEYS, PUT_BATCH):
            keys = self.keys("held", at, PUT_BATCH)
            done(store.put_batch(keys, [bytes(64)] * len(keys)), 0)

    @staticmethod
    def keys(kind: str, at: int, count: int) -> list[str]:
        return [f"{kind}/{i:032}" for i in range(at, at + count)]

    def drawn(self, held: int) -> list[str]:
        at = int(self.random.integers(work.HELD_KEYS - work.LOOKUP_KEYS))
        return self.keys("held", at, held) + self.keys("not", at, work.LOOKUP_KEYS - held)

    def call_us(self, held: int) -> float:
        keys = self.drawn(held)
        if sum(self.store.batch_is_exist(keys)) != held:
            raise RuntimeError("a lookup did not say what is held")
        return median_us(lambda: self.store.batch_is_exist(keys))

    def lookup(self) -> float:
        return self.call_us(work.LOOKUP_KEYS)

    def keys_per_s(self) -> float:
        return work.LOOKUP_KEYS / self.call_us(work.LOOKUP_KEYS // 2) * 1e6


@contextmanager
def peer() -> Iterator[Works]:
    loopback_only()
    with master() as address:
        store = MooncakeDistributedStore()
        done(store.setup("127.0.0.1", "P2PHANDSHAKE", SEGMENT_BYTES, LOCAL_BYTES, "tcp", "", address), 0)
        try:
            large = Blocks(store, 2 * MIB, work.BATCH_2MIB)
            small = Blocks(store, 64 * KIB, work.BATCH_64KIB)
            lookups = Lookups(store)
            yield {
                work.GET_2MIB: large.get,
                work.PUT_2MIB: large.put,
                work.GET_64KIB: small.get,
                work.PUT_64KIB: small.put,
                work.LOOKUP: lookups.lookup,
                work.KEYS_PER_S: lookups.keys_per_s,
            }
        finally:
            store.close()


if __name__ == "__main__":
    serve(peer)
