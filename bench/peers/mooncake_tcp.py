"""Mooncake's transfer engine over TCP between two processes, without its store."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from mooncake.engine import TransferEngine

from bench.peers import two, work
from bench.peers.network import loopback_only
from bench.peers.serve import Works, serve


def engine_of(memory: np.ndarray) -> TransferEngine:
    engine = TransferEngine()
    if engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", ""):
        raise RuntimeError("its engine did not start")
    if engine.register_memory(memory.ctypes.data, memory.nbytes):
        raise RuntimeError("it did not register memory")
    return engine


def own() -> None:
    say = two.voice()
    memory = two.content()
    engine = engine_of(memory)
    say(port=engine.get_rpc_port(), address=memory.ctypes.data)
    sys.stdin.read()


@contextmanager
def peer() -> Iterator[Works]:
    loopback_only()
    with two.owned("bench.peers.mooncake_tcp") as owner:
        target, source = np.zeros(work.MOVED_BYTES, dtype=np.uint8), two.content()
        engine = engine_of(target)
        name, there, here = f"127.0.0.1:{owner.about['port']}", int(str(owner.about["address"])), target.ctypes.data

        def read(offsets: Sequence[int], length: int) -> float:
            mine, theirs = [here + at for at in offsets], [there + at for at in offsets]
            lengths = [length] * len(offsets)
            start = time.perf_counter()
            failed = engine.batch_transfer_sync_read(name, mine, theirs, lengths)
            taken = time.perf_counter() - start
            if failed:
                raise RuntimeError(f"a transfer ended as {failed}")
            return taken

        yield two.works(work.OVER_TCP, read, source, target)


if __name__ == "__main__":
    if sys.argv[1:] == ["owner"]:
        own()
    else:
        serve(peer)
