"""Who comes in where nodes have addresses beyond loopback: nobody without a certificate of the authority, on any port,
and none of those ports is opened without one.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore import native
from kvstore.cli import EXIT_NOT_JOINED
from kvstore.client.tls import Tls
from kvstore.wire import store
from tests.certificates import Authority, Pair
from tests.cluster_rig.links import Machine, needs_network
from tests.cluster_rig.rig import BYTES, FRAMED, GRPC, METRICS, NodeThere, Rig
from tests.etcd_server import needs_etcd
from tests.integration.nodes import eventually
from tests.integration.test_cluster import GONE, refusal, seen, states

pytestmark = [needs_network, needs_etcd]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
# Each door by its port: what a caller says first, and whether the door speaks before it has heard all of it.
DOORS = {"framed": FRAMED, "gRPC": GRPC, "metrics": METRICS, "bytes": BYTES}
FIRST = {FRAMED: b"", GRPC: PREFACE, METRICS: b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n", BYTES: b""}
BLOCKS = 8


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("doors"), count=2, spare=("x",), memory="4MiB") as rig:
        yield rig


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "strange")


def is_let_in(machine: Machine, address: str, port: int, context: ssl.SSLContext, ends_within_s: float = 4.0) -> bool:
    """Whether the door goes on with who has said its first words, or ends the connection: sooner than it would that of
    who says no more, which is 5 s. By TLS 1.3 a client learns that its certificate is not liked only after its side of
    the handshake.
    """

    def asked() -> bool:
        with socket.create_connection((address, port), 5) as plain:
            try:
                with context.wrap_socket(plain) as at:
                    at.sendall(FIRST[port])
                    at.settimeout(ends_within_s)
                    return at.recv(1) != b""
            except TimeoutError:
                return True  # it waits for us to go on
            except OSError:
                return False

    return machine.do(asked)


def said_in_the_clear(machine: Machine, address: str, port: int) -> bytes:
    """Until the door ends the connection."""

    def asked() -> bytes:
        said = b""
        with socket.create_connection((address, port), 5) as at:
            at.settimeout(8.0)
            with contextlib.suppress(ConnectionError):
                at.sendall(FIRST[port] or b"GET / HTTP/1.1\r\n\r\n")
                while more := at.recv(4096):
                    said += more
        return said

    return machine.do(asked)


def context_of(pair: Pair | None, authority: Path, port: int) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority))
    context.check_hostname = False
    if port == GRPC:
        context.set_alpn_protocols(["h2"])
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.private_key)
    return context


@pytest.mark.parametrize("door", DOORS)
def test_a_port_knows_its_own_and_nobody_else(rig: Rig, stranger: Authority, door: str) -> None:
    port, address, machine = DOORS[door], rig.network["n0"].address, rig.network["x"]
    ours, false = rig.engine_pair, stranger.sign("engine")
    late = rig.authority.sign(f"late {door}", days=-1)
    assert is_let_in(machine, address, port, context_of(ours, rig.authority.path, port), 1.0)
    for pair in (None, false, late):
        assert not is_let_in(machine, address, port, context_of(pair, rig.authority.path, port)), pair
    assert len(said_in_the_clear(machine, address, port)) < 100  # that one must seal, at most


def test_a_certificate_alone_makes_nobody_a_node(rig: Rig) -> None:
    pair = rig.engine_pair
    tls = Tls(rig.authority.path, pair.certificate, pair.private_key).framed()
    address = rig.network["n0"].address
    session = rig.network["x"].do(lambda: native.Session(host=address, port=FRAMED, tls=tls))
    try:
        for method in (store.METHOD_PEER_PING, store.METHOD_PEER_LEASE):
            assert session.call(method, b"", 5.0).status == native.Status.DENIED
    finally:
        session.close()


def foreign(rig: Rig, *sets: str, etcd: Pair, **doors: str) -> NodeThere:
    """Of the right secret and etcd, on a machine of its own."""
    home = rig.folder / f"x{len(list(rig.folder.glob('x*')))}"
    home.mkdir()
    sets = (*rig.settings(etcd), *sets, GONE)
    return NodeThere(rig.network["x"], home, *sets, memory="4MiB", **doors)


def test_a_node_of_another_authority_is_nobodys_peer(rig: Rig, stranger: Authority) -> None:
    """etcd lets it in, so all know where it is; it believes nobody and nobody it."""
    rig.put(0, "strange", 1, BLOCKS)
    rig.found(1, "strange", 1, BLOCKS)
    false = rig.sealed(rig.pair("x", rig.network["x"].address, stranger), stranger)
    with foreign(rig, *false, etcd=rig.pair("at-etcd", rig.network["x"].address)) as alone:
        told = lambda node: [row for name, row in seen(node).items() if name not in {rig.name(0), rig.name(1)}]  # noqa: E731
        for node in rig.nodes:
            eventually(lambda node=node: [row["state"] for row in told(node)] == ["dead"])
            assert "certificate" in str(told(node)[0]["problem"])
        assert set(states(alone).values()) <= {"suspect", "dead"}
        eventually(lambda: states(rig.nodes[0])[rig.name(1)] == "alive")
    rig.found(1, "strange", 1, BLOCKS)


def test_etcd_lets_nobody_in_without_its_own_certificate(rig: Rig, stranger: Authority) -> None:
    pair = rig.pair("y", rig.network["x"].address)
    false = stranger.sign("at etcd")
    node = foreign(rig, *rig.sealed(pair), etcd=false)
    assert "not joined within cluster.join_ms" in refusal(node, "cluster.join_ms=1000", code=EXIT_NOT_JOINED)


@pytest.mark.parametrize("door", [*DOORS, "everywhere"])
def test_no_port_is_opened_beyond_loopback_without_certificates(rig: Rig, door: str) -> None:
    """As of a single node, which this is none of."""
    address = rig.network["x"].address
    at = {name: f"127.0.0.1:{port}" for name, port in DOORS.items()}
    at[door] = f"{address}:{DOORS[door]}" if door in DOORS else ""
    if door == "everywhere":
        at["framed"] = f"0.0.0.0:{FRAMED}"
    node = foreign(
        rig,
        f"transfer.address={at['bytes']}",
        f"cluster.address={address}:{FRAMED}",
        etcd=rig.engine_pair,
        address=at["framed"],
        grpc=at["gRPC"],
        metrics=at["metrics"],
    )
    said = refusal(node)
    shown = at["framed"] if door == "everywhere" else at[door]
    assert shown in said and "tls" in said.lower(), said
