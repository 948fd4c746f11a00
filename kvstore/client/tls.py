"""What a client needs for TLS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvstore import native
from kvstore.errors import Misconfigured

if TYPE_CHECKING:
    import grpc


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. authority: who signed the node's certificate; None: those the system trusts.
    certificate, private_key: the client's own, for a node that asks for one. Both or neither.
    """

    authority: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise Misconfigured("tls.certificate and tls.private_key: both or neither")

    def framed(self) -> native.Tls:
        """For the framed door. Raises Misconfigured naming the file, or that this machine has no OpenSSL 3."""
        try:
            return native.Tls(*(str(path or "") for path in (self.certificate, self.private_key, self.authority)))
        except RuntimeError as error:
            raise Misconfigured(f"tls: {error}") from error

    def credentials(self) -> grpc.ChannelCredentials:
        """For gRPC. Reads the files. Raises Misconfigured naming the one that cannot be read."""
        import grpc  # the framed client never loads it

        return grpc.ssl_channel_credentials(
            root_certificates=_read("authority", self.authority),
            private_key=_read("private_key", self.private_key),
            certificate_chain=_read("certificate", self.certificate),
        )


def _read(name: str, path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path is not None else None
    except OSError as error:
        raise Misconfigured(f"tls.{name} {path}: {error}") from error
