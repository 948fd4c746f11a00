"""A node's data directory: one node a directory, its secret, and where its other files lie.

DATA_DIR/lock             an exclusive flock while a node runs: no lock, no start
DATA_DIR/secret           32 random bytes, 0600, made at the first start
DATA_DIR/node-id          16 random bytes in hex, made at the first start: what a cluster knows this node by
DATA_DIR/draining         there is one: this node hands its blocks on and takes no new ones (drain.py)
DATA_DIR/packs-at         a digest of the URL of the object tier that this node's last start had
DATA_DIR/namespaces.json  what was opened, and how often cleared (namespaces.py)
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from kvstore.errors import Misconfigured

SECRET_BYTES: Final = 32
SECRET_BYTES_MAX: Final = 4096
ID_BYTES: Final = 16


def write_durably(path: Path, text: str) -> None:
    """On disk, whole, when it returns. Raises OSError, and then what was there before is there still."""
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Home:
    """From `acquire` to `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    @property
    def namespaces(self) -> Path:
        return self.path / "namespaces.json"

    def has_packs_at(self, url: str | None) -> bool:
        """Whether the object tier is the one of the start before; None: there is none now. Remembers this one."""
        path = self.path / "packs-at"
        here = hashlib.sha256((url or "none").encode()).hexdigest()
        try:
            before = path.read_bytes()[:SECRET_BYTES_MAX].decode("ascii", "replace").strip()
            if before == here:
                return url is not None
        except OSError:
            pass
        try:
            fresh = path.with_suffix(".new")
            fresh.write_text(here + "\n")
            fresh.replace(path)
        except OSError as error:
            raise Misconfigured(f"node.data_dir = {str(self.path)!r}: cannot be written: {error.strerror}") from error
        return False

    def acquire(self) -> None:
        """Raises Misconfigured where the directory cannot be written, or another node has it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Misconfigured(f"node.data_dir = {str(self.path)!r}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise Misconfigured(f"node.data_dir = {str(self.path)!r}: another node uses this directory") from error

    def release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def default_name(self) -> str:
        """The same for one directory at every start, different for two."""
        return "n" + hashlib.sha256(os.fsencode(self.path.resolve())).hexdigest()[:10]

    def node_id(self) -> bytes:
        """Raises Misconfigured for a file that is none."""
        path = self.path / "node-id"
        try:
            if not path.exists():
                fresh = path.with_suffix(".new")
                fresh.write_text(secrets.token_hex(ID_BYTES) + "\n")
                fresh.replace(path)
            text = path.read_bytes()[:SECRET_BYTES_MAX].decode("ascii", "replace").strip()
        except OSError as error:
            raise Misconfigured(f"node.data_dir: {path}: {error.strerror}") from error
        if len(text) != 2 * ID_BYTES or set(text) - set("0123456789abcdef"):
            raise Misconfigured(f"node.data_dir: {path}: must have {2 * ID_BYTES} hexadecimal digits; delete it")
        return bytes.fromhex(text)

    def secret(self, configured: Path | None) -> bytes:
        """The cluster's secret. Raises Misconfigured for a file that is missing, too short, or open to others."""
        path = configured or self.path / "secret"
        if configured is None and not path.exists():
            _make_secret(path)
        try:
            mode = path.stat().st_mode
            with path.open("rb") as file:
                secret = file.read(SECRET_BYTES_MAX)
        except OSError as error:
            raise Misconfigured(f"cluster.secret_file {path}: {error.strerror}") from error
        if not stat.S_ISREG(mode) or mode & 0o077:
            raise Misconfigured(f"cluster.secret_file {path}: must be a file that only its owner can read (chmod 600)")
        if len(secret) < SECRET_BYTES:
            raise Misconfigured(f"cluster.secret_file {path}: {len(secret)} bytes, must be at least {SECRET_BYTES}")
        return secret


def _make_secret(path: Path) -> None:
    """Whole or not at all: a node killed here makes another one, and nothing was named by the first yet."""
    fresh = path.with_suffix(".new")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise Misconfigured(f"cluster.secret_file {path}: cannot be written: {error.strerror}") from error
