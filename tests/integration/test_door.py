"""The door over real sockets, frame by frame: what a peer gets wrong costs itself and nobody else."""

from __future__ import annotations

import hashlib
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore import native

HEADER = struct.Struct("<IBBBBQ")
HELLO, LOOKUP, RESERVE, SEAL, HOLD, CALL, ERROR = 1, 2, 3, 5, 7, 32, 127
OK, STALE, REJECTED, BAD_INPUT, DENIED = 0, 1, 2, 3, 4
ANSWER = 4
MEMORY = 16 << 20
PARTS = [4096, 4096]
HINT = native.Hint()


class Rig:
    """A core and a door in this process; no node, no Python behind it. Reservations lapse where a test waits for it."""

    def __init__(
        self, folder: Path, *, trusted: bool, allowed: bool = True, lapse_ms: int = 30_000, **limits: int
    ) -> None:
        table = native.TableConfig(MEMORY, 1 << 20)
        meta_bytes = native.NodeCore.meta_bytes(table)
        self.meta = mmap.mmap(-1, meta_bytes)
        self._meta = np.frombuffer(self.meta, dtype=np.uint8)
        self.fd = os.memfd_create("payload")
        os.ftruncate(self.fd, MEMORY)
        self.core = native.NodeCore(
            table,
            None,
            meta=self._meta.ctypes.data,
            meta_bytes=meta_bytes,
            incarnation=5,
            reserve_lapse_ns=lapse_ms * 10**6,
        )
        self.path = str(folder / "s")
        self.peers: list[Peer] = []
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            listener.listen(16)
            uids = [os.getuid()]
            self.door = native.Door(
                self.core,
                listener.fileno(),
                self.fd,
                MEMORY,
                trusted_uids=uids if trusted else [],
                allowed_uids=uids if allowed else [],
                **limits,
            )
        self.listen()
        self.door.start()
        self.ns = self.core.open_namespace(bytes(32), 0, 16, [PARTS])

    def listen(self) -> None:
        """Further addresses, before it starts."""

    def stop(self) -> None:
        for peer in self.peers:
            peer.socket.close()
        self.door.stop()
        os.close(self.fd)

    def session(self) -> native.Session:
        session = native.Session(self.path)
        assert self.door.allow(session.info.session, self.ns)
        session.describe(self.ns, [PARTS])
        return session

    def peer(self, *, hello: bool = True) -> Peer:
        self.peers.append(Peer(self.path, hello=hello))
        return self.peers[-1]


