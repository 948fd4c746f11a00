"""TLS of the TCP doors: one pair of files for framed, gRPC and HTTP, checked at start and whenever they are read again.

gRPC and HTTP refuse anything older than TLS 1.2, the framed door anything older than 1.3. With `client_ca`, a client
without a certificate that it signed does not get through the handshake. What is read again holds for handshakes from
then on; a connection that is open stays.
"""

from __future__ import annotations

import ssl
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc

from kvstore import native
from kvstore.errors import Misconfigured
from kvstore.security import SecurityConfig


def server_context(security: SecurityConfig) -> ssl.SSLContext | None:
    """For the HTTP door; None without TLS. Loading it also checks that key and certificate belong together.

    Raises Misconfigured naming the setting.
    """
    if security.certificate is None or security.private_key is None:
        return None
    _check_private(security.private_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(security.certificate, security.private_key)
    except (OSError, ssl.SSLError) as error:
        raise Misconfigured(f"security.certificate {security.certificate}, security.private_key: {error}") from error
    if security.client_ca is not None:
        try:
            context.load_verify_locations(security.client_ca)
        except (OSError, ssl.SSLError) as error:
            raise Misconfigured(f"security.client_ca {security.client_ca}: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@dataclass(frozen=True, slots=True)
class _Files:
    """What the three files said at one moment, and checked: key and certificate belong together."""

    context: ssl.SSLContext
    private_key: bytes
    certificate: bytes
    client_ca: bytes | None
    framed: native.Tls | None

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(self.private_key, self.certificate)], root_certificates=self.client_ca
        )


def _framed(security: SecurityConfig) -> native.Tls:
    """Raises Misconfigured, also where this machine has no OpenSSL for native code."""
    try:
        return native.Tls(str(security.certificate), str(security.private_key), str(security.client_ca or ""))
    except RuntimeError as error:
        raise Misconfigured(f"security.certificate, for node.address: {error}") from error


def _files(security: SecurityConfig, *, framed: bool) -> _Files | None:
    """None without TLS. Raises Misconfigured, also where somebody is just writing them."""
    if security.certificate is None or security.private_key is None:
        return None
    before = _read(security)
    context = server_context(security)
    tls = _framed(security) if framed else None
    if _read(security) != before:
        raise Misconfigured("security.certificate, private_key, client_ca: changed while they were read")
    key, certificate, client_ca = before
    assert context is not None and key is not None and certificate is not None
    return _Files(context, key, certificate, client_ca, tls)


class Certificates:
    """What the TCP doors show and believe, as the files were when they were last read. Thread-safe.

    framed: whether the framed door is one of them. Raises Misconfigured naming the setting.
    """

    def __init__(self, security: SecurityConfig, *, framed: bool = False) -> None:
        self._security, self._framed = security, framed
        self._lock = threading.Lock()
        self._files = _files(security, framed=framed)
        self._news = False  # for gRPC, which is handed each version once

    def reload(self) -> None:
        """Reads the files again. Raises as at start, changing nothing."""
        files = _files(self._security, framed=self._framed)
        with self._lock:
            self._files, self._news = files, True

    def context(self) -> ssl.SSLContext | None:
        """For the next connection of the HTTP door; None without TLS."""
        return self._files.context if self._files is not None else None

    def framed(self) -> native.Tls | None:
        """For the framed door's connections from now on; None without TLS."""
        return self._files.framed if self._files is not None else None

    def credentials(self) -> grpc.ServerCredentials | None:
        """For the gRPC door, which asks for news at each handshake; None without TLS."""
        if self._files is None:
            return None
        return grpc.dynamic_ssl_server_credentials(
            self._files.configuration(),
            self._fetch,  # type: ignore[arg-type]  # its stub does not know None, which says: as before
            require_client_authentication=self._security.client_ca is not None,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC, on a thread of its own."""
        with self._lock:
            files, news, self._news = self._files, self._news, False
        return files.configuration() if files is not None and news else None


def _check_private(key: Path) -> None:
    try:
        mode = key.stat().st_mode
    except OSError as error:
        raise Misconfigured(f"security.private_key {key}: {error}") from error
    if stat.S_IMODE(mode) & 0o007:
        raise Misconfigured(f"security.private_key {key}: others may read it (chmod o-rwx)")


def _read(security: SecurityConfig) -> list[bytes | None]:
    """Key, certificate, authority, as they are now."""
    told: list[bytes | None] = []
    for name in ("private_key", "certificate", "client_ca"):
        path: Path | None = getattr(security, name)
        try:
            told.append(path.read_bytes() if path is not None else None)
        except OSError as error:
            raise Misconfigured(f"security.{name} {path}: {error}") from error
    return told
