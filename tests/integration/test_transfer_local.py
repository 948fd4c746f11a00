"""What the local transport does beyond the exam: views, stuck threads, readers that die, hostile connections."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from transfer.base import Batch, Extent
from transfer.errors import (
    GrantInvalid,
    LimitReached,
    PeerUnreachable,
    Reason,
    RegionPoisoned,
    StillTouched,
    TransferFailed,
    TransferLate,
)
from transfer.grants import Grant
from transfer.local import LocalConfig, LocalEndpoint, LocalTransport
from transfer.local.channel import BODY_BYTES_MAX, FrameInvalid, Frames, Kind
from transfer.native import MappedSegment
from transfer.regions import Region

SIZE = 1 << 20


class Both:
    """An owner with a segment, and a reader with memory, connected."""

    def __init__(self, owner: LocalTransport, reader: LocalTransport) -> None:
        self.owner, self.reader = owner, reader
        self.segment = MappedSegment.create(SIZE)
        self.content = self.segment.writable_array(0, SIZE)
        self.content[:] = np.random.default_rng(1).integers(0, 256, SIZE, dtype=np.uint8)
        self.memory = np.zeros(SIZE, dtype=np.uint8)
        self.source: Region
        self.target: Region
        self.endpoint: LocalEndpoint
        self.grant: Grant
        self.handle = 0

    async def connect(self) -> None:
        self.source = await self.owner.register(self.segment, name="source")
        self.target = await self.reader.register(self.memory, name="target")
        self.grant = await self.owner.grant(self.source, [(0, SIZE)], lifetime_s=600.0)
        self.endpoint = await self.reader.connect(self.owner.address, deadline_s=5.0)
        (presented,) = await self.endpoint.present([self.grant.descriptor], deadline_s=5.0)
        self.handle = presented.handle

    def batch(self, region: Region | None = None, length: int = SIZE) -> Batch:
        return Batch.of([(Extent((region or self.target).id, 0, length), Extent(self.handle, 0, length))])


@asynccontextmanager
async def both(owner: LocalConfig | None = None, reader: LocalConfig | None = None) -> AsyncIterator[Both]:
    made = Both(LocalTransport(owner), LocalTransport(reader))
    await made.connect()
    try:
        yield made
    finally:
        await made.reader.close()
        await made.owner.close()


async def test_a_view_is_the_peers_memory_and_holds_its_grant() -> None:
    async with both(LocalConfig(quiesce_max_s=0.1)) as made:
        view = made.endpoint.view(made.handle, 100, 1000)
        array = view.array
        assert (array == made.content[100:1100]).all()
        made.content[100] ^= 0xFF
        assert array[0] == made.content[100]
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(StillTouched):
            await made.owner.revoke([made.grant])
        with pytest.raises(BufferError, match="alive"):
            view.close()
        tail = array[500:].reshape(2, -1)[1]
        del array
        with pytest.raises(BufferError, match="alive"):
            view.close()
        with pytest.raises(BufferError, match="1 views"):
            await made.endpoint.close()
        del tail
        made.owner._config = LocalConfig()
        revoked = asyncio.ensure_future(made.owner.revoke([made.grant]))
        await asyncio.sleep(0.01)
        assert not revoked.done()
        view.close()
        await revoked
        with pytest.raises(ValueError, match="closed"):
            _ = view.array
        with pytest.raises(GrantInvalid, match="revoked"):
            made.endpoint.view(made.handle, 0, 1)


async def test_a_view_stays_within_its_grant() -> None:
    async with both() as made:
        for offset, length in [(SIZE, 1), (0, SIZE + 1)]:
            with pytest.raises(GrantInvalid, match="out_of_bounds"):
                made.endpoint.view(made.handle, offset, length)
        with pytest.raises(GrantInvalid):
            made.endpoint.view(made.handle + 1, 0, 1)


async def test_the_synchronous_face_does_what_the_other_does() -> None:
    async with both() as made:
        awaited = await made.endpoint.read(made.batch(), deadline_s=5.0, parts=[SIZE])
        made.memory[:] = 0
        landed = made.endpoint.copy_now(made.batch(), deadline_s=5.0, parts=[SIZE])
        assert (made.memory == made.content).all()
        assert landed.checksums.tolist() == awaited.checksums.tolist()
        with pytest.raises(TransferLate):
            made.endpoint.copy_now(made.batch(), deadline_s=0.0)
        with pytest.raises(TransferFailed) as caught:
            made.endpoint.copy_now(made.batch(), deadline_s=5.0, writing=True)
        assert caught.value.failures[0].reason is Reason.NOT_ALLOWED
        assert not made.target.busy


async def test_a_peer_that_is_gone_gives_nothing_more() -> None:
    async with both() as made:
        await made.owner.close()
        await asyncio.sleep(0.01)
        with pytest.raises(TransferFailed) as caught:
            await made.endpoint.read(made.batch(), deadline_s=5.0)
        assert caught.value.failures[0].reason in (Reason.PEER_GONE, Reason.REVOKED) and caught.value.elsewhere
        with pytest.raises(PeerUnreachable):
            await made.endpoint.present([made.grant.descriptor[:-1] + b"x", made.grant.descriptor], deadline_s=5.0)


def mappings() -> int:
    """How often segments are mapped in this process."""
    return Path("/proc/self/maps").read_text().count("memfd:segment")


async def test_a_deregistered_segment_is_unmapped_by_its_readers() -> None:
    async with both() as made:
        mapped = mappings()
        await made.owner.deregister(made.source)
        async with asyncio.timeout(10):
            while mappings() != mapped - 1:
                await asyncio.sleep(0.01)
        made.content = np.zeros(1, dtype=np.uint8)
        made.segment.close()


async def test_limits_answer_by_name() -> None:
    async with both(LocalConfig(grants_max=2, connections_max=1), LocalConfig(transfers_max=2)) as made:
        await made.owner.grant(made.source, [(0, 1)], lifetime_s=60.0)
        with pytest.raises(LimitReached) as grants:
            await made.owner.grant(made.source, [(0, 1)], lifetime_s=60.0)
        assert grants.value.limit == "grants_max"
        running = [made.endpoint.read(made.batch(), deadline_s=5.0) for _ in range(2)]
        with pytest.raises(LimitReached) as transfers:
            made.endpoint.read(made.batch(), deadline_s=5.0)
        assert transfers.value.limit == "transfers_max"
        for transfer in running:
            await transfer
        with pytest.raises(PeerUnreachable):
            await made.reader.connect(made.owner.address, deadline_s=5.0)


async def test_only_segments_are_granted_and_only_trusted_users_connect() -> None:
    async with both() as made:
        with pytest.raises(ValueError, match="private memory"):
            await made.reader.grant(made.target, [(0, 1)], lifetime_s=1.0)
        with pytest.raises(ValueError, match="not registered here"):
            await made.reader.grant(made.source, [(0, 1)], lifetime_s=1.0)
    strangers = LocalConfig(trusted_uids=frozenset((os.getuid() + 1,)))
    owner, reader = LocalTransport(strangers), LocalTransport()
    with pytest.raises(PeerUnreachable):
        await reader.connect(owner.address, deadline_s=5.0)
    choosy = LocalTransport(strangers)
    with pytest.raises(PeerUnreachable, match="trusted"):
        await choosy.connect(reader.address, deadline_s=5.0)
    for transport in (owner, reader, choosy):
        await transport.close()


async def test_a_path_is_taken_over_from_the_dead_only(tmp_path: Path) -> None:
    config = LocalConfig(path=str(tmp_path / "s"))
    first = LocalTransport(config)
    with pytest.raises(PeerUnreachable, match="another process"):
        LocalTransport(config)
    await first.close()
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(config.path)
    dead.close()
    second = LocalTransport(config)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    await second.close()
    assert not (tmp_path / "s").exists()


async def test_what_is_no_socket_of_ours_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("somebody's")
    with pytest.raises(PeerUnreachable, match="no socket"):
        LocalTransport(LocalConfig(path=str(path)))
    assert path.read_text() == "somebody's"
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(PeerUnreachable, match="no socket"):
        LocalTransport(LocalConfig(path=str(path)))
    path.unlink()
    transport = LocalTransport(LocalConfig(path=str(path)))
    path.unlink()
    path.write_text("a successor's")
    await transport.close()
    assert path.read_text() == "a successor's"


OTHER_USER = 65_534
AS_OTHER = """
import asyncio, os, sys
import numpy as np
from transfer.base import Batch, Extent
from transfer.errors import PeerUnreachable
from transfer.local import LocalConfig, LocalTransport
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
async def main():
    reader = LocalTransport(LocalConfig(trusted_uids=frozenset({0, os.getuid()})))
    try:
        endpoint = await reader.connect(sys.argv[2], deadline_s=10.0)
        (presented,) = await endpoint.present([bytes.fromhex(sys.argv[3])], deadline_s=10.0)
        memory = np.zeros(1000, np.uint8)
        region = await reader.register(memory)
        await endpoint.read(Batch.of([(Extent(region.id, 0, 1000), presented.extent(7, 1000))]), deadline_s=10.0)
        print(memory.tobytes().hex())
    except PeerUnreachable:
        print("refused")
    await reader.close()
asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
@pytest.mark.parametrize("named", [True, False])
async def test_trusted_users_reach_the_socket_and_nobody_else_does(named: bool) -> None:
    """Also where the mode lets anybody knock: it is open for one user, and the kernel tells who another one is."""
    trusted = frozenset({0, OTHER_USER if named else OTHER_USER - 1})
    async with both(LocalConfig(trusted_uids=trusted)) as made:
        assert os.stat(made.owner.address.removeprefix("unix:")).st_mode & 0o777 == 0o666  # noqa: PTH116
        asked = [str(OTHER_USER), made.owner.address, made.grant.descriptor.hex()]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", AS_OTHER, *asked, stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            out, _ = await process.communicate()
        expected = made.content[7:1007].tobytes().hex() if named else "refused"
        assert out.decode().split() == [expected]


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("<IBBH", BODY_BYTES_MAX + 1, Kind.PRESENT, 0, 0),
        struct.pack("<IBBH", 4, 99, 0, 0) + b"abcd",
        struct.pack("<IBBH", 4, Kind.PRESENT, 3, 0) + b"abcd",
        struct.pack("<IBBH", 4, Kind.PRESENT, 0, 7) + b"abcd",
        struct.pack("<IBBH", 2, Kind.PRESENT, 0, 0) + b"ab",
        struct.pack("<IBBH", 4, Kind.HELLO, 0, 0) + b"abcd",
    ],
)
async def test_a_malformed_frame_costs_its_own_connection_only(frame: bytes) -> None:
    async with both() as made:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as raw:
            raw.setblocking(False)
            await loop.sock_connect(raw, made.owner.address.removeprefix("unix:"))
            await loop.sock_sendall(raw, frame)
            while await asyncio.wait_for(loop.sock_recv(raw, 4096), 5.0):
                pass  # the greeting, then the end
        landed = await made.endpoint.read(made.batch(), deadline_s=5.0)
        assert landed.bytes == SIZE


