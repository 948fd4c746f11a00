"""A Unix socket on which a transport listens: who can reach it, and what is removed to make or to end it.

Rules
- Its mode says who can connect, 0600 or everybody; who is let in is decided afterwards, and never by the mode.
- Nobody can connect between bind and chmod: it listens only afterwards.
- Only sockets are ever removed, of a dead owner at the start, ours at the end: no file, no live owner's.
"""

from __future__ import annotations

import contextlib
import socket
import stat
from pathlib import Path

from transfer.errors import PeerUnreachable

__all__ = ["MODE", "MODE_FOR_OTHERS", "Listener"]

MODE, MODE_FOR_OTHERS = 0o600, 0o666
_BACKLOG = 128


class Listener:
    """Listens from the start until `close`. Raises PeerUnreachable where another process listens there, or something
    that is no socket lies there, and OSError.
    """

    def __init__(self, path: str, mode: int) -> None:
        self._path = Path(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            _remove_dead(self._path)
            self.socket.bind(path)
            self._path.chmod(mode)
            self._ours = _identity(self._path)
            self.socket.listen(_BACKLOG)
        except BaseException:
            self.socket.close()
            raise

    def close(self) -> None:
        """Removes the path where it is still this socket's, which nobody else's can be while it is bound."""
        with contextlib.suppress(FileNotFoundError):
            if _identity(self._path) == self._ours:
                self._path.unlink()
        self.socket.close()


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat(follow_symlinks=False)
    return found.st_dev, found.st_ino


def _remove_dead(path: Path) -> None:
    try:
        found = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise PeerUnreachable(f"{path}: is there and no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise PeerUnreachable(f"{path}: {error.strerror}") from error
    raise PeerUnreachable(f"{path}: another process listens there")
