"""Peers between two processes: an owner of memory, which is started here, and a reader, which measures.

Extents are drawn anew each time from MOVED_BYTES that no cache holds, and lie at the same places on both sides.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np

from bench.peers import work
from bench.peers.serve import Works

__all__ = ["Owner", "Read", "content", "owned", "voice", "works"]

GIB = 1 << 30
KIB, MIB = 1 << 10, 1 << 20
END_S = 10.0
Read = Callable[[Sequence[int], int], float]
"""Offsets and a length: reads those extents from the owner's memory, and says how many seconds it took."""


def content() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, work.MOVED_BYTES, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Owner:
    """`python -m MODULE owner`, which ends with its input. about: what it has said of itself."""

    about: Mapping[str, object]
    ears: IO[bytes]

    def turn(self, begins: bool) -> None:
        """Tells an owner that has to look after its transfers that one begins, or that it has ended: between them it
        shall take no processor from others.
        """
        self.ears.write(b"+" if begins else b"-")
        self.ears.flush()


@contextmanager
def owned(module: str) -> Iterator[Owner]:
    # It ends with this process, however that ends. setpriv and unshare come in one package.
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", module, "owner"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("the owner of the memory did not start")
            yield Owner(json.loads(line), process.stdin)
        finally:
            process.kill()
            process.wait(END_S)


def voice() -> Callable[..., None]:
    """The owner's side: says a line to whoever started it. What libraries print goes to stderr from here on."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**about: object) -> None:
        answers.write(json.dumps(about) + "\n")

    return say


def works(wanted: Mapping[str, tuple[int, int]], read: Read, source: np.ndarray, target: np.ndarray) -> Works:
    """wanted: a work's extents, how many and of which length. In GiB/s, but 4 KiB in extents a second. Of one extent,
    the median of work.SINGLES reads.
    """
    random = np.random.default_rng(2)

    def once(count: int, length: int) -> float:
        offsets = (random.permutation(work.MOVED_BYTES // length)[:count] * length).tolist()
        seconds = read(offsets, length)
        for at in offsets:
            if not np.array_equal(target[at : at + length], source[at : at + length]):
                raise RuntimeError("the bytes that came are not those that went")
            target[at : at + length] = 0
        return seconds

    def figure(count: int, length: int) -> Callable[[], float]:
        size = length if length <= 4 * KIB else GIB
        turns = work.SINGLES if count == 1 else 1
        return lambda: count * length / size / statistics.median(once(count, length) for _ in range(turns))

    return {name: figure(*extents) for name, extents in wanted.items()}