def test_frames_are_the_same_however_they_arrive() -> None:
    stream = b"".join(struct.pack("<IBBH", n, Kind.REFUSED, 0, 0) + bytes(n) for n in (0, 1, 500, 4))
    whole = list(Frames().feed(stream))
    one_by_one = Frames()
    assert [frame for byte in stream for frame in one_by_one.feed(bytes((byte,)))] == whole
    assert [len(frame.body) for frame in whole] == [0, 1, 500, 4]
    with pytest.raises(FrameInvalid):
        list(Frames().feed(b"GET / HTTP/1.1\r\n\r\n"))


READER = """
import asyncio, sys
from transfer.local import LocalConfig, LocalTransport
async def main():
    reader = LocalTransport(LocalConfig(path=sys.argv[3]))
    endpoint = await reader.connect(sys.argv[1], deadline_s=10.0)
    (presented,) = await endpoint.present([bytes.fromhex(sys.argv[2])], deadline_s=10.0)
    view = endpoint.view(presented.handle, 0, 1)
    print("holding", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_a_reader_that_dies_touches_nothing_and_one_that_stops_may(tmp_path: Path) -> None:
    async with both(LocalConfig(quiesce_max_s=0.2)) as made:
        other = await made.owner.grant(made.source, [(0, 10)], lifetime_s=600.0)
        arguments = [made.owner.address, other.descriptor.hex(), str(tmp_path / "reader")]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", READER, *arguments, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readline(), 30.0) == b"holding\n"
            process.send_signal(signal.SIGSTOP)
            with pytest.raises(StillTouched):
                await made.owner.revoke([other])
            process.kill()
            await process.wait()
            await asyncio.sleep(0.05)
            await made.owner.revoke([other])
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


# Linux's userfaultfd: a page of ours on which the copying thread stops until we say so, as it would on a dead disk.
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04
SYS_USERFAULTFD = 323


class StuckPages:
    """Memory that nobody can touch until `release`."""

    def __init__(self, size: int) -> None:
        fd = ctypes.CDLL(None, use_errno=True).syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
        if fd < 0:
            pytest.skip(f"userfaultfd: {errno.errorcode[ctypes.get_errno()]}")
        self._fd = fd
        self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._start = np.frombuffer(self.map, dtype=np.uint8).ctypes.data
        self._size = size
        fcntl.ioctl(fd, UFFDIO_API, bytearray(struct.pack("<QQQ", 0xAA, 0, 0)))
        fcntl.ioctl(fd, UFFDIO_REGISTER, bytearray(struct.pack("<QQQQ", self._start, size, 1, 0)))

    def release(self) -> None:
        fcntl.ioctl(self._fd, UFFDIO_ZEROPAGE, bytearray(struct.pack("<QQQq", self._start, self._size, 0, 0)))
        os.close(self._fd)


async def test_a_stuck_thread_poisons_its_region_and_nothing_else() -> None:
    """The bound on waiting, with a thread that really does not come back."""
    pages = StuckPages(SIZE)
    poisoned: list[Region] = []
    async with both(reader=LocalConfig(quiesce_max_s=0.2, workers=2)) as made:
        region = await made.reader.register(pages.map, name="stuck", on_poison=poisoned.append)
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(TransferLate) as caught:
            await made.endpoint.read(made.batch(region), deadline_s=0.1)
        assert 0.25 < loop.time() - started < 5.0
        assert caught.value.poisoned and poisoned == [region]
        with pytest.raises(RegionPoisoned):
            made.endpoint.read(made.batch(region), deadline_s=0.1)
        landed = await made.endpoint.read(made.batch(), deadline_s=5.0)  # on the other thread
        assert landed.bytes == SIZE and (made.memory == made.content).all()
        with pytest.raises(StillTouched):
            made.owner._config = LocalConfig(quiesce_max_s=0.1)
            await made.owner.revoke([made.grant])
        with pytest.raises(RegionPoisoned, match="stuck"):
            await made.reader.deregister(region)
        pages.release()
        await made.owner.revoke([made.grant])  # the thread is back
        with pytest.raises(RegionPoisoned, match="stuck"):
            await made.reader.close()
