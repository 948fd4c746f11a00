"""`node.address`: a node whose framed door is reached by TCP, who comes in there, and what SIGHUP changes of that."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore import native
from kvstore.wire import store
from tests.certificates import Authority, Pair
from tests.integration.grpc_node import layout
from tests.integration.nodes import NodeProcess, eventually
from tests.integration.test_security_reload import Reloaded, install, write
from tests.tokens import mint_token

OK, DENIED = native.Status.OK, native.Status.DENIED
GONE = native.Status.UNAVAILABLE


class Node(Reloaded):
    """Listens at a free port of loopback."""

    def __init__(self, folder: Path, *sets: str, address: str = "127.0.0.1:0", metrics: str = "none") -> None:
        NodeProcess.__init__(self, folder, *sets, address=address, metrics=metrics)
        self.log = folder / "log"

    def session(self, token: str = "", tls: native.Tls | None = None) -> native.Session:
        host, _, port = str(self.facts["address"]).rpartition(":")
        return native.Session(token=token.encode(), host=host, port=int(port), tls=tls)


@contextlib.contextmanager
def running(folder: Path, *sets: str, **addresses: str) -> Iterator[Node]:
    node = Node(folder, *sets, **addresses)
    node.start()
    try:
        yield node
    finally:
        node.close()


def opened(session: native.Session, tenant: str = "default") -> int:
    """The status of opening a namespace of this tenant, which every client begins with."""
    request = store.OpenNamespaceRequest(layout=layout(), tenant=tenant).SerializeToString()
    return session.call(store.METHOD_OPEN_NAMESPACE, request, 20.0).status


def secured(folder: Path, authority: Authority, *, asks: bool) -> tuple[Pair, list[str]]:
    """Where the node's files lie, and the settings that say so."""
    live = Pair(folder / "live.pem", folder / "live.key")
    install(authority.sign("node-1", server=True), live)
    sets = [f"security.certificate={live.certificate}", f"security.private_key={live.private_key}"]
    if asks:
        (folder / "ca.pem").write_bytes(authority.path.read_bytes())
        sets.append(f"security.client_ca={folder / 'ca.pem'}")
    return live, sets


def believing(authority: Authority, own: Pair | None = None) -> native.Tls:
    certificate, key = (str(own.certificate), str(own.private_key)) if own else ("", "")
    return native.Tls(certificate, key, str(authority.path))


def test_it_is_told_wherever_addresses_are(tmp_path: Path) -> None:
    with running(tmp_path) as node:
        address = node.facts["address"]
        assert address.startswith("127.0.0.1:") and not address.endswith(":0")
        assert address in node.facts["addresses"]
        status = [sys.executable, "-m", "kvstore.admin", "--address", f"unix:{node.socket}.grpc", "status", "--json"]
        told = subprocess.run(status, capture_output=True, text=True, timeout=60, check=True).stdout
        assert address in json.dumps(json.loads(told))
        other = NodeProcess(tmp_path / "other", address=address)
        (tmp_path / "other").mkdir()
        refused = subprocess.run(other.command(), capture_output=True, text=True, timeout=60, check=False)
        assert refused.returncode == 2
        assert f"node.address = {address!r}: cannot be bound" in refused.stderr


