"""Early hand-over between real nodes: parts of blocks are read while their publisher still fills the next ones, and
however the publisher ends, the follower is told; what was not sealed is never given as good.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing as mp
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kvstore import AsyncClient, Client, Namespace
from kvstore.client.calls import times_of
from kvstore.client.follow_journey import FollowDone
from kvstore.client.journeys import Ended
from kvstore.client.slots import Slots
from kvstore.errors import Rejected
from kvstore.wire import framed, store
from tests.integration.nodes import SIZE, blocks_of, eventually, layout, tokens
from tests.integration.patience import SLOW_S
from tests.integration.test_cluster import Cluster, running
from tests.integration.test_far import quiet
from tests.integration.test_locating import FAR_MEMORY, At, found_within
from transfer.offers import Carrier

PARTS, BLOCKS = 4, 6
PART = SIZE // PARTS
SETTLE_MS, LAPSE_MS = 300, 6_000  # none lapses under a test that publishes and asks, part after part


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    sets = (f"cluster.settle_ms={SETTLE_MS}", "cluster.directory_width=2", f"limits.reserve_lapse_ms={LAPSE_MS}")
    with running(Cluster(tmp_path_factory.mktemp("follow"), 3, "", *sets)) as cluster:
        time.sleep(2 * SETTLE_MS / 1e3)
        yield cluster


class Followed:
    """A follow in a thread of its own. parts: those it was told of, each found in `into` as it should be then."""

    def __init__(self, ns: Namespace, chain: np.ndarray, deadline_s: float = 20.0) -> None:
        self.ns, self.chain, self.deadline_s = ns, chain, deadline_s
        self.into = np.zeros((len(chain), SIZE), np.uint8)
        self.parts: list[int] = []
        self.sealed_s = 0.0
        self._pool = ThreadPoolExecutor(1)
        self._done: Future[FollowDone] = self._pool.submit(self._follow)

    def _follow(self) -> FollowDone:
        expected = blocks_of(self.chain)
        with self.ns.follow(self.chain, self.into, deadline_s=self.deadline_s) as follow:
            for part in follow:
                at = slice(part * PART, (part + 1) * PART)
                assert np.array_equal(self.into[:, at], expected[:, at]), part
                self.parts.append(part)
            return follow.finish()

    def told(self, parts: int) -> None:
        eventually(lambda: len(self.parts) >= parts or self._done.done())
        if self._done.done():
            self._done.result()
        assert self.parts == list(range(parts))

    def done(self) -> FollowDone:
        """Never wrong, never late."""
        done = self._done.result(self.deadline_s + SLOW_S)
        self._pool.shutdown()
        assert np.array_equal(self.into[: done.blocks], blocks_of(self.chain[: done.blocks]))
        assert len(done.tiers) == done.blocks
        return done


def publish(slots: Slots, chain: np.ndarray, *parts: int) -> None:
    for part in parts:
        slots.write(part, [block[part * PART : (part + 1) * PART] for block in blocks_of(chain)])
        slots.publish(part)


@pytest.mark.parametrize(("publisher", "follower"), [(0, 0), (0, 1)], ids=["one node", "two nodes"])
def test_parts_come_as_they_are_published(three: Cluster, publisher: int, follower: int) -> None:
    with At(three, publisher, f"parts {follower}") as here, At(three, follower, f"parts {follower}") as there:
        chain = here.chain(tokens(BLOCKS))
        with here.reserve(chain) as slots:
            followed = Followed(there, chain)
            time.sleep(0.1)
            assert followed.parts == [], "nothing is published"
            for part in range(PARTS):
                publish(slots, chain, part)
                followed.told(part + 1)
            assert there.lookup(chain).blocks == 0, "nothing is sealed"
            assert not followed._done.done(), "nothing is sealed"
            slots.seal()
        done = followed.done()
        tier = FAR_MEMORY if follower != publisher else 1
        assert (done.blocks, done.parts, done.ended) == (BLOCKS, PARTS, Ended.COMPLETE)
        assert done.tiers.tolist() == [tier] * BLOCKS
        quiet(three.nodes[publisher])


@pytest.mark.parametrize(("publishes", "follows"), [("unix", "tcp"), ("tcp", "unix"), ("tcp", "tcp")])
@pytest.mark.parametrize("follower", [0, 1], ids=["one node", "two nodes"])
def test_over_tcp(three: Cluster, follower: int, publishes: str, follows: str) -> None:
    name = f"tcp {publishes} {follows} {follower}"
    with contextlib.ExitStack() as stack:
        at = [three.at(0) if publishes == "tcp" else three.nodes[0].address]
        at.append(three.at(follower) if follows == "tcp" else three.nodes[follower].address)
        here, there = (stack.enter_context(Client(one)).namespace(layout(name)) for one in at)
        chain = here.chain(tokens(BLOCKS, 1))
        with here.reserve(chain) as slots:
            followed = Followed(there, chain)
            publish(slots, chain, 0, 1)
            followed.told(2)
            publish(slots, chain, 2, 3)
            followed.told(4)
            slots.seal()
        assert followed.done().ended is Ended.COMPLETE
        quiet(three.nodes[0])


@pytest.mark.parametrize("follower", [0, 1], ids=["one node", "two nodes"])
def test_a_follower_may_come_first(three: Cluster, follower: int) -> None:
    name = f"first {follower}"
    with At(three, 0, name) as here, At(three, follower, name) as there:
        chain = here.chain(tokens(BLOCKS, 2))
        followed = Followed(there, chain)
        time.sleep(0.4)
        with here.reserve(chain) as slots:
            publish(slots, chain, 0)
            followed.told(1)
            publish(slots, chain, 1, 2, 3)
            slots.seal()
        assert followed.done().blocks == BLOCKS
        # A plain put is a publisher, too; and nobody is waited for no longer than was said.
        chain = here.chain(tokens(BLOCKS, 3))
        followed = Followed(there, chain)
        time.sleep(0.2)
        here.put(chain, blocks_of(chain))
        assert followed.done().ended is Ended.COMPLETE
        began = time.monotonic()
        done = Followed(there, here.chain(tokens(2, 4)), 0.5).done()
        assert (done.blocks, done.ended) == (0, Ended.LATE) and time.monotonic() - began < 0.5 + SLOW_S


def test_what_is_there_already_and_what_is_to_come(three: Cluster) -> None:
    """Blocks here, blocks sealed elsewhere, and two reservations of the publisher, one after the other."""
    with At(three, 0, "mixed") as here, At(three, 1, "mixed") as there, At(three, 2, "mixed") as third:
        chain = here.chain(tokens(8, 5))
        assert there.put(chain[:1], blocks_of(chain[:1])).stored == 1
        assert third.put(chain[1:3], blocks_of(chain[1:3]), parent=chain[0], position=1).stored == 2
        found_within(there, chain, 3)
        followed = Followed(there, chain)
        with here.reserve(chain[3:5], parent=chain[2], position=3) as slots:
            publish(slots, chain[3:5], *range(PARTS))
            slots.seal()
        time.sleep(0.1)
        assert followed.parts == []
        with here.reserve(chain[5:], parent=chain[4], position=5) as slots:
            publish(slots, chain[5:], 0)
            followed.told(1)
            publish(slots, chain[5:], 1, 2, 3)
            slots.seal()
        done = followed.done()
        assert (done.ended, done.tiers.tolist()) == (Ended.COMPLETE, [1] + [FAR_MEMORY] * 7)


@pytest.mark.parametrize("follower", [0, 1], ids=["one node", "two nodes"])
def test_a_publisher_that_gives_up_is_told_of(three: Cluster, follower: int) -> None:
    name = f"aborts {follower}"
    with At(three, 0, name) as here, At(three, follower, name) as there:
        chain = here.chain(tokens(BLOCKS, 6))
        with here.reserve(chain[:2]) as slots:
            publish(slots, chain[:2], *range(PARTS))
            slots.seal()
        with here.reserve(chain[2:], parent=chain[1], position=2) as slots:
            publish(slots, chain[2:], 0, 1, 2)
            followed = Followed(there, chain)
            followed.told(3)
            publish(slots, chain[2:], 3)
            followed.told(4)
            slots.abort()
        done = followed.done()
        assert (done.blocks, done.parts, done.ended) == (2, PARTS, Ended.ABANDONED)
        assert "gave it up" in done.why
        quiet(three.nodes[0])
        # And the same blocks may be published, and followed, anew.
        followed = Followed(there, chain)
        assert here.put(chain, blocks_of(chain)).stored == BLOCKS - 2
        assert followed.done().ended is Ended.COMPLETE


@pytest.mark.parametrize("follower", [0, 1], ids=["one node", "two nodes"])
def test_a_publisher_that_gives_up_before_the_first_part(three: Cluster, follower: int) -> None:
    name = f"nothing {follower}"
    with At(three, 0, name) as here, At(three, follower, name) as there:
        chain = here.chain(tokens(BLOCKS, 16))
        with here.reserve(chain[:2]) as slots:
            publish(slots, chain[:2], 0)
            followed = Followed(there, chain)
            eventually(lambda: three.nodes[0].holds() > 0)
            publish(slots, chain[:2], 1, 2, 3)
            slots.seal()
        here.reserve(chain[2:], parent=chain[1], position=2).abort()
        began = time.monotonic()
        done = followed.done()
        assert (done.blocks, followed.parts, done.ended) == (2, [], Ended.ABANDONED)
        assert time.monotonic() - began < SLOW_S


def test_a_reservation_that_lapses_is_told_of_and_its_slots_are_not_reused(three: Cluster) -> None:
    with At(three, 0, "lapses") as here, At(three, 1, "lapses") as there:
        chain = here.chain(tokens(BLOCKS, 7))
        with here.reserve(chain) as slots:
            publish(slots, chain, 0)
            followed = Followed(there, chain)
            followed.told(1)
            began = time.monotonic()
            done = followed.done()
            assert (done.blocks, done.ended) == (
                0,
                Ended.ABANDONED,
            ) and time.monotonic() - began < LAPSE_MS / 1e3 + SLOW_S
        quiet(three.nodes[0])


def publish_and_wait(address: str, name: str, started: mp.synchronize.Event) -> None:
    with Client(address) as client:
        ns = client.namespace(layout(name))
        chain = ns.chain(tokens(BLOCKS, 8))
        slots = ns.reserve(chain)
        publish(slots, chain, 0, 1)
        started.set()
        time.sleep(30)


@pytest.mark.parametrize("by", ["unix", "tcp"])
def test_a_publisher_that_is_killed_is_told_of(three: Cluster, by: str) -> None:
    name = f"killed {by}"
    context = mp.get_context("spawn")
    started = context.Event()
    address = three.nodes[0].address if by == "unix" else three.at(0)
    process = context.Process(target=publish_and_wait, args=(address, name, started))
    process.start()
    try:
        assert started.wait(60)
        with At(three, 1, name) as there:
            followed = Followed(there, there.chain(tokens(BLOCKS, 8)))
            followed.told(2)
            began = time.monotonic()
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            done = followed.done()
            assert (done.blocks, done.ended) == (0, Ended.ABANDONED) and time.monotonic() - began < SLOW_S
    finally:
        process.kill()
        process.join()
    quiet(three.nodes[0])


def test_a_namespace_that_is_cleared(three: Cluster) -> None:
    with At(three, 0, "cleared") as here, At(three, 1, "cleared") as there:
        chain = here.chain(tokens(BLOCKS, 9))
        with here.reserve(chain) as slots:
            publish(slots, chain, 0)
            followed = Followed(there, chain)
            followed.told(1)
            here.clear()
            done = followed.done()
            assert done.blocks == 0 and done.ended in {Ended.ABANDONED, Ended.CLEARED}
        quiet(three.nodes[0])


def test_a_part_that_does_not_verify_is_not_told_of(three: Cluster) -> None:
    with At(three, 0, "flipped") as here, At(three, 1, "flipped") as there:
        chain = here.chain(tokens(BLOCKS, 10))
        expected = blocks_of(chain)
        with here.reserve(chain) as slots:
            publish(slots, chain, 0)
            flip(three, expected[4, :PART].tobytes())
            followed = Followed(there, chain)
            done = followed.done()
        assert (done.blocks, followed.parts, done.ended) == (0, [], Ended.CORRUPT)


def flip(cluster: Cluster, of: bytes) -> None:
    with Path(cluster.nodes[0].facts["memory_at"]).open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        at = memory.find(of)
        assert at >= 0
        memory[at + 100] ^= 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_publishers_node_that_dies_or_is_silent(three: Cluster, how: signal.Signals) -> None:
    name = f"node {how.name}"
    with At(three, 0, name) as here, At(three, 1, name) as there:
        chain = here.chain(tokens(BLOCKS, 11))
        slots = here.reserve(chain)
        publish(slots, chain, 0, 1)
        followed = Followed(there, chain)
        followed.told(2)
        if how is signal.SIGKILL:
            three.nodes[0].kill()
        else:
            three.nodes[0].signal(how)
        try:
            began = time.monotonic()
            done = followed.done()
            assert (done.blocks, done.ended) == (0, Ended.ABANDONED), done
            assert time.monotonic() - began < 2 + SLOW_S
        finally:
            if how is signal.SIGKILL:
                three.nodes[0].start()
            else:
                three.nodes[0].signal(signal.SIGCONT)
            three.meet()
            time.sleep(2 * SETTLE_MS / 1e3)


async def test_the_async_face(three: Cluster) -> None:
    with At(three, 0, "async") as here:
        chain = here.chain(tokens(BLOCKS, 12))
        into, told = np.zeros((BLOCKS, SIZE), np.uint8), []
        publishing = threading.Thread(target=publish_slowly, args=(here, chain))
        async with AsyncClient(three.nodes[2].address) as client:
            ns = await client.namespace(layout("async"))
            publishing.start()
            async with await ns.follow(chain, into, deadline_s=20) as follow:
                async for part in follow:
                    told.append(part)  # noqa: PERF401 - one at a time, as they come
                done = await follow.finish()
        publishing.join()
        assert (told, done.blocks, done.ended) == (list(range(PARTS)), BLOCKS, Ended.COMPLETE)
        assert np.array_equal(into, blocks_of(chain))


def publish_slowly(ns: Namespace, chain: np.ndarray) -> None:
    with ns.reserve(chain) as slots:
        for part in range(PARTS):
            publish(slots, chain, part)
            time.sleep(0.05)
        slots.seal()


def test_a_follow_that_is_left_lets_go(three: Cluster) -> None:
    with At(three, 0, "left") as here, At(three, 1, "left") as there:
        chain = here.chain(tokens(BLOCKS, 13))
        into = np.zeros((BLOCKS, SIZE), np.uint8)
        with here.reserve(chain) as slots:
            publish(slots, chain, 0)
            before = three.nodes[0].holds()
            for space in (here, there):
                with space.follow(chain, into) as follow:
                    assert next(follow) == 0
                    assert three.nodes[0].holds() > before
                eventually(lambda: three.nodes[0].holds() == before)
                with pytest.raises(ValueError, match="before it had a result"):
                    follow.finish()


def test_only_published_parts_may_be_read(three: Cluster) -> None:
    """What lies behind them in the slot is what lay there before: perhaps another tenant's."""
    with At(three, 0, "rights") as here:
        chain = here.chain(tokens(BLOCKS, 14))
        with here.reserve(chain) as slots:
            publish(slots, chain, 0)
            request = framed.FollowRequest(
                lease=1 << 40,
                namespace=here.digest,
                chain=store.Chain(keys=chain.tobytes()),
                carriers=[int(Carrier.TCP)],
                wait_ms=100,
            )
            ask = here._channel.call
            told = framed.FollowResponse.FromString(
                ask(store.METHOD_FOLLOW, request.SerializeToString(), times_of(5, None))
            )
            assert list(told.ready) == [1] * BLOCKS and len(told.checksums) == 8 * BLOCKS and not told.sealed
            granted = granted_bytes(told.section.grants[0].descriptor)
            assert granted == BLOCKS * PART
            publish(slots, chain, 1, 2)
            more = framed.FollowRequest(lease=1 << 40, wait_ms=100).SerializeToString()
            told = framed.FollowResponse.FromString(ask(store.METHOD_FOLLOW, more, times_of(5, None)))
            assert list(told.ready) == [3] * BLOCKS
            assert granted_bytes(told.section.grants[0].descriptor) == 2 * BLOCKS * PART, "the new ones alone"


