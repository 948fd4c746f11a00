"""Early hand-over between two nodes over TCP on loopback: how long a follower waits after the publisher's last part.

The publisher fills a prompt's blocks layer by layer, at the pace of a prefill, and seals them. The follower is a client
of another node that shares neither memory nor a Unix socket with the first one's. Ours: from just before the last part
is written until the follower has all of it, sealed and compared. Beside it the same without following: a get as soon as
the blocks are sealed, asked again until the directory has heard of them.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from bench.door_blocks import GIB, KIB, MIB
from bench.harness import Row, measure, ratio_at_most
from bench.serving import Served, node
from kvstore import Client, KVLayout, Namespace
from kvstore.identity import Keys
from transfer.offers import Home

__all__ = ["rows"]

LAYERS, BLOCKS, BLOCK_BYTES = 32, 32, 2 * MIB
PART = BLOCK_BYTES // LAYERS
PACE_S = 0.01  # a layer of a prefill
SETTLE_S = 3.0  # until both nodes are homes
LAYOUT = KVLayout.uniform(
    engine="bench",
    model="handover",
    revision="1",
    dtype="bfloat16",
    block_tokens=16,
    layers=LAYERS,
    kv_heads=8,
    head_dim=PART // (8 * 16 * 2 * 2),
)


class Pair:
    """One who publishes at the first node, one who wants it at the second."""

    def __init__(self, publisher: Namespace, follower: Namespace) -> None:
        self._publisher, self._follower = publisher, follower
        self._source = np.random.default_rng(5).integers(256, size=(LAYERS, BLOCKS, PART), dtype=np.uint8)
        self._into = np.zeros((BLOCKS, BLOCK_BYTES), np.uint8)
        self._seeds = itertools.count()

    def _publish(self) -> tuple[Keys, Iterator[float]]:
        """The chain; and, when it is gone through, when the last part was begun to be written."""
        tokens = np.random.default_rng(next(self._seeds)).integers(1 << 31, size=BLOCKS * 16, dtype=np.uint32)
        chain = self._publisher.chain(tokens)

        def going() -> Iterator[float]:
            with self._publisher.reserve(chain) as slots:
                for part in range(LAYERS):
                    time.sleep(PACE_S)
                    began = time.perf_counter()
                    slots.write(part, self._source[part])
                    slots.publish(part)
                if slots.seal().stored != BLOCKS:
                    raise RuntimeError("the blocks were not sealed")
            yield began

        return chain, going()

    def following(self) -> float:
        """Milliseconds."""
        chain, going = self._publish()
        ended: list[float] = []

        def follow() -> None:
            done = self._follower.follow(chain, self._into, deadline_s=10).finish()
            if done.blocks == BLOCKS:
                ended.append(time.perf_counter())

        beside = threading.Thread(target=follow)
        beside.start()
        (began,) = going
        beside.join()
        return self._judged(ended, began)

    def afterwards(self) -> float:
        """Milliseconds."""
        chain, going = self._publish()
        (began,) = going
        until = time.perf_counter() + 10
        while self._follower.get(chain, self._into).blocks < BLOCKS:
            if time.perf_counter() > until:
                raise RuntimeError("what was sealed was not found")
        return self._judged([time.perf_counter()], began)

    def _judged(self, ended: list[float], began: float) -> float:
        good = self._into.reshape(BLOCKS, LAYERS, PART).transpose(1, 0, 2)
        if not ended or not np.array_equal(good, self._source):
            raise RuntimeError("what was published did not come")
        self._into[:] = 0
        return (ended[0] - began) * 1e3


def rows(quick: bool) -> list[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="kvstore-bench-") as folder,
        mock.patch.object(Home, "same_files", lambda *_: False),
        _two(Path(folder)) as (first, second),
        Client(first.address) as publisher,
        Client(second.remote) as follower,
    ):
        pair = Pair(publisher.namespace(LAYOUT), follower.namespace(LAYOUT))
        pair.following()
        row = measure(
            f"last of {LAYERS} parts to all of {BLOCKS} x {BLOCK_BYTES // KIB} KiB at another node, followed",
            unit="ms",
            ours=pair.following,
            limit=pair.afterwards,
            limit_is="a get after the seal",
            target=ratio_at_most(0.5),
            rounds=3 if quick else 15,
        )
    return [row]


def _free_ports(count: int) -> list[int]:
    """Nobody's a moment ago."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]


@contextlib.contextmanager
def _two(folder: Path) -> Iterator[tuple[Served, Served]]:
    """Nodes of one cluster."""
    ports = _free_ports(2)
    members = ",".join(f"127.0.0.1:{port}" for port in ports)
    secret = folder / "secret"
    secret.write_bytes(b"of this cluster!" * 2)
    secret.chmod(0o600)
    sets = ("file.enabled=false", f"cluster.members={members}", f"cluster.secret_file={secret}")
    with contextlib.ExitStack() as nodes:
        served = []
        for i, port in enumerate(ports):
            (folder / str(i)).mkdir()
            served.append(
                nodes.enter_context(
                    node(folder / str(i), GIB, *sets, f"node.name=bench{i}", address=f"127.0.0.1:{port}")
                )
            )
        time.sleep(SETTLE_S)
        yield served[0], served[1]
