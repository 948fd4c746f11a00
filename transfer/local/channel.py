"""Frames with descriptors over a Unix socket: how a local peer asks for a mapping. docs/format/local.md has the bytes.

Rules
- A frame is parsed with bounds in one place (`Frames`); what does not parse costs the connection and no more.
- Descriptors come with the frame that names them, in order. A side that takes none gets none.
- Never blocks; what cannot be sent at once waits, at most OUT_BYTES_MAX of it, else the connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from transfer.grants import DESCRIPTOR_BYTES_MAX

__all__ = ["Channel", "Frame", "FrameInvalid", "Frames", "Kind"]

_HEAD = struct.Struct("<IBBH")  # body bytes, kind, descriptors, 0
HEAD_BYTES = _HEAD.size
BODY_BYTES_MAX = DESCRIPTOR_BYTES_MAX + 64
OUT_BYTES_MAX = 8 << 20
FDS_MAX = 3
_READ_BYTES = 256 << 10


class Kind(IntEnum):
    HELLO = 1  # owner -> peer, with the grant table, the activity page and the quiet eventfd
    PRESENT = 2  # peer -> owner: request, descriptor
    GRANTED = 3  # owner -> peer: request, region, bytes; with the region's descriptor the first time
    REFUSED = 4  # owner -> peer: request, reason in words
    REGION_GONE = 5  # owner -> peer: region


_KINDS = frozenset(int(kind) for kind in Kind)


class FrameInvalid(Exception):
    """The other side does not speak this protocol."""


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Kind
    body: bytes
    fds: int


class Frames:
    """Cuts a stream of bytes into frames. No I/O."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are now whole. Raises FrameInvalid at the first byte that cannot be one."""
        self._bytes += data
        while len(self._bytes) >= HEAD_BYTES:
            size, kind, fds, zero = _HEAD.unpack_from(self._bytes)
            if size > BODY_BYTES_MAX or fds > FDS_MAX or zero != 0 or kind not in _KINDS:
                raise FrameInvalid(f"frame of kind {kind}, {size} bytes, {fds} descriptors")
            if len(self._bytes) < HEAD_BYTES + size:
                return
            body = bytes(self._bytes[HEAD_BYTES : HEAD_BYTES + size])
            del self._bytes[: HEAD_BYTES + size]
            yield Frame(Kind(kind), body, fds)


class Channel:
    """One end of a connection. `on_frame` gets each frame and its descriptors, which it then owns; `on_end` is called
    once, when the other side has gone, broke the protocol, or `close` was called.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        takes_fds: bool,
        on_frame: Callable[[Frame, list[int]], None],
        on_end: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._takes_fds = takes_fds
        self._on_frame = on_frame
        self._on_end = on_end
        self._frames = Frames()
        self._fds: deque[int] = deque()
        self._out: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._out_bytes = 0
        self._open = True
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def is_open(self) -> bool:
        return self._open

    def peer_uid(self) -> int:
        raw = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", raw)[1])

    def send(self, kind: Kind, body: bytes, fds: Sequence[int] = ()) -> None:
        """Queues a frame; the descriptors are duplicated, so the caller may close its own at once."""
        if not self._open:
            return
        kept = tuple(os.dup(fd) for fd in fds)
        frame = memoryview(_HEAD.pack(len(body), kind, len(kept), 0) + body)
        self._out.append((frame, kept))
        self._out_bytes += len(frame)
        if self._out_bytes > OUT_BYTES_MAX:
            self.close()
        elif len(self._out) == 1:
            self._flush()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, fds in self._out:
            _close_all(fds)
        _close_all(self._fds)
        self._out.clear()
        self._fds.clear()
        self._on_end()

    def _flush(self) -> None:
        try:
            while self._out:
                frame, fds = self._out[0]
                sent = socket.send_fds(self._sock, [frame], list(fds)) if fds else self._sock.send(frame)
                _close_all(fds)
                self._out_bytes -= sent
                if sent == len(frame):
                    self._out.popleft()
                else:
                    self._out[0] = (frame[sent:], ())
            self._loop.remove_writer(self._sock.fileno())
        except BlockingIOError:
            self._loop.add_writer(self._sock.fileno(), self._flush)
        except OSError:
            self.close()

    def _readable(self) -> None:
        try:
            if self._takes_fds:
                data, fds, flags, _ = socket.recv_fds(self._sock, _READ_BYTES, 4 * FDS_MAX, socket.MSG_CMSG_CLOEXEC)
                self._fds.extend(fds)
                if flags & socket.MSG_CTRUNC:
                    data = b""
            else:
                data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            for frame in self._frames.feed(data):
                if len(self._fds) < frame.fds:
                    raise FrameInvalid("descriptors are missing")
                self._on_frame(frame, [self._fds.popleft() for _ in range(frame.fds)])
                if not self._open:
                    return
        except FrameInvalid:
            self.close()


def _close_all(fds: Sequence[int] | deque[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