def granted_bytes(descriptor: bytes) -> int:
    from transfer.grants import parse_descriptor

    return sum(length for _, length in parse_descriptor(descriptor).ranges)


def test_limits_and_what_does_not_fit(three: Cluster) -> None:
    with At(three, 0, "limits") as here:
        chain = here.chain(tokens(17, 15))
        with pytest.raises(Rejected, match="at most 16 of a follow"):
            here.follow(chain, np.zeros((17, SIZE), np.uint8)).finish()
        with pytest.raises(ValueError, match="into: "):
            here.follow(chain[:2], np.zeros(SIZE, np.uint8))
        named = framed.FollowRequest(lease=7, namespace=here.digest, chain=store.Chain(keys=chain.tobytes()))
        short = framed.FollowRequest(lease=7, namespace=here.digest, chain=store.Chain(keys=chain[:2].tobytes()))
        for request, why in (
            (framed.FollowRequest(lease=7), "lease: 7 has ended"),
            (named, "chain: 17 blocks, must be 1 to 16"),
            (short, "carriers: "),
        ):
            with pytest.raises(ValueError, match=why):
                here._channel.call(store.METHOD_FOLLOW, request.SerializeToString(), times_of(5, None))
        with pytest.raises(Rejected):  # clients are no nodes
            here._channel.call(store.METHOD_PEER_FOLLOW, request.SerializeToString(), times_of(5, None))
