"""The TCP transport between two processes on loopback, beside what plain sockets do with the same extents and streams.

Extents are drawn anew each time from 256 MiB that no cache holds, into distinct memory. The limit (bare_tcp.cpp) is a
server and a reader in C++ with a blocking thread a stream, which check and promise nothing. iperf3, which moves one
buffer that stays in cache, stands beside it. TLS is OpenSSL's, in user space, with certificates made for the run.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.copy import buffer
from bench.harness import (
    NOT_INSTALLED,
    Figure,
    Row,
    at_least,
    at_most,
    measure,
    no_target,
    ratio_at_least,
    ratio_at_most,
    timed,
)
from bench.peers import work
from bench.peers.process import NO_PEERS, Peers
from tests.certificates import Authority
from transfer.base import Batch, Region, Rights
from transfer.tcp import TcpConfig, TcpEndpoint, TcpTransport, TlsFiles
from transfer.testing.parties import OwnerProcess

__all__ = ["rows"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
BUFFER_BYTES = 256 * MIB
DEADLINE_S = 60.0
SINGLES = 50
HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "bench"
Offsets = npt.NDArray[np.int64]


class Bare:
    """The limit: a server process, and as many streams to it as we have lanes."""

    def __init__(self, streams: int, target: npt.NDArray[np.uint8], spin_ns: int = 0) -> None:
        """spin_ns: how long either side looks again before it sleeps."""
        BUILD.mkdir(parents=True, exist_ok=True)
        program, library = BUILD / "bare_tcp", BUILD / "libbare_tcp.so"
        command = [os.environ.get("CXX", "c++"), "-O3", "-std=c++20", "-pthread", str(HERE / "bare_tcp.cpp")]
        subprocess.run([*command, "-o", str(program)], check=True, capture_output=True, timeout=120)
        subprocess.run([*command, "-shared", "-fPIC", "-o", str(library)], check=True, capture_output=True, timeout=120)
        self._library, self._spin_ns = ctypes.CDLL(str(library)), spin_ns
        command = [str(program), str(BUFFER_BYTES), str(spin_ns)]
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._server.stdout is not None
        port = int(self._server.stdout.readline())
        self._streams = np.array([self._library.bare_tcp_connect(port) for _ in range(streams)], dtype=np.int32)
        self._target = target

    def read(self, offsets: Offsets, length: int) -> None:
        asked = offsets.astype(np.uint64)
        self._library.bare_tcp_spin(ctypes.c_int64(self._spin_ns))
        failed = self._library.bare_tcp_read(
            ctypes.c_void_p(self._streams.ctypes.data),
            ctypes.c_int(len(self._streams)),
            ctypes.c_void_p(asked.ctypes.data),
            ctypes.c_int(len(asked)),
            ctypes.c_uint64(length),
            ctypes.c_void_p(self._target.ctypes.data),
        )
        if failed:
            raise RuntimeError("the bare reader lost its server")

    def close(self) -> None:
        self._server.kill()
        self._server.wait()


@dataclass(frozen=True, slots=True)
class Pair:
    """A transport here, and an owner's memory shown to it."""

    loop: asyncio.AbstractEventLoop
    endpoint: TcpEndpoint
    region: Region
    handle: int

    def batch(self, offsets: Offsets, length: int) -> Batch:
        table = np.empty((len(offsets), 5), dtype=np.int64)
        table[:, 0], table[:, 2], table[:, 4] = self.region.id, self.handle, length
        table[:, 1] = table[:, 3] = offsets
        return Batch(table)

    def seconds(self, batch: Batch, parts: Sequence[int] | None) -> float:
        async def read() -> float:
            start = time.perf_counter()
            await self.endpoint.read(batch, deadline_s=DEADLINE_S, parts=parts)
            return time.perf_counter() - start

        return self.loop.run_until_complete(read())


