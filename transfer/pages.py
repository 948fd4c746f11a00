"""On which NUMA node memory of this process lies: move_pages(2), which moves nothing where no nodes are given.

Containers may refuse it (Docker does, without CAP_SYS_NICE): then it is unknown, and whoever asks is told why.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
from collections.abc import Callable, Sequence

from transfer.topology import main_node, nodes_of_pages

__all__ = ["SAMPLES", "node_of", "nodes_at"]

SAMPLES = 64  # pages looked at, however much memory it is
_NUMBERS = {"x86_64": 279, "aarch64": 239}  # of move_pages: the C library has no name for it


def nodes_at(addresses: Sequence[int]) -> list[int]:
    """Of the page at each address: its node, or a negative errno (ENOENT: nobody has touched it). Raises OSError."""
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"move_pages is not known on {platform.machine()}")
    count = len(addresses)
    pages, status = (ctypes.c_void_p * count)(*addresses), (ctypes.c_int * count)()
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    if call(ctypes.c_long(number), ctypes.c_int(0), ctypes.c_ulong(count), pages, None, status, ctypes.c_int(0)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return list(status)


def node_of(address: int, count: int, *, ask: Callable[[Sequence[int]], list[int]] = nodes_at) -> int | None:
    """The node of most of `count` bytes, by up to SAMPLES of their pages; None: they are spread, or lie nowhere yet.
    Raises OSError where the kernel does not say.
    """
    page = mmap.PAGESIZE
    first, pages = address // page, -(-(address + count) // page) - address // page
    looked = min(pages, SAMPLES)
    return main_node(nodes_of_pages(ask([(first + i * pages // looked) * page for i in range(looked)])))
