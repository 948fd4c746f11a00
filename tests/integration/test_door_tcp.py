"""The framed door by TCP: who comes in, what TLS lets in, and what a peer that misbehaves costs (itself)."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509

from kvstore import native
from kvstore.wire import peers
from tests.certificates import Authority, Pair
from tests.integration.test_door import (
    ANSWER,
    BAD_INPUT,
    ERROR,
    HEADER,
    HELLO,
    LOOKUP,
    STALE,
    Rig,
    chain,
    eventually,
    field_of,
)

REFUSED_BYTES = 16 + len("ns") + len("not open")  # of a lookup in a namespace that is not open
HELLO_BODY = struct.pack("<IBBHQ", 0x3153564B, 1, 1, 0, 0)


class TcpRig(Rig):
    """A door that listens by TCP, too. Trusts its own user, who is nobody there."""

    def __init__(self, folder: Path, tls: native.Tls | None = None, host: str = "127.0.0.1", **limits: int) -> None:
        self.tls, self.host = tls, host
        self.bares: list[socket.socket] = []
        super().__init__(folder, trusted=True, **limits)

    def listen(self) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family) as listener:
            listener.bind((self.host, 0))
            listener.listen(128)
            self.port = listener.getsockname()[1]
            self.door.listen_tcp(listener.fileno(), self.tls)

    def far(self, token: bytes = b"", *, tls: native.Tls | None = None, connect_s: float = 5.0) -> native.Session:
        return native.Session(token=token, connect_s=connect_s, host=self.host, port=self.port, tls=tls)

    def bare(self) -> socket.socket:
        self.bares.append(socket.create_connection((self.host, self.port), timeout=5))
        return self.bares[-1]

    def stop(self) -> None:
        for sock in self.bares:
            sock.close()
        super().stop()

    def serves(self) -> bool:
        """Whether it still does what it is for."""
        return self.session().lookup(self.ns, chain(1), [], 5.0).status == 0


@contextlib.contextmanager
def door(folder: Path, tls: native.Tls | None = None, **limits: int) -> Iterator[TcpRig]:
    folder.mkdir(exist_ok=True)
    rig = TcpRig(folder, tls, **limits)  # type: ignore[arg-type]
    try:
        yield rig
    finally:
        rig.stop()


def files(authority: Authority | None = None, own: Pair | None = None) -> native.Tls:
    certificate, key = (str(own.certificate), str(own.private_key)) if own else ("", "")
    return native.Tls(certificate, key, str(authority.path) if authority else "")


def answer(sock: socket.socket) -> tuple[int, int, bytes]:
    head = sock.recv(HEADER.size, socket.MSG_WAITALL)
    length, _, verb, status, flags, _ = HEADER.unpack(head)
    assert flags & ANSWER
    return verb, status, sock.recv(length, socket.MSG_WAITALL)


def ended(sock: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return sock.recv(1) == b""
    return True


# ---- who comes in -------------------------------------------------------------------------------------------------


def test_who_shows_nothing_comes_in_where_nobody_must(tmp_path: Path) -> None:
    with door(tmp_path, anonymous_over_tcp=True) as rig:
        session = rig.far()
        assert not session.info.trusted
        assert session.lookup(rig.ns, chain(1), [], 5.0).status == STALE  # nothing was allowed to it
        session.submit_call(1, 9, b"who", 5.0)
        request = asked(rig)
        assert request.remote and not request.trusted and request.token == -1 and request.names == []
        assert rig.door.allow(session.info.session, rig.ns)
        assert session.lookup(rig.ns, chain(1), [], 5.0).status == 0
        eventually(lambda: rig.door.stats()["remote"] == 1)
        session.close()
        del session
        eventually(lambda: rig.door.stats()["remote"] == 0)


def test_a_token_says_who_it_is(tmp_path: Path) -> None:
    with door(tmp_path) as rig:
        rig.door.set_bearers([(hashlib.sha256(b"good").digest(), 41)])
        for token in (b"", b"bad"):
            with pytest.raises(PermissionError, match="token"):
                rig.far(token)
        eventually(lambda: rig.door.stats()["refused_token"] == 2)
        session = rig.far(b"good")
        session.submit_call(1, 9, b"who", 5.0)
        request = asked(rig)
        assert request.remote and request.token == 41
        rig.door.set_bearers([])
        eventually(lambda: rig.door.stats()["cut_token"] == 1)
        assert session.lookup(rig.ns, chain(1), [], 5.0).status == native.Status.UNAVAILABLE
        assert rig.serves()


def test_ipv6(tmp_path: Path) -> None:
    rig = TcpRig(tmp_path, host="::1", anonymous_over_tcp=True)
    try:
        assert not rig.far().info.trusted
    finally:
        rig.stop()


# ---- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ca")


def test_tls_carries_everything(tmp_path: Path, authority: Authority) -> None:
    """Requests and answers that go at once, larger than any buffer, on one connection of several threads."""
    own = files(None, authority.sign("node", server=True))
    bodies = [np.random.default_rng(i).bytes(3 << 20) for i in range(12)]
    with door(tmp_path, own, anonymous_over_tcp=True, spin_us_max=0) as rig, ThreadPoolExecutor(5) as pool:
        session = rig.far(tls=files(authority))
        echoed = pool.submit(echo, rig, len(bodies))
        told = [pool.submit(session.call, 9, body, 20.0) for body in bodies]
        assert [one.result().body for one in told] == [body[::-1] for body in bodies]
        echoed.result()
        session.close()


@pytest.mark.parametrize(("asked_for", "pause_s"), [(400, 0.0), (200_000, 0.0), (200_000, 0.3)])
def test_nothing_stays_in_tls_that_the_door_has_not_looked_at(
    tmp_path: Path, authority: Authority, asked_for: int, pause_s: float
) -> None:
    """Frames that share records with others, more than any buffer has room for, and of a peer that takes its answers
    late: when the socket has nothing more to tell, TLS still has.
    """
    own = files(None, authority.sign("node", server=True))
    context = ssl.create_default_context(cafile=authority.path)
    hello = HEADER.pack(16, 1, HELLO, 0, 0, 7) + HELLO_BODY
    asks = (HEADER.pack(16, 1, LOOKUP, 0, 0, 7) + struct.pack("<IIII", 0, 0, 0, 0)) * asked_for
    with (
        door(tmp_path, own, anonymous_over_tcp=True) as rig,
        ThreadPoolExecutor(1) as pool,
        context.wrap_socket(rig.bare(), server_hostname="localhost") as sealed,
    ):
        left = HEADER.size + 64 + asked_for * (HEADER.size + REFUSED_BYTES)
        sending = pool.submit(sealed.sendall, hello + asks)
        time.sleep(pause_s)
        while left:
            left -= len(sealed.recv(1 << 16))
        sending.result()


def test_submitted_calls_go_by_tls_too(tmp_path: Path, authority: Authority) -> None:
    own = files(None, authority.sign("node", server=True))
    with door(tmp_path, own, anonymous_over_tcp=True) as rig:
        session = rig.far(tls=files(authority))
        assert rig.door.allow(session.info.session, rig.ns)
        for token in range(100):
            session.submit_lookup(token, rig.ns, chain(50), [], 5.0)
        done: list[native.Result] = []
        eventually(lambda: len(done.extend(session.take_completions()) or done) == 100)
        assert {result.status for result in done} == {0}


def test_a_child_after_fork_leaves_its_parents_connection_alone(tmp_path: Path, authority: Authority) -> None:
    own = files(None, authority.sign("node", server=True))
    with door(tmp_path, own, anonymous_over_tcp=True) as rig:
        session = rig.far(tls=files(authority))
        assert rig.door.allow(session.info.session, rig.ns)
        child = os.fork()
        if child == 0:
            del session
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(0.05)
        assert session.lookup(rig.ns, chain(1), [], 5.0).status == 0


def test_a_node_that_is_not_believed_is_not_spoken_to(tmp_path: Path, authority: Authority) -> None:
    other = Authority(tmp_path, "other")
    stale, foreign = authority.sign("old", server=True, days=-1), authority.sign("elsewhere")
    for pair, ca, why in (
        (authority.sign("node", server=True), other, "unable to get local issuer|self.signed"),
        (authority.sign("node", server=True), None, "unable to get local issuer|self.signed"),  # the system's
        (stale, authority, "expired"),
        (foreign, authority, "IP address mismatch|purpose|unsuitable"),
    ):
        with (
            door(tmp_path / (ca_name := f"{why[:4]}{id(ca)}"), files(None, pair), anonymous_over_tcp=True) as rig,
            pytest.raises(ConnectionError, match=why),
        ):
            assert ca_name
            rig.far(b"secret", tls=files(ca))


def test_a_client_shows_what_the_door_asks_for(tmp_path: Path, authority: Authority) -> None:
    other = Authority(tmp_path, "other")
    node, mine, unknown, foreign = (
        authority.sign("node", server=True),
        authority.sign("mine"),
        authority.sign("unknown"),
        other.sign("foreign"),
    )
    with door(tmp_path, files(authority, node)) as rig:
        rig.door.set_bearers([(hashlib.sha256(b"good").digest(), 3)], [("mine", 5)])
        for wrong, why in ((None, "certificate required|handshake failure|reset"), (foreign, "unknown ca|reset")):
            with pytest.raises(ConnectionError, match=f"(?i){why}"):
                rig.far(tls=files(authority, wrong))
        eventually(lambda: rig.door.stats()["cut_tls"] == 2)
        with pytest.raises(PermissionError, match="certificate"):
            rig.far(tls=files(authority, unknown))
        for pair, token, number in ((mine, b"", 5), (unknown, b"good", 3)):
            session = rig.far(token, tls=files(authority, pair))
            session.submit_call(1, 9, b"who", 5.0)
            request = asked(rig)
            assert (request.token, request.names) == (number, [pair.certificate.stem, pair.certificate.stem])
        session = rig.far(tls=files(authority, mine))
        rig.door.set_bearers([])
        eventually(lambda: rig.door.stats()["cut_token"] >= 1)
        assert session.lookup(rig.ns, chain(1), [], 5.0).status == native.Status.UNAVAILABLE


def test_names_are_those_of_every_kind(tmp_path: Path, authority: Authority) -> None:
    node = authority.sign("node", server=True)
    kinds = (x509.RFC822Name("a@b.example"), x509.UniformResourceIdentifier("spiffe://us/node"))
    places = (x509.IPAddress(ipaddress.ip_address("192.0.2.7")), x509.IPAddress(ipaddress.ip_address("2001:db8::1")))
    pair = authority.sign("several", also=(*kinds, *places))
    with door(tmp_path, files(authority, node), certified_over_tcp=True) as rig:
        session = rig.far(tls=files(authority, pair))
        session.submit_call(1, 9, b"who", 5.0)
        assert asked(rig).names == [
            "several",
            "a@b.example",
            "spiffe://us/node",
            "192.0.2.7",
            "2001:db8::1",
            "several",
        ]


def test_clear_text_and_tls_do_not_meet_and_say_so(tmp_path: Path, authority: Authority) -> None:
    own = files(None, authority.sign("node", server=True))
    with door(tmp_path, own, anonymous_over_tcp=True) as rig:
        for token in (b"", b"sixsix"):  # a HELLO of 22 bytes begins with the byte that a TLS handshake begins with
            with pytest.raises(ConnectionError, match="tls: this door speaks TLS"):
                rig.far(token)
        eventually(lambda: rig.door.stats()["cut_tls"] == 2)
    with door(tmp_path / "clear", anonymous_over_tcp=True) as rig:
        with pytest.raises(
            ConnectionError,
            match=r"does not speak it; it says: tls: this door speaks clear text|wrong version.*speak TLS\?",
        ):
            rig.far(tls=files(authority))
        eventually(lambda: rig.door.stats()["cut_malformed"] == 1)
    with socket.create_server(("127.0.0.1", 0)) as nobody, ThreadPoolExecutor(1) as pool:
        hung_up = pool.submit(hang_up, nobody)
        with pytest.raises(ConnectionError, match=r"does (it|the peer) speak TLS\?|reset"):
            native.Session(host="127.0.0.1", port=nobody.getsockname()[1], tls=files(authority))
        hung_up.result()


def test_other_files_hold_for_connections_from_then_on(tmp_path: Path, authority: Authority) -> None:
    second = Authority(tmp_path, "second")
    with door(tmp_path, files(None, authority.sign("node", server=True)), anonymous_over_tcp=True) as rig:
        before = rig.far(tls=files(authority))
        rig.door.renew_tls(files(None, second.sign("node2", server=True)))
        with pytest.raises(ConnectionError, match="certificate"):
            rig.far(tls=files(authority))
        rig.far(tls=files(second))
        assert before.lookup(rig.ns, chain(1), [], 5.0).status == STALE
        with pytest.raises(ValueError, match="shows a certificate"):
            rig.door.renew_tls(files(second))
        rig.far(tls=files(second))


def test_files_that_are_no_good_are_named(tmp_path: Path, authority: Authority) -> None:
    pair, other = authority.sign("node", server=True), authority.sign("other")
    nothing = tmp_path / "nothing"
    nothing.write_text("no PEM")
    for certificate, key, ca, named in (
        (nothing, pair.private_key, "", "nothing"),
        (pair.certificate, nothing, "", "nothing"),
        (pair.certificate, other.private_key, "", "other"),
        (tmp_path / "absent", pair.private_key, "", "absent"),
        ("", "", nothing, "nothing"),
    ):
        with pytest.raises(RuntimeError, match=named):
            native.Tls(str(certificate), str(key), str(ca))


# ---- peers that misbehave -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [False, True])
def test_who_says_nothing_in_time_is_cut_off(tmp_path: Path, authority: Authority, sealed: bool) -> None:
    own = files(None, authority.sign("node", server=True)) if sealed else None
    with door(tmp_path, own, anonymous_over_tcp=True, hello_ms_max=2_000) as rig:
        silent = rig.bare()
        halfway = rig.bare()  # in the middle of a frame, or of a handshake
        halfway.sendall(b"\x16\x03\x01\x02\x00\x01" if sealed else HEADER.pack(16, 1, HELLO, 0, 0, 7))
        assert rig.serves()
        assert ended(silent) and ended(halfway)
        eventually(lambda: rig.door.stats()["cut_hello"] == 2 and rig.door.stats()["remote"] == 0)


def test_a_handshake_without_a_hello_is_cut_off(tmp_path: Path, authority: Authority) -> None:
    own = files(None, authority.sign("node", server=True))
    context = ssl.create_default_context(cafile=authority.path)
    with door(tmp_path, own, anonymous_over_tcp=True, hello_ms_max=2_000) as rig:
        with context.wrap_socket(rig.bare(), server_hostname="localhost") as sealed:
            assert sealed.version() == "TLSv1.3"
            assert ended(sealed)  # type: ignore[arg-type]
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            context.wrap_socket(rig.bare(), server_hostname="localhost")
        assert rig.serves()


@pytest.mark.parametrize(
    "rubbish", [b"\x16" + bytes(4_000), b"\x16\x03\x01\xff\xff" + b"x" * 70_000, b"GET / HTTP/1.1\r\n\r\n"]
)
def test_rubbish_costs_its_own_connection(tmp_path: Path, authority: Authority, rubbish: bytes) -> None:
    own = files(None, authority.sign("node", server=True))
    for tls in (own, None):
        with door(tmp_path / str(tls is None), tls, anonymous_over_tcp=True) as rig:
            good = rig.far(tls=files(authority) if tls else None)
            for _ in range(20):
                with rig.bare() as sock, contextlib.suppress(ConnectionError):
                    sock.sendall(rubbish)
                    while sock.recv(4096):
                        pass
            assert good.lookup(rig.ns, chain(1), [], 5.0).status == STALE and rig.serves()
            eventually(lambda rig=rig: rig.door.stats()["remote"] == 1)


def test_a_wrong_frame_costs_its_connection_and_its_field_is_named(tmp_path: Path) -> None:
    with door(tmp_path, anonymous_over_tcp=True) as rig, rig.bare() as sock:
        sock.sendall(HEADER.pack(16, 1, HELLO, 0, 0, 7) + HELLO_BODY)
        assert answer(sock)[:2] == (HELLO, 0)
        sock.sendall(HEADER.pack(0, 1, 99, 0, 0, 8))
        verb, status, body = answer(sock)
        assert (verb, status, field_of(body)) == (ERROR, BAD_INPUT, "verb")
        assert ended(sock)


def test_who_takes_nothing_of_its_answers_is_cut_off(tmp_path: Path) -> None:
    limits = {"stall_ms_max": 300, "queue_bytes_max": 1 << 20}
    with door(tmp_path, anonymous_over_tcp=True, **limits) as rig, rig.bare() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(HEADER.pack(16, 1, HELLO, 0, 0, 7) + HELLO_BODY)
        answer(sock)
        sock.setblocking(False)
        asks = HEADER.pack(16, 1, LOOKUP, 0, 0, 7) + struct.pack("<IIII", rig.ns, 0, 0, 0)
        until = time.monotonic() + 20
        while rig.door.stats()["cut_slow"] == 0:
            assert time.monotonic() < until
            with contextlib.suppress(BlockingIOError, ConnectionError):
                sock.send(asks * 1_000)
        assert rig.serves()


def test_connections_are_limited_and_many_are_served(tmp_path: Path, authority: Authority) -> None:
    own = files(None, authority.sign("node", server=True))
    with door(tmp_path, own, anonymous_over_tcp=True, connections_max=128) as rig:
        with ThreadPoolExecutor(16) as pool:
            tls = files(authority)
            sessions = list(pool.map(lambda _: rig.far(tls=tls, connect_s=30.0), range(96)))
        assert {one.lookup(rig.ns, chain(1), [], 5.0).status for one in sessions} == {STALE}
        # It says so at once, in clear text: mostly before the handshake begins, and then the text is understood.
        with pytest.raises(ConnectionError, match=r"connections_max: too many connections|wrong version"):
            rig.far(tls=tls)
        assert rig.serves()  # the last quarter is the node's own user's
        eventually(lambda: rig.door.stats()["refused_full"] == 1)
        del sessions
        eventually(lambda: rig.door.stats()["remote"] == 0)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_door_that_stops_ends_whoever_is_there(tmp_path: Path, authority: Authority, sealed: bool) -> None:
    own = files(None, authority.sign("node", server=True)) if sealed else None
    rig = TcpRig(tmp_path, own, anonymous_over_tcp=True)
    session, silent = rig.far(tls=files(authority) if sealed else None), rig.bare()
    session.submit_call(7, 9, b"waits", 30.0)
    asked(rig)
    rig.door.stop()
    done: list[native.Result] = []
    eventually(lambda: bool(done.extend(session.take_completions()) or done))
    assert done[0].status == native.Status.UNAVAILABLE and ended(silent)
    rig.stop()
    with pytest.raises(ConnectionError):
        rig.far()


def test_what_a_node_asks_of_claims_is_answered_from_them_while_they_answer(tmp_path: Path) -> None:
    method, ns, key = 37, b"n" * 32, b"k" * 16
    question = peers.PeerLocateRequest(namespace=ns, keys=key, spread=1).SerializeToString()
    table = native.ClaimTable(100, 1)
    number = table.add_node()
    table.name_node(number, b"holder".ljust(16, b"."))
    row = np.frombuffer(key, np.uint8).reshape(1, 16), np.ones(1, np.uint64), np.ones(1, np.uint8)
    table.apply(number, native.namespace_word(ns), *row)
    table.answer_until(time.monotonic_ns() + 60 * 10**9, 7, 4)
    with door(tmp_path / "door", anonymous_over_tcp=True) as rig:
        node, stranger = rig.far(), rig.far()
        rig.door.answer_locates(node.info.session, method, table)
        told = peers.PeerLocateResponse.FromString(node.call(method, question, 5.0).body)
        assert (list(told.nodes), told.counts, told.tiers, told.view) == ([b"holder".ljust(16, b".")], b"\1", b"\1", 7)
        eventually(lambda: rig.door.stats()["located"] == 1)

        def python(session: native.Session, method: int, body: bytes) -> None:
            """It is Python's to answer."""
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(session.call, method, body, 5.0)
                echo(rig, 1)
                assert answer.result().body == body[::-1]

        python(stranger, method, question)
        python(node, method + 1, question)
        python(node, method, question + b"\x48\x01")
        table.answer_until(0, 7, 4)
        python(node, method, question)
        assert rig.door.stats()["located"] == 1


def hang_up(listener: socket.socket) -> None:
    listener.accept()[0].close()


def asked(rig: TcpRig) -> native.Request:
    taken: list[native.Request] = []
    eventually(lambda: bool(taken.extend(one for one in rig.door.take_requests(8) if not one.gone) or taken))
    return taken[0]


def echo(rig: TcpRig, count: int) -> None:
    """Answers so many requests with their bytes the other way round."""
    for _ in range(count):
        taken: list[native.Request] = []
        eventually(lambda taken=taken: bool(taken or taken.extend(rig.door.take_requests(1)) or taken))
        assert rig.door.answer(taken[0].owner, taken[0].request, taken[0].body[::-1])
