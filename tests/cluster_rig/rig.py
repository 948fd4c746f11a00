"""Five machines with a node and an engine's process each, and one with etcd, in a network of the test's own.

All is as it would be between machines: addresses beyond loopback, so mutual TLS on every port, etcd over TLS with a
user and a password. A machine's local doors (Unix sockets) can be asked from the test itself.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509

from kvstore import Client
from tests.certificates import Authority, Pair
from tests.cluster_rig.links import Machine, Network
from tests.etcd_server import EtcdServer
from tests.integration.nodes import NodeProcess, eventually, layout, read_line, tokens
from tests.integration.patience import SLOW_S, WAITS_S, claimed, in_time
from tests.integration.test_cluster import seen, states

FRAMED, GRPC, METRICS, BYTES = 7400, 7401, 9464, 7402
PASSWORD = "of the rig"
ANSWER_MAX_S = 30.0
FILE, FAR_MEMORY, FAR_FILE = 2, 9, 10

Told = dict[str, Any]


class WrongBytes(AssertionError):
    """What must never be."""


class NodeThere(NodeProcess):
    """`kvstore node` on a machine of the network; `others`: doors elsewhere than at the machine's address."""

    def __init__(self, machine: Machine, home: Path, *sets: str, memory: str, **others: str) -> None:
        at = machine.address
        doors = {"address": f"{at}:{FRAMED}", "grpc": f"{at}:{GRPC}", "metrics": f"{at}:{METRICS}", **others}
        super().__init__(home, f"transfer.address={at}:{BYTES}", *sets, memory=memory, **doors)
        self.machine = machine

    def command(self) -> list[str]:
        return self.machine.command(super().command())