@contextmanager
def pair(
    target: npt.NDArray[np.uint8], kind: str, config: TcpConfig, buffer_bytes: int = BUFFER_BYTES
) -> Iterator[Pair]:
    """kind: what the owner's process is started with."""
    loop = asyncio.new_event_loop()

    async def start() -> tuple[OwnerProcess, TcpTransport, Pair]:
        owner, transport = await OwnerProcess.start(kind), TcpTransport(config)
        await owner.memory("bench", buffer_bytes, 1)
        descriptor = await owner.grant("bench", [(0, buffer_bytes)], rights=Rights.READ, lifetime_s=3600.0)
        endpoint = await transport.connect(owner.address, deadline_s=DEADLINE_S)
        (presented,) = await endpoint.present([descriptor], deadline_s=DEADLINE_S)
        region = await transport.register(target)
        return owner, transport, Pair(loop, endpoint, region, presented.handle)

    owner, transport, made = loop.run_until_complete(start())
    try:
        yield made
    finally:
        loop.run_until_complete(transport.close())
        loop.run_until_complete(owner.close())
        loop.close()


class Draw:
    """Places of the buffer, without repetition."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(2)

    def __call__(self, length: int, count: int) -> Offsets:
        drawn: Offsets = self._random.permutation(BUFFER_BYTES // length)[:count] * length
        return drawn


def iperf3(streams: int) -> Figure | str:
    """GiB/s of `iperf3 -P streams` over loopback, the median of three seconds. Not in turns with ours: whoever comes
    next would find the cores and caches as its processes left them.
    """
    if shutil.which("iperf3") is None:
        return NOT_INSTALLED

    def second() -> float:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        with subprocess.Popen(
            ["iperf3", "-s", "-1", "-p", port, "--forceflush"], stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            next(line for line in server.stdout if "listening" in line)
            command = ["iperf3", "-c", "127.0.0.1", "-p", port, "-t", "1", "-P", str(streams), "-J"]
            told = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        return float(told["end"]["sum_received"]["bits_per_second"]) / 8 / GIB

    median = statistics.median(second() for _ in range(3))
    return lambda: median


def rows(quick: bool, peers: Peers = NO_PEERS) -> list[Row]:
    target, config, draw = buffer(0), TcpConfig(), Draw()
    bare = Bare(config.lanes, target)
    spinning = Bare(config.lanes, target, int(config.spin_s_max * 1e9))
    rounds = 3 if quick else 21
    try:
        with pair(target, "tcp", config) as plain:
            made = [
                *_rates(plain, bare, draw, rounds, config.lanes, peers),
                *_single(plain, bare, spinning, draw, rounds),
            ]
            made += [_loops_share(plain, draw, rounds)]
            made.append(_sealed(plain, target, draw, rounds))
    finally:
        bare.close()
        spinning.close()
    return made


def _ours(of: Pair, draw: Draw, length: int, count: int, *, digests: bool = False) -> Figure:
    def once() -> float:
        parts = [length] * count if digests else None
        return length * count / GIB / of.seconds(of.batch(draw(length, count), length), parts)

    return once


def _bare(bare: Bare, draw: Draw, length: int, count: int) -> Figure:
    def once() -> float:
        offsets = draw(length, count)
        return length * count / GIB / timed(lambda: bare.read(offsets, length))

    return once


def _rates(of: Pair, bare: Bare, draw: Draw, rounds: int, lanes: int, peers: Peers) -> list[Row]:
    large = (2 * MIB, 32)
    plain = f"plain sockets, {lanes} streams"

    def per_second(figure: Figure) -> Figure:
        return lambda: figure() * GIB / (4 * KIB)

    return [
        measure(
            "tcp read, 2 MiB x 32",
            unit="GiB/s",
            ours=_ours(of, draw, *large),
            limit=_bare(bare, draw, *large),
            limit_is=plain,
            target=ratio_at_least(0.9),
            peers={f"iperf3 -P {lanes}": iperf3(lanes), **peers.of(work.TCP_2MIB)},
            rounds=rounds,
        ),
        measure(
            "tcp read, 2 MiB x 32, with digests",
            unit="GiB/s",
            ours=_ours(of, draw, *large, digests=True),
            limit=_ours(of, draw, *large),
            limit_is="ours without digests",
            target=ratio_at_least(0.9),
            rounds=rounds,
        ),
        measure(
            "tcp read, 64 KiB x 256",
            unit="GiB/s",
            ours=_ours(of, draw, 64 * KIB, 256),
            limit=_ours(of, draw, *large),
            limit_is="ours, 2 MiB x 32",
            target=ratio_at_least(0.7),
            peers={plain: _bare(bare, draw, 64 * KIB, 256), **peers.of(work.TCP_64KIB)},
            rounds=rounds,
        ),
        measure(
            "tcp read, 4 KiB x 1,000",
            unit="extents/s",
            ours=per_second(_ours(of, draw, 4 * KIB, 1000)),
            limit=per_second(_bare(bare, draw, 4 * KIB, 1000)),
            limit_is=plain,
            target=at_least(300_000, "extents/s"),
            peers=peers.of(work.TCP_4KIB),
            rounds=rounds,
        ),
    ]


def _loops_share(of: Pair, draw: Draw, rounds: int) -> Row:
    """The threads that move bytes never take the interpreter's lock, so the loop's thread holds it for as long as it
    computes, at the most.
    """

    def loops(clock: Callable[[], float]) -> Figure:
        def once() -> float:
            batch = of.batch(draw(2 * MIB, 32), 2 * MIB)
            start = clock()
            of.seconds(batch, None)
            return (clock() - start) * 1e6

        return once

    return measure(
        "event loop's thread at work during tcp read, 2 MiB x 32",
        unit="us",
        ours=loops(time.thread_time),
        limit=loops(time.perf_counter),
        limit_is="the whole batch",
        target=ratio_at_most(0.05),
        rounds=rounds,
    )


def _single(of: Pair, bare: Bare, spinning: Bare, draw: Draw, rounds: int) -> Iterator[Row]:
    """One read after the other, and with a pause before each, in which the threads of both sides have gone to sleep."""

    def p50(one: Callable[[Offsets], float], pause_s: float) -> Figure:
        def once() -> float:
            taken = []
            for offset in draw(4 * KIB, SINGLES):
                if pause_s:
                    time.sleep(pause_s)
                taken.append(one(np.array([offset])))
            return float(np.median(taken)) * 1e6

        return once

    def now(offsets: Offsets) -> float:
        batch = of.batch(offsets, 4 * KIB)
        return timed(lambda: of.endpoint.read_now(batch, deadline_s=DEADLINE_S))

    def awaited(offsets: Offsets) -> float:
        return of.seconds(of.batch(offsets, 4 * KIB), None)

    def by(which: Bare) -> Callable[[Offsets], float]:
        return lambda offsets: timed(lambda: which.read(offsets, 4 * KIB))

    for how, ours, pause_s, target in (
        ("calling thread", now, 0.0, at_most(60, "us")),
        ("awaited", awaited, 0.0, no_target()),
        ("calling thread, after 1 ms", now, 0.001, no_target()),
        ("awaited, after 1 ms", awaited, 0.001, no_target()),
    ):
        yield measure(
            f"tcp read of one 4 KiB extent, {how}, p50",
            unit="us",
            ours=p50(ours, pause_s),
            limit=p50(by(spinning), pause_s),
            limit_is="plain sockets, looking again as ours do",
            target=target,
            peers={"plain sockets, blocking": p50(by(bare), pause_s)},
            rounds=rounds,
        )


def _sealed(plain: Pair, target: npt.NDArray[np.uint8], draw: Draw, rounds: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="bench-tls-") as name:
        folder = Path(name)
        authority = Authority(folder, "bench")
        owner, reader = authority.sign("owner", server=True), authority.sign("reader")
        files = TlsFiles(str(reader.certificate), str(reader.private_key), str(authority.path))
        kind = f"tcp+tls:{owner.certificate}:{owner.private_key}:{authority.path}"
        with pair(target, kind, TcpConfig(listens=False, tls=files)) as sealed:
            return measure(
                "tcp read, 2 MiB x 32, with TLS",
                unit="GiB/s",
                ours=_ours(sealed, draw, 2 * MIB, 32),
                limit=_ours(plain, draw, 2 * MIB, 32),
                limit_is="ours in the clear",
                target=no_target(),
                rounds=rounds,
            )
