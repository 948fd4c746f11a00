"""Lookups through the socket: one against an echo of as many bytes, and how many keys a node looks up a second.

`python -m bench.door_lookups ADDRESS SEED SECONDS` is one of the four clients of the last row.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import numpy.typing as npt

from bench.door_blocks import KIB, layout
from bench.harness import Row, at_least, at_most, measure, median_of
from bench.peers import work
from bench.peers.process import Peers
from kvstore import Client

__all__ = ["lookups"]

CALLS = 50  # a figure of a call is the median of so many
LOOKUP_KEYS = 1_024
HELD_KEYS = 256_000
LOOKUP_CLIENTS = 4


@contextmanager
def _echo(asked: int, answered: int) -> Iterator[Callable[[], object]]:
    """A bare socket in another process that answers so many bytes for so many."""
    ours, theirs = socket.socketpair()
    code = (
        "import socket,sys\n"
        f"s=socket.socket(fileno={theirs.fileno()});b=bytearray({asked});a=bytes({answered})\n"
        "while True:\n"
        "    n=0\n"
        "    while n<len(b):\n"
        "        g=s.recv_into(memoryview(b)[n:])\n"
        "        if not g: sys.exit()\n"
        "        n+=g\n"
        "    s.sendall(a)\n"
    )
    with ours, subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()]):
        theirs.close()
        question, answer = bytes(asked), bytearray(answered)

        def once() -> None:
            ours.sendall(question)
            got = 0
            while got < answered:
                got += ours.recv_into(memoryview(answer)[got:])

        yield once
        ours.close()


def _keys(client: Client) -> list[npt.NDArray[np.uint8]]:
    """Chains of 1,024 keys of which the first half is held: 256,000 held in all."""
    space = client.namespace(layout(4 * KIB))
    half = LOOKUP_KEYS // 2
    block = np.zeros(half * 4 * KIB, dtype=np.uint8)
    chains = [space.chain(np.arange(i * LOOKUP_KEYS, (i + 1) * LOOKUP_KEYS)) for i in range(HELD_KEYS // half)]
    for chain in chains:
        if space.lookup(chain[:half]).blocks < half:
            space.put(chain[:half], block)
    return chains


def lookups(client: Client, address: str, rounds: int, seconds: float, peers: Peers) -> Iterator[Row]:
    chains = _keys(client)
    space = client.namespace(layout(4 * KIB))
    random = np.random.default_rng(2)
    whole = [np.concatenate((a[:512], b[:512])) for a, b in zip(chains[::2], chains[1::2], strict=True)]

    def look() -> None:
        if space.lookup(whole[int(random.integers(len(whole)))]).blocks != LOOKUP_KEYS:
            raise RuntimeError("a held chain was not found")

    with _echo(LOOKUP_KEYS * 32 + 32, LOOKUP_KEYS + 24) as echo:
        yield measure(
            "lookup of 1,024 held keys, p50",
            unit="us",
            ours=lambda: median_of(look, CALLS, scale=1e6),
            limit=lambda: median_of(echo, CALLS, scale=1e6),
            limit_is="an echo of as many bytes (Python), us",
            target=at_most(150, "us"),
            peers=peers.of(work.LOOKUP),
            rounds=rounds,
        )

    def together() -> float:
        command = [sys.executable, "-m", "bench.door_lookups", address]
        with ExitStack() as stack:
            clients = [
                stack.enter_context(
                    subprocess.Popen(
                        [*command, str(i), str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                    )
                )
                for i in range(LOOKUP_CLIENTS)
            ]
            for process in clients:
                assert process.stdout is not None
                process.stdout.readline()
            for process in clients:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            return sum(float(process.stdout.readline()) for process in clients if process.stdout is not None)

    yield measure(
        "keys looked up a second, 4 clients, half of each 1,024 held",
        unit="keys/s",
        ours=together,
        limit=None,
        limit_is="",
        target=at_least(5e6, "keys/s"),
        peers=peers.of(work.KEYS_PER_S, ", one client"),
        rounds=max(1, rounds // 5),
    )


def look_up(address: str, seed: int, seconds: float) -> None:
    """One of several clients: says when it is ready, then how many keys a second it has looked up."""
    with Client(address) as client:
        chains, random = _keys(client), np.random.default_rng(seed)
        space = client.namespace(layout(4 * KIB))
        order = random.permutation(len(chains)).tolist()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        start, calls = time.perf_counter(), 0
        while (took := time.perf_counter() - start) < seconds:
            if space.lookup(chains[order[calls % len(order)]]).blocks != LOOKUP_KEYS // 2:
                raise RuntimeError("a held chain was not found")
            calls += 1
        sys.stdout.write(f"{calls * LOOKUP_KEYS / took}\n")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        look_up(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
