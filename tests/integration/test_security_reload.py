"""SIGHUP to a real node: tokens, certificates and keys are read again; what does not read well changes nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest

import kvstore
from kvstore.wire import services, store
from tests.certificates import Authority, Pair
from tests.integration.grpc_node import layout
from tests.integration.nodes import NodeProcess, eventually, read_line
from tests.integration.nodes import layout as own_layout
from tests.tokens import mint_token

NOBODY = 65_534
ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 20.0
OK, UNAUTHENTICATED = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED
UNAVAILABLE, DENIED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED


class Reloaded(NodeProcess):
    """A node whose log can be read while it runs."""

    def __init__(self, folder: Path, *sets: str, metrics: str = "none") -> None:
        super().__init__(folder, *sets, grpc="127.0.0.1:0", metrics=metrics)
        self.log = folder / "log"

    def spawn(self) -> subprocess.Popen[str]:
        with self.log.open("w") as log:
            return subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=log, text=True)

    @property
    def grpc_address(self) -> str:
        addresses: list[str] = self.facts["addresses"]
        return next(address for address in addresses if address.startswith("127.0.0.1:"))

    def hang_up(self) -> str:
        """What the node says of it."""
        before = len(self.log.read_text())
        self.signal(signal.SIGHUP)
        eventually(lambda: "reload: read again" in self.log.read_text()[before:])
        return self.log.read_text()[before:]

    def close(self) -> None:
        if self.process is not None:
            assert self.stop() == 0
        super().close()


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def code(channel: grpc.Channel, token: str, tenant: str = "acme") -> grpc.StatusCode:
    """Of a namespace opened with this token."""
    stub = services.StoreStub(channel)
    try:
        stub.OpenNamespace(
            store.OpenNamespaceRequest(layout=layout(), tenant=tenant), timeout=TIMEOUT_S, metadata=bearer(token)
        )
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        return error.code()
    return OK


def write(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def test_tokens_come_and_go_under_a_running_node(tmp_path: Path) -> None:
    (old, old_entry), (new, new_entry), (kept, kept_entry) = (mint_token(name, ["acme"]) for name in "onk")
    access = write(tmp_path / "access.toml", old_entry + kept_entry)
    node = Reloaded(tmp_path, f"security.access_file={access}")
    node.start()
    try:
        with grpc.insecure_channel(node.grpc_address) as channel:
            assert [code(channel, token) for token in (old, new, kept)] == [OK, UNAUTHENTICATED, OK]
            watches = {
                token: services.StoreStub(channel).Watch(
                    store.WatchRequest(), metadata=bearer(token), timeout=TIMEOUT_S
                )
                for token in (old, kept)
            }
            for watch in watches.values():
                next(watch)  # under way
            for broken in ("[[token", "[[token]]\nname = 'x'\nsha256 = 'no'"):
                write(access, broken)
                said = node.hang_up()
                assert "NOT taken" in said and str(access) in said
                assert [code(channel, token) for token in (old, new)] == [OK, UNAUTHENTICATED]
            access.chmod(0o644)
            assert "chmod 600" in node.hang_up()
            access.chmod(0o600)
            assert code(channel, old) == OK
            write(access, new_entry + kept_entry)
            said = node.hang_up()
            assert "NOT taken" not in said and "gRPC calls ended: 1" in said
            assert [code(channel, token) for token in (old, new, kept)] == [UNAUTHENTICATED, OK, OK]
            with pytest.raises(grpc.RpcError) as caught:
                next(watches[old])
            assert isinstance(caught.value, grpc.Call) and caught.value.code() == UNAUTHENTICATED
            assert watches[kept].is_active()
            write(access, new_entry + kept_entry.replace("acme", "zebra"))  # it gives something else
            assert "gRPC calls ended: 1" in node.hang_up()
            with pytest.raises(grpc.RpcError) as caught:
                next(watches[kept])
            assert isinstance(caught.value, grpc.Call) and caught.value.code() == UNAVAILABLE
            assert [code(channel, kept, tenant) for tenant in ("acme", "zebra")] == [DENIED, OK]
    finally:
        node.close()


# ---- certificates -------------------------------------------------------------------------------------------------


def install(pair: Pair, at: Pair) -> None:
    at.private_key.touch(mode=0o600)
    for source, to in ((pair.certificate, at.certificate), (pair.private_key, at.private_key)):
        to.write_bytes(source.read_bytes())


def shown(address: str, authority: Authority, own: Pair | None = None) -> bool:
    """Whether the door shows a certificate of that authority, and takes the caller's own."""
    context = ssl.create_default_context(cafile=authority.path)
    if own is not None:
        context.load_cert_chain(own.certificate, own.private_key)
    host, _, port = address.rpartition(":")
    try:
        with (
            socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as bare,
            context.wrap_socket(bare, server_hostname="localhost") as tls,
        ):
            tls.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            return tls.recv(1) != b""  # TLS 1.3 tells only now that a client's certificate was refused
    except (ssl.SSLError, ConnectionError):
        return False


