"""TLS of the TCP doors: one pair of files for gRPC and HTTP, checked at start.

Both doors refuse anything older than TLS 1.2. With `client_ca`, a client without a certificate that it signed does
not get through the handshake.
"""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import grpc

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


def server_credentials(security: SecurityConfig) -> grpc.ServerCredentials | None:
    """For the gRPC door; None without TLS. Raises Misconfigured as server_context does."""
    if server_context(security) is None or security.certificate is None or security.private_key is None:
        return None
    return grpc.ssl_server_credentials(
        [(_read(security.private_key), _read(security.certificate))],
        root_certificates=_read(security.client_ca) if security.client_ca else None,
        require_client_auth=security.client_ca is not None,
    )


def _check_private(key: Path) -> None:
    try:
        mode = key.stat().st_mode
    except OSError as error:
        raise Misconfigured(f"security.private_key {key}: {error}") from error
    if stat.S_IMODE(mode) & 0o007:
        raise Misconfigured(f"security.private_key {key}: others may read it (chmod o-rwx)")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Misconfigured(f"{path}: {error}") from error
