"""Where memory lies, by a sample of its pages."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Sequence

import numpy as np
import pytest

from transfer.pages import SAMPLES, node_of, nodes_at

PAGE = mmap.PAGESIZE


def test_pages_are_looked_at_evenly_and_never_too_many() -> None:
    asked: list[int] = []

    def ask(addresses: Sequence[int]) -> list[int]:
        asked[:] = addresses
        return [1] * len(addresses)

    assert node_of(10 * PAGE + 1, 1, ask=ask) == 1 and asked == [10 * PAGE]
    assert node_of(10 * PAGE + 1, PAGE, ask=ask) == 1 and asked == [10 * PAGE, 11 * PAGE]
    assert node_of(0, 1_000 * SAMPLES * PAGE, ask=ask) == 1
    assert asked == [i * 1_000 * PAGE for i in range(SAMPLES)]


def test_memory_on_several_nodes_is_on_none() -> None:
    def over(*nodes: int) -> int | None:
        return node_of(0, len(nodes) * PAGE, ask=lambda _: list(nodes))

    assert over(1, 1, 1, 0) == 1
    assert over(1, 1, 0, 0) is None
    assert over(1, -errno.ENOENT, -errno.ENOENT, -errno.EFAULT) == 1
    assert over(-errno.ENOENT) is None


def test_the_kernel_says_it() -> None:
    memory = mmap.mmap(-1, 8 * PAGE)
    array = np.frombuffer(memory, dtype=np.uint8)
    address = int(array.ctypes.data)
    try:
        before = node_of(address, 8 * PAGE)
    except OSError as error:
        pytest.skip(f"move_pages: {error.strerror}")
    assert before is None, "nobody has touched it"
    memory[:] = b"x" * (8 * PAGE)
    assert node_of(address, 8 * PAGE) in set(nodes_at([address]))
    assert nodes_at([address])[0] >= 0
