"""An S3 server for tests, and what stands between it and a node: a relay that can hang, refuse, cut, or be slow."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.ports import free_ports

START_MAX_S = 60.0
BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(slots=True)
class Relay:
    """Carries connections to `to`. mode: pass, hang (takes them and says nothing), busy (503), cut, slow (a pause
    before each piece).
    """

    to: tuple[str, int]
    mode: str = "pass"
    connections: int = 0
    _listening: socket.socket = field(init=False)
    _open: set[socket.socket] = field(default_factory=set)
    _closed: bool = False

    def __post_init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listening.getsockname()[1])

    def set(self, mode: str) -> None:
        """From now on; what is under way is cut."""
        self.mode = mode
        for one in tuple(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closed = True
        self._listening.close()
        self.set("cut")

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._open.add(client)
        with client, contextlib.suppress(OSError):
            if self.mode == "busy":
                client.recv(65536)
                client.sendall(BUSY)
            elif self.mode == "hang":
                while client.recv(65536):
                    pass
            elif self.mode != "cut":
                with socket.create_connection(self.to) as server:
                    self._open.add(server)
                    back = threading.Thread(target=self._carry, args=(server, client), daemon=True)
                    back.start()
                    self._carry(client, server)
                    back.join()
                    self._open.discard(server)
        self._open.discard(client)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.mode == "slow":
                    time.sleep(0.05)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def moto_server() -> Iterator[int]:
    """moto's S3 in a process of its own, with a bucket `kvpacks`; yields the port."""
    (port,) = free_ports(1)
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + START_MAX_S
            while not _made_bucket(port):
                assert process.poll() is None, "moto's server ended"
                assert time.monotonic() < until, "moto's server does not answer"
                time.sleep(0.1)
            yield port
        finally:
            process.kill()


def _made_bucket(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        # moto checks no signature, but wants to see one.
        signed = "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
        connection.request("PUT", "/kvpacks", headers={"Authorization": signed})
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def s3_options(port: int, key: str = "test", secret: str = "test") -> list[str]:
    """`object.options` of a node, as --set takes lists."""
    options = [
        f"endpoint=http://127.0.0.1:{port}",
        f"access_key_id={key}",
        f"secret_access_key={secret}",
        "region=us-east-1",
        "virtual_hosted_style_request=false",
    ]
    return [f"object.options={','.join(options)}"]
