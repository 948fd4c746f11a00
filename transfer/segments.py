"""Memory that several processes map: a descriptor, its size, and one mapping of it.

Rules
- Segments are allocated in full when they are made and never truncated: a reader that touched a truncated page would
  die. Our own memory files are sealed against it.
- `close` refuses while any array, view or registered region of the mapping is alive. It is never unmapped under a user.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os

import numpy as np
import numpy.typing as npt

__all__ = ["MappedSegment"]


class MappedSegment:
    """`size` bytes of the file behind a descriptor, mapped shared.

    The descriptor stays the caller's; the segment keeps one of its own. Raises ValueError where the file is smaller
    than `size`, and OSError where the system refuses the mapping.
    """

    def __init__(self, fd: int, size: int, *, writable: bool, populate: bool = False) -> None:
        if size <= 0:
            raise ValueError(f"size must be positive, not {size}")
        held = os.fstat(fd).st_size
        if held < size:
            raise ValueError(f"the segment's file has {held} bytes, {size} were announced")
        self._fd = os.dup(fd)
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
        try:
            self._map = mmap.mmap(self._fd, size, flags=flags, prot=protection)
        except BaseException:
            os.close(self._fd)
            raise
        with contextlib.suppress(OSError):  # a kernel without huge pages for shared memory
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._size = size
        self._writable = writable
        self._address = int(np.frombuffer(self._map, dtype=np.uint8).ctypes.data)
        self._closed = False

    @classmethod
    def create(cls, size: int, *, name: str = "segment") -> MappedSegment:
        """New zeroed memory without a name in any file system, allocated in full and sealed against truncation."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            os.posix_fallocate(fd, 0, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            return cls(fd, size, writable=True)
        finally:
            os.close(fd)

    @property
    def address(self) -> int:
        """Where it is mapped in this process."""
        return self._address

    @property
    def size(self) -> int:
        return self._size

    @property
    def writable(self) -> bool:
        return self._writable

    @property
    def closed(self) -> bool:
        return self._closed

    def fileno(self) -> int:
        """The segment's own descriptor, closed with it."""
        return self._fd

    def read_only_fd(self) -> int:
        """A new descriptor of the same file that cannot be mapped for writing; the caller closes it."""
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)

    def array(self, offset: int, length: int) -> npt.NDArray[np.uint8]:
        """A read-only view. Raises ValueError where it would reach beyond the segment."""
        view = self._bytes(offset, length)
        view.flags.writeable = False
        return view

    def writable_array(self, offset: int, length: int) -> npt.NDArray[np.uint8]:
        """A view to write through. Raises ValueError for a read-only segment."""
        if not self._writable:
            raise ValueError("this segment is mapped read-only")
        return self._bytes(offset, length)

    def _bytes(self, offset: int, length: int) -> npt.NDArray[np.uint8]:
        if self._closed:
            raise ValueError("this segment is closed")
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"[{offset}, {offset} + {length}) is not within the segment's {self._size} bytes")
        return (
            np.frombuffer(self._map, dtype=np.uint8, count=length, offset=offset) if length else np.empty(0, np.uint8)
        )

    def close(self) -> None:
        """Unmaps. Raises BufferError, and changes nothing, while a view, an array or a region of it is alive."""
        if self._closed:
            return
        self._map.close()
        self._closed = True
        os.close(self._fd)

    def __enter__(self) -> MappedSegment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Whoever still has an array keeps the mapping alive through it; only the descriptor is ours to give back.
        if not getattr(self, "_closed", True):
            os.close(self._fd)