class Peer:
    """A bare socket."""

    def __init__(self, path: str, *, hello: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(5)
        self.socket.connect(path)
        self.owner = 0
        if hello:
            self.hello()

    def hello(self) -> None:
        self.send(HELLO, struct.pack("<IBBHQ", 0x3153564B, 1, 1, 0, 0))
        verb, status, body = self.answer()
        assert (verb, status) == (HELLO, OK)
        (self.owner,) = struct.unpack_from("<Q", body, 8)

    def send(self, verb: int, body: bytes, flags: int = 0, *, said: int | None = None) -> None:
        length = len(body) if said is None else said
        self.socket.sendall(HEADER.pack(length, 1, verb, 0, flags, 7) + body)

    def answer(self) -> tuple[int, int, bytes]:
        length, _, verb, status, flags, _ = HEADER.unpack(self._read(HEADER.size))
        assert flags & ANSWER
        return verb, status, self._read(length)

    def closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            assert piece, "closed"
            data += piece
        return data


def field_of(body: bytes) -> str:
    _, length, _, _ = struct.unpack_from("<QHHI", body)
    return body[16 : 16 + length].decode()


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def chain(n: int, first: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    keys = [hashlib.sha256(struct.pack("<Q", first + i)).digest() for i in range(n)]
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(n, 32)


def put(rig: Rig, session: native.Session, n: int, first: int = 0) -> native.Result:
    data = np.full((n, sum(PARTS)), first % 251, dtype=np.uint8)
    addresses = np.array([row.ctypes.data for row in data], dtype=np.uint64)
    lengths = np.array([sum(PARTS)], dtype=np.uint64)
    return session.put(rig.ns, 0, chain(n, first), addresses, lengths, HINT, 5.0)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, trusted=True, hold_wait_ms_max=500, requests_per_connection_max=2)
    yield made
    made.stop()


def lookup(ns: int, keys: int, said: int | None = None) -> bytes:
    return struct.pack("<IIII", ns, keys if said is None else said, 0, 0) + bytes(32 * keys)


@pytest.mark.parametrize(
    ("verb", "body", "said", "field"),
    [
        (99, b"", None, "verb"),
        (9, bytes(16), None, "verb"),  # what 9 and 10 once meant is no more
        (10, bytes(16), None, "verb"),
        (HELLO, b"", None, "verb"),
        (LOOKUP, b"\0" * 15, None, "lookup"),
        (LOOKUP, lookup(0, 2, said=3), None, "keys"),
        (LOOKUP, lookup(0, 2, said=1 << 31), None, "keys"),
        (LOOKUP, struct.pack("<IIII", 0, 0, 1 << 30, 0), None, "needs"),
        (LOOKUP, struct.pack("<IIII", 0, 0, 1, 0) + bytes((0, 0, 9, 0, 0, 0, 0, 0)), None, "needs.kind"),
        (LOOKUP, b"", 1 << 31, "body_bytes"),
        (RESERVE, bytes(79), None, "keys"),
        (RESERVE, struct.pack("<IHHII", 0, 0, 2, 1, 0) + bytes(64 + 32) + struct.pack("<H", 1025), None, "meta"),
        (RESERVE, struct.pack("<IHHII24xbB6x", 0, 0, 0, 0, 0, 5, 0) + bytes(32), None, "hint"),
        (RESERVE, struct.pack("<IHHII", 0, 0, 4, 0, 0) + bytes(64), None, "flags"),
        (SEAL, struct.pack("<IIQ", 1 << 31, 0, 0), None, "tickets"),
        (SEAL, struct.pack("<IIQ", 2, 1, 0) + bytes(24), None, "checksums"),
        (HOLD, struct.pack("<IHBBIIII", 0, 0, 2, 0, 0, 0, 0, 0) + bytes(32), None, "kind"),
    ],
)
def test_a_malformed_frame_costs_its_own_connection(
    rig: Rig, verb: int, body: bytes, said: int | None, field: str
) -> None:
    bystander = rig.session()
    assert put(rig, bystander, 2).blocks == 2
    peer = rig.peer()
    peer.send(verb, body, said=said)
    told, status, why = peer.answer()
    assert (told, status, field_of(why)) == (ERROR, BAD_INPUT, field)
    assert peer.closed()
    peer.socket.close()
    assert bystander.lookup(rig.ns, chain(2), [], 5.0).blocks == 2
    assert rig.door.stats()["cut_malformed"] == 1
    eventually(lambda: rig.door.stats()["connections"] == 1)


def test_the_first_frame_is_a_hello(rig: Rig) -> None:
    peer = rig.peer(hello=False)
    peer.send(LOOKUP, lookup(0, 1))
    assert peer.answer()[0] == ERROR
    assert peer.closed()


def test_a_namespace_that_is_not_allowed_looks_like_one_that_is_not_there(rig: Rig) -> None:
    owner, stranger = rig.session(), native.Session(rig.path)
    assert put(rig, owner, 1).blocks == 1
    stranger.describe(rig.ns, [PARTS])
    answers = []
    for ns in (rig.ns, rig.ns + 1):
        stranger.describe(ns, [PARTS])
        looked, held = stranger.lookup(ns, chain(1), [], 5.0), stranger.view(ns, 0, chain(1), HINT, 0.0, 5.0)
        answers.append([(r.status, r.field, r.reason, r.blocks) for r in (looked, held)])
    assert answers[0] == answers[1]
    assert answers[0][0][0] == STALE
    rig.door.disallow(rig.ns)
    assert owner.lookup(rig.ns, chain(1), [], 5.0).status == STALE


def test_too_many_keys_are_refused_and_the_connection_lives(rig: Rig) -> None:
    session = rig.session()
    asked = session.lookup(rig.ns, chain(1).repeat(65_537, axis=0), [], 5.0)
    assert (asked.status, asked.field) == (REJECTED, "keys_per_call_max")
    assert session.lookup(rig.ns, chain(1), [], 5.0).status == OK


def test_rare_verbs_reach_python_and_are_limited(rig: Rig) -> None:
    peer = rig.peer()
    for _ in range(3):
        peer.send(CALL, struct.pack("<II", 4, 0) + b"ask")
    assert peer.answer()[:2] == (CALL, REJECTED)
    requests: list[native.Request] = []

    def came() -> bool:
        requests.extend(rig.door.take_requests(9))
        return len(requests) == 2

    eventually(came)
    assert (requests[0].owner, requests[0].method, requests[0].body, requests[0].trusted) == (
        peer.owner,
        4,
        b"ask",
        True,
    )
    assert rig.door.answer(peer.owner, requests[0].request, b"told")
    assert peer.answer() == (CALL, OK, b"told")
    assert rig.door.answer_error(peer.owner, requests[1].request, REJECTED, "what", "why", 3)
    assert field_of(peer.answer()[2]) == "what"
    peer.socket.close()
    eventually(lambda: [r.gone for r in rig.door.take_requests(9)] == [True])
    assert not rig.door.answer(peer.owner, 1, b"late")


def test_a_killed_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    rig = Rig(tmp_path, trusted=True, lapse_ms=200)
    try:
        killed_writer(rig)
    finally:
        rig.stop()


def killed_writer(rig: Rig) -> None:
    code = (
        "import sys,time,numpy as np; from kvstore import native\n"
        "s = native.Session(sys.argv[1]); print(s.info.session, flush=True); sys.stdin.readline()\n"
        "s.describe(0, [[4096, 4096]]); k = np.zeros((1, 32), dtype=np.uint8)\n"
        "r = s.reserve(0, 0, k, native.Hint(), 5.0); print(len(r.granted), flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, rig.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None and writer.stdin is not None
        rig.door.allow(int(writer.stdout.readline()), rig.ns)
        writer.stdin.write("\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "1\n"
        os.kill(writer.pid, signal.SIGSTOP)
        # Stopped past the lapse: what it may still write is kept from everybody.
        eventually(lambda: rig.core.stats(1)["lapsed_reservations"] == 1)
        assert rig.core.stats(1)["slots_retired"] == 1
        os.kill(writer.pid, signal.SIGKILL)
        eventually(lambda: rig.core.stats(1)["slots_retired"] == 0)
    rig.core.check_integrity(1)


def test_tokens_and_connections_are_limited(tmp_path: Path) -> None:
    rig = Rig(tmp_path, trusted=False, allowed=False, connections_max=2, hello_ms_max=2_000)
    try:
        rig.door.set_bearers([(hashlib.sha256(b"good").digest(), 41)])
        for token in (b"", b"bad"):
            with pytest.raises(PermissionError, match="token"):
                native.Session(rig.path, token)
        session = native.Session(rig.path, b"good")
        assert not session.info.trusted
        silent = rig.peer(hello=False)
        eventually(lambda: rig.door.stats()["connections"] == 2)
        with pytest.raises(ConnectionError, match="connections_max"):
            native.Session(rig.path, b"good")
        assert silent.closed()  # said nothing for hello_ms_max
        assert rig.door.stats()["refused_token"] == 2
        assert session.lookup(rig.ns, chain(1), [], 5.0).status == STALE
    finally:
        rig.stop()


def test_who_showed_a_token_that_is_no_more_is_ended(tmp_path: Path) -> None:
    digests = [(hashlib.sha256(token).digest(), i) for i, token in enumerate((b"old", b"kept"))]
    rig = Rig(tmp_path, trusted=False, allowed=False)
    try:
        rig.door.set_bearers(digests)
        old, kept = native.Session(rig.path, b"old"), native.Session(rig.path, b"kept")
        rig.door.set_bearers(digests[1:])
        eventually(lambda: rig.door.stats()["cut_token"] == 1)
        assert old.lookup(rig.ns, chain(1), [], 5.0).status == native.Status.UNAVAILABLE
        assert kept.lookup(rig.ns, chain(1), [], 5.0).status == STALE
        with pytest.raises(PermissionError, match="token"):
            native.Session(rig.path, b"old")
        rig.door.set_bearers([(digests[1][0], 7)])  # the same token, which gives something else now
        eventually(lambda: rig.door.stats()["cut_token"] == 2)
        assert kept.lookup(rig.ns, chain(1), [], 5.0).status == native.Status.UNAVAILABLE
        assert rig.door.stats()["connections"] == 0
    finally:
        rig.stop()


def test_a_trusted_peer_is_that_without_its_token(tmp_path: Path) -> None:
    rig = Rig(tmp_path, trusted=True)
    try:
        rig.door.set_bearers([(hashlib.sha256(b"some").digest(), 0)])
        session = native.Session(rig.path, b"some")
        rig.door.set_bearers([])
        with pytest.raises(PermissionError):
            native.Session(rig.path, b"some")
        assert session.lookup(rig.ns, chain(1), [], 5.0).status == STALE and rig.door.stats()["cut_token"] == 0
    finally:
        rig.stop()


@pytest.mark.parametrize(("trusted", "room"), [(False, 6), (True, 8)])
def test_strangers_leave_room_for_who_is_trusted(tmp_path: Path, trusted: bool, room: int) -> None:
    """Whoever may open the socket may connect to it; that alone keeps no engine out."""
    rig = Rig(tmp_path, trusted=trusted, allowed=False, connections_max=8)
    try:
        for i in range(room):
            rig.peer(hello=False)
            eventually(lambda i=i: rig.door.stats()["connections"] == i + 1)
        assert rig.peer(hello=False).answer()[0] == ERROR
        eventually(lambda: rig.door.stats()["refused_full"] == 1)
    finally:
        rig.stop()


def test_a_first_frame_is_small(tmp_path: Path) -> None:
    """Nobody has asked yet who that is: it is given no room."""
    rig = Rig(tmp_path, trusted=True)
    try:
        peer = rig.peer(hello=False)
        peer.socket.sendall(HEADER.pack(1 << 20, 1, HELLO, 0, 0, 7))
        assert peer.answer()[0] == ERROR and peer.closed()
    finally:
        rig.stop()


def test_a_peer_that_takes_no_answers_is_cut_off(tmp_path: Path) -> None:
    rig = Rig(tmp_path, trusted=False, stall_ms_max=300)
    try:
        peer = rig.peer()
        rig.door.allow(peer.owner, rig.ns)
        peer.socket.settimeout(0.2)
        question = HEADER.pack(16 + 32 * 1000, 1, LOOKUP, 0, 0, 7) + lookup(rig.ns + 1, 1000)
        with pytest.raises((TimeoutError, BrokenPipeError, ConnectionResetError)):
            while True:
                peer.socket.sendall(question)
        eventually(lambda: rig.door.stats()["cut_slow"] == 1)
        assert native.Session(rig.path).info.incarnation == 5
    finally:
        rig.stop()
