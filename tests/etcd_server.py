"""A real etcd (Debian's etcd-server) for tests: a process of the test's own, in its own folder, on loopback ports; or
on a machine of a network made by the test (tests/cluster_rig/links.py).
"""

from __future__ import annotations

import base64
import json
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from tests.certificates import Pair
from tests.ports import free_ports

if TYPE_CHECKING:
    from tests.cluster_rig.links import Machine

T = TypeVar("T")

START_MAX_S = 60.0
# The system's, or the one that deploy/dev/setup.sh has unpacked.
ETCD = shutil.which("etcd") or shutil.which("etcd", path=Path(__file__).resolve().parents[1] / "build/etcd/usr/bin")

needs_etcd = pytest.mark.skipif(
    ETCD is None, reason="no etcd (deploy/dev/setup.sh etcd, or apt-get install etcd-server)"
)


class EtcdServer:
    """Started, killed and started again on the same data. `peers`: name and peer port of each member of its cluster.
    machine: where it runs and is reached at; it is asked over loopback there, in the clear.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "e0",
        peers: dict[str, int] | None = None,
        tls: Pair | None = None,
        client_ca: Path | None = None,
        machine: Machine | None = None,
    ) -> None:
        (self.port,) = free_ports(1)
        self._machine = machine
        self.name, self._folder = name, folder / name
        self._peers = peers or {name: free_ports(1)[0]}
        self._tls, self._client_ca = tls, client_ca
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{self._machine.address if self._machine else '127.0.0.1'}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.endpoint}"

    @property
    def _asked_at(self) -> str:
        return f"http://127.0.0.1:{self.port}" if self._machine else self.url

    def _there(self, what: Callable[[], T]) -> T:
        return self._machine.do(what) if self._machine else what()

    def spawn(self) -> None:
        peer = f"http://127.0.0.1:{self._peers[self.name]}"
        cluster = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in self._peers.items())
        assert ETCD is not None
        command = [ETCD, "--name", self.name, "--data-dir", str(self._folder), "--log-level", "error"]
        listens = ",".join(dict.fromkeys((self.url, self._asked_at)))
        command += ["--listen-client-urls", listens, "--advertise-client-urls", self.url]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", cluster]
        command += ["--heartbeat-interval", "50", "--election-timeout", "500"]
        if self._tls is not None:
            command += ["--cert-file", str(self._tls.certificate), "--key-file", str(self._tls.private_key)]
        if self._client_ca is not None:
            command += ["--client-cert-auth", "--trusted-ca-file", str(self._client_ca)]
        self._log = (self._folder.parent / f"{self.name}.log").open("ab")
        if self._machine is not None:
            command = self._machine.command(command)
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def start(self) -> EtcdServer:
        self.spawn()
        self.wait()
        return self

    def wait(self) -> None:
        """Until it serves."""
        until = time.monotonic() + START_MAX_S
        while True:
            assert self.process is not None and self.process.poll() is None, Path(self._log.name).read_text()
            try:
                if self._tls is None or self._machine is not None:
                    self.ask("maintenance/status")
                else:
                    socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < until, Path(self._log.name).read_text()
                time.sleep(0.05)

    def ask(self, what: str, **fields: Any) -> Any:
        """Over the JSON gateway: as an operator would, by other code than ours."""
        token = {"Authorization": fields.pop("token")} if "token" in fields else {}
        request = urllib.request.Request(f"{self._asked_at}/v3/{what}", json.dumps(fields).encode(), token)

        def asked() -> Any:
            with urllib.request.urlopen(request, timeout=5, context=ssl.create_default_context()) as answer:
                return json.load(answer)

        return self._there(asked)

    def put(self, key: str, value: str) -> int:
        """The revision that it made."""
        told = self.ask("kv/put", key=_base64(key), value=_base64(value))
        return int(told["header"]["revision"])

    def keys(self, prefix: str, **token: str) -> list[str]:
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        told = self.ask("kv/range", key=_base64(prefix), range_end=_base64(end), **token)
        return [base64.b64decode(kv["key"]).decode() for kv in told.get("kvs", ())]

    def delete(self, key: str) -> None:
        self.ask("kv/deleterange", key=_base64(key))

    def with_user(self, name: str, password: str) -> None:
        """Only he may do anything from now on."""
        for user in {"root", name}:
            self.ask("auth/user/add", name=user, password=password)
            self.ask("auth/user/grant", user=user, role="root")
        self.ask("auth/enable")

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(10)
            self._log.close()

    def wipe(self) -> None:
        shutil.rmtree(self._folder)

    def __enter__(self) -> EtcdServer:
        return self.start() if self.process is None else self

    def __exit__(self, *_: object) -> None:
        self.kill()


def etcd_cluster(folder: Path, count: int) -> Sequence[EtcdServer]:
    """Not started: its members need each other to serve."""
    peers = {f"e{i}": port for i, port in enumerate(free_ports(count))}
    return [EtcdServer(folder, name=name, peers=peers) for name in peers]


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
