"""Native core of transfer. Import it through transfer.native only."""

from collections.abc import Sequence
from typing import Annotated

import numpy
import numpy.typing
from numpy.typing import NDArray


class MappedSegment:
    """
    `size` bytes of the file behind a descriptor, mapped shared. The descriptor stays the caller's; the segment keeps one of its own.
    Raises ValueError where the file is smaller than `size`, and OSError where the system refuses the mapping.
    """

    def __init__(self, fd: int, size: int, *, writable: bool) -> None: ...

    @staticmethod
    def create(size: int, *, name: str = 'segment') -> MappedSegment:
        """
        New zeroed memory without a name in any file system, allocated in full and sealed against truncation.
        """

    @property
    def address(self) -> int:
        """Where it is mapped in this process: writable, where it is that."""

    @property
    def size(self) -> int: ...

    @property
    def writable(self) -> bool: ...

    @property
    def closed(self) -> bool: ...

    def fileno(self) -> int:
        """The segment's own descriptor, closed with it."""

    def read_only_fd(self) -> int:
        """
        A new descriptor of the same file that cannot be mapped for writing; the caller closes it.
        """

    def array(self, offset: int, length: int) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,), writable=False)]:
        """
        A read-only view. Raises ValueError where it would reach beyond the segment.
        """

    def writable_array(self, offset: int, length: int) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]:
        """A view to write through. Raises ValueError for a read-only segment."""

    def close(self) -> None:
        """
        Unmaps. Raises BufferError, and changes nothing, while a view, an array or a region of it is alive.
        """

    def __enter__(self) -> MappedSegment: ...

    def __exit__(self, *args: object) -> None: ...

class GrantTable:
    def __init__(self, address: int, size: int, slots: int) -> None: ...

    @staticmethod
    def bytes(slots: int) -> int: ...

    @staticmethod
    def activity_bytes(slots: int) -> int: ...

    def issue(self, slot: int, generation: int, expiry_ns: int) -> None: ...

    def end(self, slot: int) -> None: ...

    def live(self, slot: int, generation: int, now_ns: int) -> bool: ...

def touches(address: int, size: int, slot: int) -> int:
    """How many copies of one connection touch a grant just now."""

class Peer:
    def __init__(self, table: int, table_bytes: int, activity: int, activity_bytes: int, quiet_fd: int) -> None: ...

    def set_gone(self) -> None: ...

class RemoteSpan:
    def __init__(self, peer: Peer, slot: int, generation: int, base: int, bytes: int, readable: bool, writable: bool, ranges: Annotated[NDArray[numpy.int64], dict(shape=(None, 2), order='C', device='cpu', writable=False)]) -> None: ...

    def covers(self, offset: int, length: int, writing: bool) -> int: ...

    def enter(self) -> int:
        """
        Counts the caller in and returns 0, or a Reason why not. leave() must follow a 0.
        """

    def leave(self) -> None: ...

def check_extents(writing: bool, locals: Sequence[tuple[int, int, bool]], remotes: Sequence[RemoteSpan], rows: numpy.typing.NDArray[numpy.int64]) -> numpy.typing.NDArray[numpy.uint8] | None:
    """
    A Reason a row of (local, local offset, remote, remote offset, length), or None when all may be copied.
    """

class CopyJob:
    def __init__(self, writing: bool, locals: Sequence[tuple[int, int, bool]], remotes: Sequence[RemoteSpan], rows: Annotated[NDArray[numpy.int64], dict(shape=(None, 5), order='C', device='cpu', writable=False)], slices: Annotated[NDArray[numpy.int64], dict(shape=(None, 4), order='C', device='cpu', writable=False)], parts: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], deadline_ns: int) -> None: ...

    def run(self) -> None:
        """Copies all of it in the calling thread."""

    @property
    def whole(self) -> bool: ...

    def states(self) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]: ...

    def leaves(self) -> Annotated[NDArray[numpy.uint64], dict(shape=(None,))]: ...

    def checksums(self) -> Annotated[NDArray[numpy.uint64], dict(shape=(None,))]: ...

class CopyPool:
    def __init__(self, workers: int, turn_slices: int) -> None: ...

    @property
    def fd(self) -> int: ...

    def submit(self, token: int, job: CopyJob) -> None: ...

    def stop(self, token: int, reason: int) -> None: ...

    def finished(self) -> list[int]: ...

    def close(self, wait_s: float) -> bool:
        """False: a thread has not come back; it is left to itself."""

def keep_forever(object: object) -> None:
    """
    For memory that a lost thread may still touch: never unmapped, not even at exit.
    """

class TcpTls:
    def __init__(self, certificate: str, key: str, ca: str) -> None:
        """
        Paths of PEM files, or ""; see native/tcp/tls.hpp. RuntimeError names the one at fault, or what is not installed.
        """

class TcpJob:
    def __init__(self, token: int, writing: bool, locals: Sequence[tuple[int, int, bool]], accesses: Sequence[tuple[int, int, bytes]], rows: Annotated[NDArray[numpy.int64], dict(shape=(None, 5), order='C', device='cpu', writable=False)], slices: Annotated[NDArray[numpy.int64], dict(shape=(None, 4), order='C', device='cpu', writable=False)], parts: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    @staticmethod
    def probe(token: int, accesses: Sequence[tuple[int, int, bytes]]) -> TcpJob:
        """Moves nothing; its states say of each access whether it is live."""

    @property
    def whole(self) -> bool: ...

    def states(self) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]: ...

    def leaves(self) -> Annotated[NDArray[numpy.uint64], dict(shape=(None,))]: ...

    def checksums(self) -> Annotated[NDArray[numpy.uint64], dict(shape=(None,))]: ...

