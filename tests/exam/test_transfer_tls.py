"""The TCP transport passes the exam over TLS too; who has a wrong certificate, or none, is told so and gets nothing."""

from __future__ import annotations

import asyncio
import functools
import resource
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.certificates import Pair as Certificate
from tests.exam.test_transfer_tcp import Tcp, memory_of
from transfer.errors import PeerUnreachable
from transfer.tcp import TcpConfig, TcpTransport, TlsFiles
from transfer.tcp.config import parse_address
from transfer.testing.exam import TransportExam
from transfer.testing.parties import OwnerHere, Pair


class Papers:
    """An authority with a server's and a client's certificate, and another one that nobody believes."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="transfer-tls-")
        folder = Path(self._folder.name)
        self.authority = Authority(folder, "ours")
        self.stranger = Authority(folder, "strange")
        self.server = self.authority.sign("node", server=True)
        self.client = self.authority.sign("engine")
        self.expired = self.authority.sign("late", server=True, days=-1)
        self.foreign_server = self.stranger.sign("false-node", server=True)
        self.foreign_client = self.stranger.sign("false-engine")

    def files(self, certificate: Certificate, *, ca: Path | None = None) -> TlsFiles:
        return TlsFiles(str(certificate.certificate), str(certificate.private_key), str(ca or self.authority.path))


@functools.cache
def papers() -> Papers:
    return Papers()


def listening(tls: TlsFiles | None, *, greeting_s: float = 5.0) -> TcpTransport:
    return TcpTransport(TcpConfig(tls=tls, greeting_s=greeting_s))


def asking(tls: TlsFiles | None) -> TcpTransport:
    return TcpTransport(TcpConfig(tls=tls, listens=False))


class TestTls(Tcp, TransportExam):
    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        owner = OwnerHere(listening(papers().files(papers().server)), memory_of)
        reader = asking(papers().files(papers().client))
        try:
            yield Pair(owner, reader, await reader.connect(owner.address, deadline_s=10.0))
        finally:
            await reader.close()
            await owner.close()


async def refused(owner: TcpTransport, reader: TcpTransport, *, host: str = "127.0.0.1") -> str:
    """Why the reader gets no endpoint."""
    try:
        with pytest.raises(PeerUnreachable) as caught:
            await reader.connect(f"tcp://{host}:{parse_address(owner.address)[1]}", deadline_s=5.0)
        return str(caught.value)
    finally:
        await reader.close()
        await owner.close()


def test_a_server_of_another_authority_is_not_believed() -> None:
    async def main() -> None:
        owner = listening(papers().files(papers().foreign_server, ca=papers().authority.path))
        assert "certificate" in await refused(owner, asking(papers().files(papers().client)))

    asyncio.run(main())


def test_a_server_whose_certificate_has_run_out_is_not_believed() -> None:
    async def main() -> None:
        owner = listening(papers().files(papers().expired))
        assert "expired" in await refused(owner, asking(papers().files(papers().client)))

    asyncio.run(main())


def test_a_server_of_another_name_is_not_believed() -> None:
    async def main() -> None:
        owner = TcpTransport(TcpConfig(host="0.0.0.0", tls=papers().files(papers().server)))
        assert "mismatch" in await refused(owner, asking(papers().files(papers().client)), host="127.0.0.2")

    asyncio.run(main())


def test_a_client_of_another_authority_gets_nothing() -> None:
    async def main() -> None:
        owner = listening(papers().files(papers().server))
        await refused(owner, asking(papers().files(papers().foreign_client)))

    asyncio.run(main())


def test_where_none_is_asked_for_who_connects_needs_no_certificate_and_still_verifies() -> None:
    async def main() -> None:
        server = TlsFiles(str(papers().server.certificate), str(papers().server.private_key))
        owner, reader = listening(server), asking(TlsFiles(ca=str(papers().authority.path)))
        endpoint = await reader.connect(owner.address, deadline_s=5.0)
        await endpoint.close()
        await reader.close()
        for ca in (str(papers().stranger.path), ""):  # "": whom the system trusts
            doubting = asking(TlsFiles(ca=ca))
            with pytest.raises(PeerUnreachable, match="certificate"):
                await doubting.connect(owner.address, deadline_s=5.0)
            await doubting.close()
        await owner.close()

    asyncio.run(main())


def test_where_one_is_asked_for_who_has_none_gets_nothing() -> None:
    async def main() -> None:
        owner = listening(papers().files(papers().server))
        await refused(owner, asking(TlsFiles(ca=str(papers().authority.path))))

    asyncio.run(main())


@pytest.mark.parametrize("sealed", ["owner", "reader"])
def test_one_side_in_the_clear_gets_nothing(sealed: str) -> None:
    async def main() -> None:
        owner = listening(papers().files(papers().server) if sealed == "owner" else None, greeting_s=0.5)
        await refused(owner, asking(papers().files(papers().client) if sealed == "reader" else None))

    asyncio.run(main())


def test_files_that_do_not_serve_are_named(tmp_path: Path) -> None:
    async def main() -> None:
        files = papers().files(papers().server)
        for wrong in (
            TlsFiles(str(tmp_path / "none.pem"), files.key, files.ca),
            TlsFiles(files.certificate, str(tmp_path / "none.pem"), files.ca),
            TlsFiles(files.certificate, files.key, str(tmp_path / "none.pem")),
        ):
            with pytest.raises(RuntimeError, match=r"none\.pem"):
                listening(wrong)
        with pytest.raises(RuntimeError, match="key"):
            listening(TlsFiles(files.certificate, str(papers().client.private_key), files.ca))

    asyncio.run(main())


def test_who_connects_and_says_nothing_costs_nothing_and_is_dropped() -> None:
    async def main() -> None:
        owner = listening(papers().files(papers().server), greeting_s=1.0)
        loop = asyncio.get_running_loop()
        before = resource.getrusage(resource.RUSAGE_SELF)
        silent = socket.create_connection(parse_address(owner.address))
        silent.setblocking(False)
        assert await asyncio.wait_for(loop.sock_recv(silent, 1), 10.0) == b""
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
        silent.close()
        await owner.close()

    asyncio.run(main())