class Engine:
    """A client's process beside a node (child.py), one question at a time, each with an end."""

    def __init__(self, node: NodeThere, pair: Pair, authority: Path) -> None:
        files = [str(path) for path in (pair.certificate, pair.private_key, authority)]
        command = [sys.executable, "-m", "tests.cluster_rig.child", node.address, *files]
        self.process = subprocess.Popen(
            node.machine.command(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait(self) -> Engine:
        """Until it is ready."""
        assert json.loads(read_line(self.process, ANSWER_MAX_S)) == "ready"
        return self

    def ask(self, verb: str, model: str, seed: int, blocks: int, deadline_s: float = 5.0) -> Told:
        assert self.process.stdin is not None
        words = {"verb": verb, "model": model, "seed": seed, "blocks": blocks, "deadline_s": deadline_s}
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        told: Told = json.loads(read_line(self.process, ANSWER_MAX_S))
        if told.get("wrong"):
            raise WrongBytes(f"{words}: {told}")
        return told

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


class Rig:
    """Nodes n0, n1, ...; `engines[i]` is the client beside node i. spare: machines with nothing on. Settles sooner than
    a cluster does by default.
    """

    def __init__(
        self, folder: Path, *sets: str, count: int = 5, spare: Sequence[str] = (), memory: str = "8MiB"
    ) -> None:
        self.folder, self.count = folder, count
        self.names = [f"n{i}" for i in range(count)]
        self.network = Network(*self.names, "etcd", *spare)
        self.engines: list[Engine] = []
        self.nodes: list[NodeThere] = []
        try:
            self.authority = Authority(folder, "ours")
            self.engine_pair = self.authority.sign("engine")
            self.etcd = self._etcd()
            self.secret = _private(folder / "secret", b"of this cluster!" * 2)
            self.password = _private(folder / "password", PASSWORD.encode())
            self.nodes = [self.node(i, *sets, memory=memory) for i in range(count)]
        except BaseException:
            self.network.close()
            raise

    def _etcd(self) -> EtcdServer:
        machine = self.network["etcd"]
        pair = self.pair("etcd", machine.address)
        return EtcdServer(self.folder, tls=pair, client_ca=self.authority.path, machine=machine)

    def pair(self, name: str, address: str, authority: Authority | None = None) -> Pair:
        """As a node needs it: it answers and it asks."""
        also = [x509.IPAddress(ipaddress.ip_address(address))]
        return (authority or self.authority).sign(name, server=True, client=True, also=also)

    def sealed(self, pair: Pair, authority: Authority | None = None) -> list[str]:
        return [
            f"security.certificate={pair.certificate}",
            f"security.private_key={pair.private_key}",
            f"security.client_ca={(authority or self.authority).path}",
        ]

    def settings(self, pair: Pair) -> list[str]:
        """Of every node of this cluster, but for what seals its doors."""
        return [
            f"cluster.members=etcds://{self.etcd.endpoint}/rig",
            "cluster.etcd_user=kvstore",
            f"cluster.etcd_password_file={self.password}",
            f"cluster.etcd_ca={self.authority.path}",
            f"cluster.etcd_certificate={pair.certificate}",
            f"cluster.etcd_private_key={pair.private_key}",
            f"cluster.secret_file={self.secret}",
            "cluster.etcd_ttl_s=2",
            "cluster.settle_ms=300",
        ]

    def node(self, i: int, *sets: str, memory: str) -> NodeThere:
        machine, home = self.network[self.names[i]], self.folder / self.names[i]
        home.mkdir()
        pair = self.pair(self.names[i], machine.address)
        name = f"node.name={self.names[i]}-{self.folder.name}"  # names the segments, which all share one /dev/shm
        host = f"cluster.host={self.names[i]}"  # all of them are one kernel's
        return NodeThere(machine, home, name, host, *self.settings(pair), *self.sealed(pair), *sets, memory=memory)

    def listed(self) -> list[str]:
        """What etcd has of nodes."""
        token = self.etcd.ask("auth/authenticate", name="kvstore", password=PASSWORD)["token"]
        return self.etcd.keys("rig/nodes/", token=token)

    def name(self, i: int) -> str:
        return f"{self.names[i]}-{self.folder.name}"

    def start(self) -> Rig:
        self.etcd.start()
        self.etcd.with_user("kvstore", PASSWORD)
        for node in self.nodes:
            node.process = node.spawn()
        self.engines = [Engine(node, self.engine_pair, self.authority.path) for node in self.nodes]
        finish_all(self.nodes)
        for engine in self.engines:
            engine.wait()
        self.meet()
        return self

    def meet(self, within_s: float = 30.0) -> None:
        """Until every node sees every other one alive."""
        until = time.monotonic() + within_s
        for i, node in enumerate(self.nodes):
            others = {self.name(j): "alive" for j in range(self.count) if j != i}
            while states(node) != others:
                assert time.monotonic() < until, (self.name(i), seen(node))
                time.sleep(0.05)

    def mend(self) -> None:
        """As it was before a test."""
        self.network.mend()
        self.meet()

    def dead_within(self, who: int, at: list[int], within_s: float) -> float:
        """Seconds until all of these nodes say that it is dead."""
        began = time.monotonic()
        while any(states(self.nodes[i]).get(self.name(who)) != "dead" for i in at):
            assert time.monotonic() - began < within_s, [seen(self.nodes[i]) for i in at]
            time.sleep(0.02)
        return time.monotonic() - began

    def found(self, at: int, model: str, seed: int, blocks: int, within_s: float = WAITS_S) -> Told:
        """A lookup there that finds so many."""
        until = time.monotonic() + within_s
        while (told := self.engines[at].ask("lookup", model, seed, blocks)).get("blocks") != blocks:
            assert time.monotonic() < until, told
            time.sleep(0.02)
        return told

    def claimed(self, at: int, model: str, seed: int, blocks: int, holders: int) -> None:
        """Until so many have told homes that they have it."""
        with Client(self.nodes[at].address) as client:
            ns = client.namespace(layout(model))
            claimed(self.nodes[at], ns, ns.chain(tokens(blocks, seed)), holders)

    def put(self, at: int, model: str, seed: int, blocks: int) -> None:
        told = self.engines[at].ask("put", model, seed, blocks)
        assert told.get("stored", 0) + told.get("held", 0) == blocks, told

    def get(self, at: int, model: str, seed: int, blocks: int, deadline_s: float = 5.0) -> Told:
        """Never wrong (the engine's process compares), never late."""
        told = self.engines[at].ask("get", model, seed, blocks, deadline_s)
        assert "blocks" in told and told["s"] < deadline_s + SLOW_S, told
        return told

    def whole(self, at: int, model: str, seed: int, blocks: int, deadline_s: float = 5.0) -> Told:
        """A get that brings so many at once, but for a holder that a busy machine has kept from answering."""
        return in_time(lambda: self.get(at, model, seed, blocks, deadline_s), lambda told: told["blocks"] == blocks)

    def got(self, at: int, model: str, seed: int, blocks: int, within_s: float = WAITS_S) -> Told:
        """A get that brings so many, once holders that failed a moment ago are asked again."""
        until = time.monotonic() + within_s
        while (told := self.get(at, model, seed, blocks))["blocks"] != blocks:
            assert time.monotonic() < until, told
            time.sleep(0.1)
        return told

    def quiet(self) -> None:
        """Nobody holds anything any more."""
        for node in self.nodes:
            eventually(lambda node=node: node.holds() == 0)

    def close(self) -> None:
        for engine in self.engines:
            engine.close()
        for node in self.nodes:
            node.close()
        self.etcd.kill()
        self.network.close()

    def __enter__(self) -> Rig:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


def _private(path: Path, content: bytes) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path


def finish_all(nodes: Sequence[NodeProcess]) -> None:
    """What was spawned at once: most of a start is Python's."""
    for node in nodes:
        node.finish_start()
