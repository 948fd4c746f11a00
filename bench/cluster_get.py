"""A prompt that another node holds, got over TCP on loopback: beside the bare transfer engine, which moves the same
extents between two processes, over as many lanes, and checks nothing.

Nodes and client are processes of their own. The client believes that it is on another machine than the holders, so
that no memory is shared with them; its own node is at its Unix socket, and has none of it. A prompt of 4,096 tokens in
blocks of 16 is 256 blocks of 2 MiB: two windows, far more than any cache.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np

from bench.door_blocks import GIB, KIB, MIB, Bytes, layout
from bench.harness import Figure, Row, Target, measure, no_target, ratio_at_least, timed
from bench.serving import Served, cluster
from bench.tcp import Pair, pair
from kvstore import Client, Namespace
from kvstore.config import TransferConfig
from transfer.offers import Home
from transfer.tcp import TcpConfig

__all__ = ["rows"]

PROMPT = 256  # blocks of 4,096 tokens
BYTES = PROMPT * 2 * MIB
SMALL = 1_024  # blocks of 64 KiB
FOUND_S = 10.0
WRITTEN_S = 1.0  # a prompt, behind
FILE_PROMPT, FILE_PROMPTS = 64, 8  # of 2 MiB; the memory of a node has two of them


def rows(quick: bool) -> list[Row]:
    rounds = 3 if quick else 11
    target = np.zeros(BYTES, np.uint8)
    lanes = TcpConfig(lanes=TransferConfig().lanes)
    with mock.patch.object(Home, "same_files", lambda *_: False), pair(target, "tcp", lanes, BYTES) as bare:
        with _nodes(3, GIB, "file.enabled=false") as nodes:
            made = _memory(nodes, bare, target, rounds)
        with _nodes(2, FILE_PROMPT * 4 * MIB, *_FILES) as nodes:
            made.append(_file(nodes, target, rounds))
    return made


_FILES = ("file.enabled=true", f"file.bytes={2 * GIB}", "file.admission=always")


@contextmanager
def _nodes(count: int, memory_bytes: int, *sets: str) -> Iterator[list[Served]]:
    with (
        tempfile.TemporaryDirectory(prefix="kvstore-bench-") as folder,
        # No copies of what is got again: each get is from where it was put.
        cluster(Path(folder), count, memory_bytes, "cluster.replica_window_s=0", *sets) as nodes,
    ):
        yield nodes


class Prompt:
    """Blocks that some nodes hold, as the client of another one gets them."""

    def __init__(self, asking: Client, holders: Sequence[Client], block_bytes: int, count: int, first: int) -> None:
        self.block_bytes, self.count = block_bytes, count
        self.space = asking.namespace(layout(block_bytes))
        self.chain = self.space.chain(np.arange(first, first + count))
        source = np.random.default_rng(first).integers(0, 256, count * block_bytes, np.uint8)
        for holder in holders:
            if _at(holder, block_bytes).put(self.chain, source).stored != count:
                raise RuntimeError("a node did not take what was put")

    def wait(self, holders: int = 1) -> None:
        """Until the asking node knows whose they are."""
        until = time.monotonic() + FOUND_S
        while (found := self.space.lookup(self.chain)).blocks < self.count or len(found.holders) < holders:
            if time.monotonic() > until:
                raise RuntimeError("nobody says that he has what was put")
            time.sleep(0.02)

    def seconds(self, into: Bytes, blocks: int = 0) -> float:
        blocks = blocks or self.count
        chain, into = self.chain[:blocks], into[: blocks * self.block_bytes]

        def get() -> None:
            if (got := self.space.get(chain, into)).blocks != blocks or got.tiers.min() < 9:
                raise RuntimeError(f"a block that another node has did not come: {got}")

        return timed(get)

    def rate(self, into: Bytes) -> Figure:
        return lambda: self.count * self.block_bytes / GIB / self.seconds(into)


def _at(client: Client, block_bytes: int) -> Namespace:
    return client.namespace(layout(block_bytes))


def _memory(nodes: Sequence[Served], bare: Pair, target: Bytes, rounds: int) -> list[Row]:
    with ExitStack() as stack:
        asking, here, there = (stack.enter_context(Client(node.address)) for node in nodes)
        large = Prompt(asking, [here], 2 * MIB, PROMPT, 1)
        small = Prompt(asking, [here], 64 * KIB, SMALL, 1)
        both = Prompt(asking, [here, there], 2 * MIB, PROMPT // 4, 1 << 20)
        for prompt, holders in ((large, 1), (small, 1), (both, 1)):
            prompt.wait(holders)
        return [
            _row("one node, a prompt of 256 x 2 MiB", large, bare, target, rounds, ratio_at_least(0.9)),
            _row("one node, a prompt of 256 x 2 MiB", large, bare, target, rounds, no_target(), digests=True),
            _row("two nodes, 64 x 2 MiB, both have all", both, bare, target, rounds, no_target()),
            _row("one node, 1,024 x 64 KiB", small, bare, target, rounds, no_target()),
            _first("2 MiB", large, bare, target, rounds),
            _first("64 KiB", small, bare, target, rounds),
        ]


def _bare(of: Pair, block_bytes: int, count: int, *, digests: bool = False) -> float:
    offsets = np.random.default_rng(7).permutation(count) * block_bytes
    return of.seconds(of.batch(offsets, block_bytes), [block_bytes] * count if digests else None)


def _row(
    name: str, prompt: Prompt, bare: Pair, target: Bytes, rounds: int, goal: Target, *, digests: bool = False
) -> Row:
    size, count = prompt.block_bytes, prompt.count
    return measure(
        f"get from {name}, verified" + (", beside an engine that hashes" if digests else ""),
        unit="GiB/s",
        ours=prompt.rate(target),
        limit=lambda: size * count / GIB / _bare(bare, size, count, digests=digests),
        limit_is="the bare engine" + (", hashing" if digests else ", no checks"),
        target=goal,
        rounds=rounds,
    )


def _first(name: str, prompt: Prompt, bare: Pair, target: Bytes, rounds: int) -> Row:
    """Of a client that has spoken with the holder before, and has looked the chain up, as engines do."""

    def once() -> float:
        prompt.space.lookup(prompt.chain)
        return prompt.seconds(target, 1)

    return measure(
        f"one block of {name} from one node, verified, just looked up",
        unit="ms",
        ours=lambda: float(np.median([once() for _ in range(20)])) * 1e3,
        limit=lambda: float(np.median([_bare(bare, prompt.block_bytes, 1) for _ in range(20)])) * 1e3,
        limit_is="the bare engine, no checks",
        target=no_target(),
        rounds=rounds,
    )


def _file(nodes: Sequence[Served], target: Bytes, rounds: int) -> Row:
    """Each get is of a prompt that has left memory again: the holder has as many as do not fit."""
    with Client(nodes[0].address) as asking, Client(nodes[1].address) as holder:
        prompts = []
        for i in range(FILE_PROMPTS):
            prompts.append(Prompt(asking, [holder], 2 * MIB, FILE_PROMPT, (i + 1) << 20))
            time.sleep(WRITTEN_S)
        # What was evicted before it was written is no part of this.
        prompts = [one for one in prompts if _at(holder, 2 * MIB).lookup(one.chain).blocks == FILE_PROMPT]
        if len(prompts) < FILE_PROMPTS // 2:
            raise RuntimeError(f"of {FILE_PROMPTS} prompts the holder's files have {len(prompts)}")
        for prompt in prompts:
            prompt.wait()
        turn = iter(range(1 << 30))

        def next_prompt() -> Prompt:
            return prompts[next(turn) % len(prompts)]

        def ours() -> float:
            return next_prompt().rate(target)()

        def at_holder() -> float:
            prompt = next_prompt()
            into = target[: prompt.count * prompt.block_bytes]
            space = _at(holder, prompt.block_bytes)
            return len(into) / GIB / timed(lambda: space.get(prompt.chain, into))

        return measure(
            f"get from one node's files, {FILE_PROMPT} x 2 MiB, verified",
            unit="GiB/s",
            ours=ours,
            limit=at_holder,
            limit_is="the same at the holder, mapped",
            target=no_target(),
            rounds=rounds,
        )