def test_none_is_none(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        assert node.facts["address"] is None
        assert not any(one.startswith("127.0.0.1:") for one in node.facts["addresses"])


@pytest.mark.parametrize(
    ("address", "said"),
    [("0.0.0.0:0", "reachable from other machines"), ("nowhere", "HOST:PORT"), ("192.0.2.1:0", "reachable")],
)
def test_an_open_address_is_refused(tmp_path: Path, address: str, said: str) -> None:
    command = NodeProcess(tmp_path, address=address).command()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and said in done.stderr and address in done.stderr


def test_insecure_is_said_aloud(tmp_path: Path) -> None:
    with running(tmp_path, "security.insecure=true", address="0.0.0.0:0") as node:
        assert any("INSECURE: 0.0.0.0:0" in said for said in node.facts["warnings"])
        assert opened(native.Session(host="127.0.0.1", port=int(node.facts["address"].rpartition(":")[2]))) == OK


def test_the_unknown_have_the_anonymous_tenants(tmp_path: Path) -> None:
    with running(tmp_path, "security.anonymous_tenants=open") as node:
        session = node.session()
        assert not session.info.trusted
        assert [opened(session, tenant) for tenant in ("open", "acme")] == [OK, DENIED]


def test_tokens(tmp_path: Path) -> None:
    token, entry = mint_token("t", ["acme"])
    access = write(tmp_path / "access.toml", entry)
    with running(tmp_path, f"security.access_file={access}") as node:
        for wrong in ("", "wrong"):
            with pytest.raises(PermissionError, match="token"):
                node.session(wrong)
        session = node.session(token)
        assert [opened(session, tenant) for tenant in ("acme", "default")] == [OK, DENIED]
        write(access, "")
        node.hang_up()
        eventually(lambda: session.closed or opened(session, "acme") == GONE)
        with pytest.raises(PermissionError):
            node.session(token)


def test_certificates_and_their_names(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "first")
    mine, other = authority.sign("mine"), authority.sign("other")
    _, sets = secured(tmp_path, authority, asks=True)
    entry = '[[certificate]]\nname = "mine"\ntenants = ["acme"]\n'
    access = write(tmp_path / "access.toml", entry)
    with running(tmp_path, *sets, f"security.access_file={access}") as node:
        with pytest.raises(ConnectionError, match="this door speaks TLS"):
            node.session()
        with pytest.raises(ConnectionError, match=r"(?i)certificate required|reset"):
            node.session(tls=believing(authority))
        with pytest.raises(PermissionError, match="certificate"):
            node.session(tls=believing(authority, other))
        session = node.session(tls=believing(authority, mine))
        assert [opened(session, tenant) for tenant in ("acme", "default")] == [OK, DENIED]
        write(access, entry.replace('"mine"', '"other"'))
        node.hang_up()
        eventually(lambda: session.closed or opened(session, "acme") == GONE)
        assert opened(node.session(tls=believing(authority, other)), "acme") == OK


def test_a_certificate_alone_tells_from_strangers(tmp_path: Path) -> None:
    """As over gRPC: with an authority and no access file it gives what the anonymous have."""
    authority = Authority(tmp_path, "first")
    _, sets = secured(tmp_path, authority, asks=True)
    with running(tmp_path, *sets, "security.anonymous_tenants=open") as node:
        session = node.session(tls=believing(authority, authority.sign("anybody")))
        assert [opened(session, tenant) for tenant in ("open", "acme")] == [OK, DENIED]


def test_files_are_read_again(tmp_path: Path) -> None:
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    live, sets = secured(tmp_path, first, asks=False)
    with running(tmp_path, *sets) as node:
        stays = node.session(tls=believing(first))
        assert opened(stays) == OK
        live.certificate.write_text("no certificate")
        assert "NOT taken" in node.hang_up()
        assert opened(node.session(tls=believing(first))) == OK
        install(second.sign("node-2", server=True), live)
        assert "certificates; refused: nothing" in node.hang_up()
        assert opened(node.session(tls=believing(second))) == OK
        with pytest.raises(ConnectionError, match="certificate"):
            node.session(tls=believing(first))
        assert opened(stays) == OK


def test_a_stopped_node_says_nothing_and_one_that_stops_hangs_up(tmp_path: Path) -> None:
    with running(tmp_path) as node:
        session = node.session()
        node.signal(signal.SIGSTOP)
        late = session.call(store.METHOD_OPEN_NAMESPACE, b"", 0.2)
        assert late.status == native.Status.LATE
        host, _, port = node.facts["address"].rpartition(":")
        with pytest.raises(ConnectionError, match="waiting for the node"):
            native.Session(host=host, port=int(port), connect_s=0.3)
        node.signal(signal.SIGCONT)
        eventually(lambda: opened(session) == OK)
        assert node.stop() == 0
        assert opened(session) == GONE
        with pytest.raises(ConnectionError), socket.create_connection((host, int(port)), timeout=5):
            pass


def test_refusals_are_counted_with_the_others(tmp_path: Path) -> None:
    token, entry = mint_token("t", [], ["metrics"])
    access = write(tmp_path / "access.toml", entry)
    with running(tmp_path, f"security.access_file={access}", metrics="127.0.0.1:0") as node:
        assert refusals(node, token) == 0.0
        for _ in range(3):
            with pytest.raises(PermissionError):
                node.session("wrong")
        eventually(lambda: refusals(node, token) == 3.0)


def refusals(node: Node, token: str) -> float:
    url = next(one for one in node.facts["addresses"] if one.startswith("http://"))
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        told = answer.read().decode()
    rows = [row for row in told.splitlines() if row.startswith("kvstore_") and "denied" in row and 'framed"' in row]
    return sum(float(row.rpartition(" ")[2]) for row in rows)
