"""Addresses and sockets of the transports that meet by TCP, whatever moves their bytes then."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass

__all__ = ["TlsFiles", "address_of", "connected", "connected_unix", "is_loopback", "listening", "parse_address", "tune"]

_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: our certificate and its key, and the CA by which peers are believed.

    Who connects always verifies who listens: by `ca`, or, where it is "", by those that the system trusts. Who listens
    shows a certificate, and asks for one if there is a `ca`; without it whoever has a grant may read by it. Who only
    connects needs no certificate ("") for a peer that asks for none.
    """

    certificate: str = ""
    key: str = ""
    ca: str = ""

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("tls: certificate and key, both or neither")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def address_of(scheme: str, host: str, port: int) -> str:
    return f"{scheme}[{host}]:{port}" if ":" in host else f"{scheme}{host}:{port}"


def parse_address(scheme: str, address: str) -> tuple[str, int]:
    """Host and port of `SCHEME HOST:PORT`, an IPv6 host in brackets. Raises ValueError naming `address`."""
    host, colon, port = address.removeprefix(scheme).rpartition(":")
    if not address.startswith(scheme) or not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"address must be {scheme}HOST:PORT, not {address!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host or not host:
        raise ValueError(f"address must be {scheme}HOST:PORT with an IPv6 host in brackets, not {address!r}")
    return host, int(port)


def listening(scheme: str, host: str, port: int) -> tuple[socket.socket, str]:
    """A listening socket and its address. Raises OSError naming the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"{address_of(scheme, host, port)}: {error.strerror}") from error
    return sock, address_of(scheme, host, sock.getsockname()[1])


async def connected(host: str, port: int) -> socket.socket:
    """The first of the host's addresses that answers. Raises OSError."""
    loop = asyncio.get_running_loop()
    last: OSError | None = None
    for family, _, _, _, where in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            await loop.sock_connect(sock, where)
        except OSError as error:
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise last or OSError(f"{host} has no address")


async def connected_unix(path: str) -> socket.socket:
    """Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, path)
    except BaseException:
        sock.close()
        raise
    return sock


def tune(sock: socket.socket, keepalive_s: float) -> None:
    """No delay for small frames; a peer whose machine has gone is noticed. A Unix socket has no such worries."""
    seconds = max(1, round(keepalive_s))
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, seconds // 3))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(keepalive_s * 1000))