def reached(address: str, authority: Authority, own: Pair, token: str) -> grpc.StatusCode:
    credentials = grpc.ssl_channel_credentials(
        authority.path.read_bytes(), own.private_key.read_bytes(), own.certificate.read_bytes()
    )
    target = "localhost:" + address.rpartition(":")[2]
    with grpc.secure_channel(target, credentials, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        return code(channel, token)


def test_certificates_and_their_authority_are_read_again(tmp_path: Path) -> None:
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    live = Pair(tmp_path / "live.pem", tmp_path / "live.key")
    (tmp_path / "ca.pem").write_bytes(first.path.read_bytes())
    install(first.sign("node-1", server=True), live)
    mine = {first: first.sign("client-1"), second: second.sign("client-2")}
    token, entry = mint_token("t", ["acme"], ["metrics"])
    access = write(tmp_path / "access.toml", entry)
    node = Reloaded(
        tmp_path,
        f"security.certificate={live.certificate}",
        f"security.private_key={live.private_key}",
        f"security.client_ca={tmp_path / 'ca.pem'}",
        f"security.access_file={access}",
        metrics="127.0.0.1:0",
    )
    node.start()
    metrics = next(each for each in node.facts["addresses"] if each.startswith("https://"))
    metrics = metrics.removeprefix("https://").removesuffix("/metrics")

    def doors(authority: Authority, own: Authority) -> list[object]:
        return [shown(metrics, authority, mine[own]), reached(node.grpc_address, authority, mine[own], token)]

    try:
        assert doors(first, first) == [True, OK]
        assert doors(second, second) == [False, UNAVAILABLE] == doors(first, second)
        live.certificate.write_bytes(second.sign("other", server=True).certificate.read_bytes())  # and not its key
        said = node.hang_up()
        assert "NOT taken" in said and "security.certificate" in said and "read again: access file;" in said
        assert doors(first, first) == [True, OK]
        install(second.sign("node-2", server=True), live)
        (tmp_path / "ca.pem").write_bytes(second.path.read_bytes())
        assert "access file, certificates; refused: nothing" in node.hang_up()
        assert doors(second, second) == [True, OK]
        assert doors(first, first) == [False, UNAVAILABLE] == doors(second, first)
    finally:
        node.close()


# ---- the framed door ----------------------------------------------------------------------------------------------


CHILD = """
import concurrent.futures.thread, json, os, sys
import kvstore

asked = json.loads(sys.argv[1])
layout = kvstore.KVLayout.uniform(engine="e", model="m", revision="1", dtype="float32", block_tokens=4, layers=2,
                                  kv_heads=2, head_dim=64)
with kvstore.Client("unix:" + asked["socket"], token=asked["token"], deadline_s=5) as client:
    client.namespace(layout, tenant="acme")  # as root, so that all modules are loaded
os.setgroups([])
os.setgid(asked["uid"])
os.setuid(asked["uid"])
client = kvstore.Client("unix:" + asked["socket"], token=asked["token"], deadline_s=5)
ns = client.namespace(layout, tenant="acme")
chain = ns.chain(list(range(8)))
ns.put(chain, bytes(2 * ns.shard_bytes[0]))
print(json.dumps(ns.lookup(chain).blocks), flush=True)
for _ in sys.stdin:
    try:
        told = ns.lookup(chain).blocks
    except Exception as error:
        told = type(error).__name__
    print(json.dumps(told), flush=True)
"""


class Engine:
    """A client of another user than the node's, who comes in by a token."""

    def __init__(self, node: NodeProcess, token: str) -> None:
        told = json.dumps({"socket": str(node.socket), "token": token, "uid": NOBODY})
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, told], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.answer() == 2

    def answer(self) -> Any:
        return json.loads(read_line(self.process, TIMEOUT_S))

    def finds(self) -> Any:
        """How many of its blocks, or what the client raises."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Others can reach into it, unlike pytest's own."""
    with TemporaryDirectory(prefix="kvstore-reload-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_connections_of_a_withdrawn_token_are_ended(folder: Path) -> None:
    (old, old_entry), (kept, kept_entry) = (mint_token(name, ["acme"]) for name in "ok")
    access = write(folder / "access.toml", "")
    node = Reloaded(folder, f"security.access_file={access}")
    node.start()
    engines: dict[str, Engine] = {}
    try:
        assert node.socket.stat().st_mode & 0o777 == 0o600  # nobody else has reason to come
        write(access, old_entry + kept_entry)
        node.hang_up()
        assert node.socket.stat().st_mode & 0o777 == 0o666
        for token in (old, kept):
            engines[token] = Engine(node, token)
        write(access, kept_entry)
        node.hang_up()
        eventually(lambda: engines[old].finds() == "Rejected")  # after Unavailable, for the connection that was
        assert engines[kept].finds() == 2
        write(access, "")
        node.hang_up()
        assert node.socket.stat().st_mode & 0o777 == 0o600
        eventually(lambda: engines[kept].finds() in {"Unavailable", "Rejected"})
        with kvstore.Client(node.address, deadline_s=5) as ours:  # the node's own user needs no token
            assert ours.namespace(own_layout(), tenant="acme").digest
    finally:
        for engine in engines.values():
            engine.close()
        node.close()
