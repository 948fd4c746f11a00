"""TLS of the control connection, by Python's own OpenSSL: few and small messages, so nothing native is needed.

Rules
- TLS 1.3. Who listens shows a certificate; who connects checks that it was signed by the CA (none: by one that the
  system trusts) and names the host. Where who listens has a CA, who connects must show a certificate that it signed.
- It seals what the two sides tell each other, descriptors above all. What RDMA moves is not sealed by anything.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from transfer.sockets import TlsFiles

__all__ = ["SHUTDOWN_S", "Sealing", "sealing"]

SHUTDOWN_S = 1.0  # for the peer's farewell


@dataclass(frozen=True, slots=True)
class Sealing:
    """accepting: None without a certificate of our own."""

    connecting: ssl.SSLContext
    accepting: ssl.SSLContext | None


def sealing(files: TlsFiles) -> Sealing:
    """Raises OSError naming the file that cannot be used."""
    connecting = _context(ssl.PROTOCOL_TLS_CLIENT, files)
    if not files.ca:
        connecting.load_default_certs()
    if not files.certificate:
        return Sealing(connecting, None)
    accepting = _context(ssl.PROTOCOL_TLS_SERVER, files)
    accepting.verify_mode = ssl.CERT_REQUIRED if files.ca else ssl.CERT_NONE
    return Sealing(connecting, accepting)


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        if files.ca:
            context.load_verify_locations(files.ca)
    except OSError as error:
        raise OSError(f"{files.ca}: {error.strerror or error}") from error
    try:
        if files.certificate:
            context.load_cert_chain(files.certificate, files.key, password=lambda: "")  # with a password: refused
    except OSError as error:
        raise OSError(f"{files.certificate}, {files.key}: {error.strerror or error}") from error
    return context