class TcpEngine:
    def __init__(self, workers: int, grants_max: int, requests_max: int, spin_s_max: float, incarnation: bytes) -> None: ...

    @property
    def fd(self) -> int: ...

    def events(self) -> list[tuple[int, int, bytes]]:
        """
        (kind, id, text): 1 opened, with its incarnation; 2 closed, and why; 3 a finished job's token; 4 a grant is quiet.
        """

    def add_plain(self, connection: int, peer: int, fd: int) -> None:
        """
        Takes the descriptor over. connection: from 1, never again. peer 0: not known yet.
        """

    def add_tls(self, connection: int, peer: int, fd: int, context: TcpTls, name: str) -> None:
        """name: whom the peer's certificate must be of; "": we accept."""

    def set_peer(self, connection: int, peer: int) -> None: ...

    def drop(self, connection: int) -> None: ...

    def issue(self, slot: int, generation: int, expiry_ns: int, address: int, bytes: int, readable: bool, writable: bool, proof: bytes, ranges: Annotated[NDArray[numpy.int64], dict(shape=(None, 2), order='C', device='cpu', writable=False)]) -> None: ...

    def end(self, slot: int) -> None: ...

    def quiet(self, slot: int) -> bool: ...

    def submit(self, job: TcpJob, peer: int) -> None: ...

    def run(self, job: TcpJob, peer: int, deadline_ns: int) -> None:
        """Submits and waits in the calling thread; no event."""

    def stop(self, token: int, reason: int) -> None: ...

    def stats(self) -> tuple[int, int, int, int]:
        """
        Bytes that our batches read and wrote, and that peers read and wrote by our grants.
        """

    def close(self, wait_s: float) -> bool:
        """False: a thread has not come back; it is left to itself."""

class RdmaJob:
    def __init__(self, token: int, writing: bool, locals: Sequence[tuple[int, int, bool]], keys: Sequence[Sequence[int]], near: Sequence[int], windows: Sequence[tuple[int, int, Sequence[int]]], windows_of_rows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], rows: Annotated[NDArray[numpy.int64], dict(shape=(None, 5), order='C', device='cpu', writable=False)], slices: Annotated[NDArray[numpy.int64], dict(shape=(None, 4), order='C', device='cpu', writable=False)], parts: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    @property
    def whole(self) -> bool: ...

    def states(self) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]: ...

    def leaves(self) -> Annotated[NDArray[numpy.uint64], dict(shape=(None,))]: ...

    def checksums(self) -> Annotated[NDArray[numpy.uint64], dict(shape=(None,))]: ...

def rdma_missing() -> str:
    """Why verbs cannot be used natively; empty where they can."""

def rdma_connect(qp: int, *, gid: bytes, gid_index: int, is_global: bool, lid: int, peer_qpn: int, peer_psn: int, psn: int, mtu: int, reads: int, timeout: int, retries: int, serving: bool) -> None:
    """
    A fresh queue pair, to where it sends. May wait seconds. Raises OSError.
    """

def rdma_destroy(qp: int) -> None:
    """
    May wait seconds. Nothing of it is out, and nobody else destroys it. Raises OSError.
    """

def rdma_register(pd: int, address: int, bytes: int, device_address: int, *, write_here: bool, peer_reads: bool, peer_writes: bool, dma_buf: int = -1) -> tuple[int, int, int]:
    """
    (handle, local key, remote key). May wait while memory is pinned. dma_buf: a descriptor; `address` is then an offset in that buffer. Raises OSError.
    """

def rdma_deregister(handle: int) -> None:
    """Its keys open nothing any more when this returns. Raises OSError."""

class RdmaEngine:
    def __init__(self, window: int, tries_max: int, linger_s: float, spin_s: float) -> None: ...

    @property
    def fd(self) -> int: ...

    def events(self) -> list[tuple[int, int, int]]:
        """
        (kind, id, status): 1 a finished job's token; 2 a lane that is down, and what broke it; 3 an access that was refused; 4 a lane that takes slices from now on.
        """

    def add_device(self, cq: int) -> None: ...

    def add_lane(self, lane: int, peer: int, qp: int, device: int, peer_device: int, trial: tuple[int, int, int, int, int] | None = None) -> None:
        """
        trial: (address, key, address at the peer, its key, bytes) of a read that must land before the lane takes slices.
        """

    def drop_lane(self, lane: int) -> None: ...

    def give_up(self, peer: int, gone: bool) -> None: ...

    def forget(self, peer: int) -> None: ...

    def end_access(self, peer: int, access: int, reason: int) -> None: ...

    def submit(self, job: RdmaJob, peer: int) -> None: ...

    def stop(self, token: int, reason: int) -> None: ...

    def stats(self) -> tuple[int, int, int, int]:
        """
        Requests and bytes that landed, requests asked for again, lanes flushed for stopped batches.
        """

    def close(self, wait_s: float) -> bool:
        """False: a request has not come back; what it touches must stay."""
