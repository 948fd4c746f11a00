"""Copies with a checksum in the same pass, against the best copy that this machine does without one.

Blocks are taken in random order from buffers that no cache holds. The limit is the better of the C library's memcpy
and a non-temporal copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.harness import Figure, Row, Target, measure, no_target, ratio_at_least, timed
from kvstore import native

__all__ = ["rows"]

GIB = 1 << 30
BUFFER_BYTES = 256 << 20
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Work:
    """One batch: `blocks` of `block_bytes`, drawn anew each time."""

    source: Bytes
    target: Bytes
    block_bytes: int
    blocks: int
    random: np.random.Generator

    def figure(self, copy: Callable[[list[int]], object]) -> Figure:
        def once() -> float:
            held = len(self.source) // self.block_bytes
            drawn = self.random.permutation(held)[: self.blocks].tolist()
            return self.block_bytes * self.blocks / GIB / timed(lambda: copy(drawn))

        return once

    def natively(self, kind: str) -> Figure:
        return self.figure(lambda drawn: native.copy_blocks(kind, self.target, self.source, self.block_bytes, drawn))

    def best(self) -> Figure:
        libc, stream = self.natively("memcpy"), self.natively("stream")
        return lambda: max(libc(), stream())

    def by_numpy(self) -> Figure:
        shape = (-1, self.block_bytes)
        source, target = self.source.reshape(shape), self.target.reshape(shape)

        def copy(drawn: list[int]) -> None:
            for block in drawn:
                target[block] = source[block]

        return self.figure(copy)


def buffer(misaligned: int) -> Bytes:
    """Touched memory that begins so many bytes into a page."""
    room = np.ones(BUFFER_BYTES + 8192, np.uint8)
    start = -room.ctypes.data % 4096 + misaligned
    return room[start : start + BUFFER_BYTES]


def rows(quick: bool) -> list[Row]:
    random = np.random.default_rng(1)
    source, target, malloced, odd = buffer(0), buffer(0), buffer(16), buffer(1)
    source[:] = random.integers(0, 256, len(source), np.uint8)
    cases: list[tuple[str, Bytes, int, int, Target]] = [
        ("2 MiB x 32", target, 2 << 20, 32, ratio_at_least(0.9)),
        ("2 MiB x 32, into memory from malloc", malloced, 2 << 20, 32, ratio_at_least(0.85)),
        ("2 MiB x 32, into odd addresses", odd, 2 << 20, 32, no_target()),
        ("64 KiB x 256", target, 64 << 10, 256, ratio_at_least(0.7)),
        ("4 KiB x 1024", target, 4 << 10, 1024, no_target()),
    ]
    made = []
    for name, into, block_bytes, blocks, goal in cases:
        work = Work(source, into, block_bytes, blocks, random)
        made.append(
            measure(
                f"copy with checksum, {name}",
                unit="GiB/s",
                ours=work.natively("part"),
                limit=work.best(),
                limit_is="best memcpy, no checksum",
                target=goal,
                peers={"numpy": work.by_numpy(), "memcpy": work.natively("memcpy")},
                rounds=5 if quick else 31,
            )
        )
    return made
