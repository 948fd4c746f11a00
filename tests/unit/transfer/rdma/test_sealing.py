"""TLS of the control connection: both sides show who they are, and whoever cannot is told nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable
from pathlib import Path

import pytest

from tests.certificates import Authority, Pair
from transfer.errors import PeerUnreachable
from transfer.rdma.config import RdmaConfig
from transfer.rdma.control import Control
from transfer.rdma.frames import FrameInvalid, Hello
from transfer.rdma.sealing import Sealing, sealing
from transfer.sockets import TlsFiles

FOREVER_S = 60.0
NODE, ENGINE = Hello(bytes([1] * 16), ()), Hello(bytes([2] * 16), ())


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def strange(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "strange")


def files(pair: Pair, authority: Authority) -> TlsFiles:
    return TlsFiles(str(pair.certificate), str(pair.private_key), str(authority.path))


def met(node: Sealing | None, engine: Sealing | None, host: str = "localhost") -> list[object]:
    """What each side has of the other: (the node's view, the engine's)."""

    async def side(meeting: Awaitable[Hello]) -> object:
        try:
            return await meeting
        except (PeerUnreachable, FrameInvalid, OSError) as error:
            return error

    async def main() -> list[object]:
        with socket.create_server(("127.0.0.1", 0)) as listener:  # tune() asks for what only TCP has
            there = socket.create_connection(listener.getsockname())
            here, _ = listener.accept()

        async def accept() -> Hello:
            control = await Control.accepted(here, 10.0, node.accepting if node is not None else None)
            try:
                return await control.greeted(NODE)
            finally:
                control.lose("over")

        async def connect() -> Hello:
            tls = engine.connecting if engine is not None else None
            control = await Control.connected(there, 10.0, tls, host)
            try:
                return await control.greet(ENGINE)
            finally:
                control.lose("over")

        async with asyncio.timeout(FOREVER_S):
            return list(await asyncio.gather(side(accept()), side(connect())))

    return asyncio.run(main())


def test_who_shows_what_the_authority_signed_comes_in(ours: Authority) -> None:
    node = sealing(files(ours.sign("node", server=True), ours))
    engine = sealing(files(ours.sign("engine"), ours))
    assert met(node, engine) == [ENGINE, NODE]
    assert met(None, None) == [ENGINE, NODE]
    nameless = sealing(TlsFiles(ca=str(ours.path)))
    assert nameless.accepting is None
    anybody = sealing(TlsFiles(str((pair := ours.sign("open", server=True)).certificate), str(pair.private_key)))
    assert met(anybody, nameless) == [ENGINE, NODE]


def test_strangers_are_told_nothing(ours: Authority, strange: Authority) -> None:
    node = sealing(files(ours.sign("node", server=True), ours))
    engine = sealing(files(ours.sign("engine"), ours))
    foreign = sealing(files(strange.sign("engine2"), ours))  # it believes us; we do not believe it
    for told in (
        met(node, foreign),
        met(node, None),
        met(node, sealing(TlsFiles(ca=str(ours.path)))),
        met(node, sealing(TlsFiles())),  # believes whom the system trusts
        met(None, engine),
        met(sealing(files(strange.sign("false-node", server=True), ours)), engine),
        met(sealing(files(ours.sign("late", server=True, days=-1), ours)), engine),
        met(node, engine, host="elsewhere.example"),
    ):
        assert not any(isinstance(one, Hello) for one in told), told


def test_files_that_are_none_are_named(ours: Authority, tmp_path: Path) -> None:
    pair = ours.sign("node", server=True)
    for bad, name in (
        (TlsFiles(str(pair.certificate), str(pair.private_key), str(tmp_path / "no")), "no: "),
        (TlsFiles(str(tmp_path / "gone"), str(pair.private_key), str(ours.path)), "gone, "),
        (TlsFiles(str(pair.certificate), str(ours.sign("other").private_key), str(ours.path)), "node"),
    ):
        with pytest.raises(OSError, match=name):
            sealing(bad)


def test_a_control_connection_leaves_loopback_with_tls_or_trust_only() -> None:
    with pytest.raises(ValueError, match=r"192\.0\.2\.1 is not a loopback address; give `tls`, or set trusted_network"):
        RdmaConfig(host="192.0.2.1")
    for config in (
        RdmaConfig(host="192.0.2.1", trusted_network=True),
        RdmaConfig(host="192.0.2.1", tls=TlsFiles("c", "k", "a")),
    ):
        config.check_host("address", "192.0.2.7")
