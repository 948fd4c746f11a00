"""How this node shows itself to etcd, and what it believes: `cluster.etcd_*`, read once at start."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc

from kvstore.errors import Misconfigured
from kvstore.security import is_local

if TYPE_CHECKING:
    from kvstore.config import ClusterConfig
    from kvstore.members import EtcdAt

__all__ = ["credentials_of", "user_of"]

PASSWORD_BYTES_MAX: Final = 4_096


def credentials_of(config: ClusterConfig, at: EtcdAt) -> grpc.ChannelCredentials | None:
    """None without TLS. Raises Misconfigured naming the file."""
    if not at.tls:
        return None
    if config.etcd_private_key is not None:
        _check_private("etcd_private_key", config.etcd_private_key)
    return grpc.ssl_channel_credentials(
        root_certificates=_read("etcd_ca", config.etcd_ca),
        private_key=_read("etcd_private_key", config.etcd_private_key),
        certificate_chain=_read("etcd_certificate", config.etcd_certificate),
    )


def user_of(config: ClusterConfig, at: EtcdAt, *, insecure: bool) -> tuple[str, str] | None:
    """Name and password. Raises Misconfigured, also where the password would go to other machines in the clear."""
    if config.etcd_user is None or config.etcd_password_file is None:
        return None
    path = config.etcd_password_file
    away = [endpoint for endpoint in at.endpoints if not is_local(endpoint)]
    if away and not at.tls and not insecure:
        raise Misconfigured(
            f"cluster.etcd_password_file: would be sent to {away[0]} in the clear; say etcds://, or --insecure"
        )
    _check_private("etcd_password_file", path)
    raw = _read("etcd_password_file", path) or b""
    try:
        password = raw.decode().rstrip("\n")
    except UnicodeDecodeError as error:
        raise Misconfigured(f"cluster.etcd_password_file {path}: {error}") from error
    if not password or len(raw) > PASSWORD_BYTES_MAX:
        raise Misconfigured(f"cluster.etcd_password_file {path}: 1 to {PASSWORD_BYTES_MAX} bytes")
    return config.etcd_user, password


def _check_private(name: str, path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise Misconfigured(f"cluster.{name} {path}: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o007:
        raise Misconfigured(f"cluster.{name} {path}: others may read it (chmod o-rwx)")


def _read(name: str, path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path is not None else None
    except OSError as error:
        raise Misconfigured(f"cluster.{name} {path}: {error.strerror}") from error
