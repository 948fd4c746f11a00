"""A whole cluster, from one seed: clients put, look up, get, hold and prefetch at nodes of which one may be anywhere,
while nodes are killed, lost with their memory, stopped, cut off, and come back, and clients are killed; then quiet, and
the judgement. In every other seed bits flip in the nodes' memory, and what is got again is copied near.

What must hold:

- no byte is wrong, and none that was verified has changed: nothing that is leased or held is reused;
- where nobody flips a bit nothing is corrupt: what does not verify was read from a slot that has another block;
- what every node said is cleared is got no more;
- every call ends by its deadline;
- after quiet, what a live node holds is found from every node, and fetched from there, all of it (where no copies are
  made meanwhile, which push out others);
- after quiet, nobody holds anything any more.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import hashlib
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from kvstore.client.aio import AsyncNamespace
from kvstore.client.journeys import Ended
from kvstore.errors import KvStoreError
from kvstore.layout import KVLayout
from kvstore.tiers.base import Keys
from tests.simulation.whole.client import DEADLINE_S, Client, client_address
from tests.simulation.whole.node import Node, address_of
from tests.simulation.whole.wires import Wires
from tests.simulation.whole.world import Broken, World
from tests.storage import MEMORY, content
from transfer.testing.network import Weather

__all__ = ["Result", "run_seed"]

BLOCK_TOKENS: Final = 4
HEAD_DIM: Final = 375
BLOCK: Final = 3 * BLOCK_TOKENS * HEAD_DIM * 2 * 2
CHAINS: Final = 6
BLOCKS: Final = 6
STARTS_S: Final = 0.8
FAULTS_S: Final = 5.0
QUIET_S: Final = 4.0  # what settles, is graced, is digested and lapses, has by then
CHECK_S: Final = 3.0
SLACK_S: Final = 0.6  # of a call beyond its deadline: memory must be quiet before it answers
GIVEN_UP: Final = 0.2  # of all calls, in the middle
FLIPS: Final = 16
SLOW_S: Final = 0.03  # until a slow client has what was sent to it
POISON: Final = 0xA5

LEFT: Final[list[object]] = []

Verb = Callable[[Client, AsyncNamespace, Keys], Coroutine[Any, Any, None]]


def layout() -> KVLayout:
    """Parts that end within a leaf."""
    return KVLayout.uniform(
        engine="test", model="m", revision="1", dtype="bfloat16", block_tokens=BLOCK_TOKENS,
        layers=3, kv_heads=1, head_dim=HEAD_DIM,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    calls: int
    blocks_put: int
    blocks_got: int
    far: int
    missed: int
    faults: int
    found: int  # blocks that were looked for in the end, and were there
    steps: int
    trace: str


class Cluster:
    """One run."""

    def __init__(self, seed: int) -> None:
        self.seed, self.world = seed, World(seed)
        self.counts: Counter[str] = Counter()
        rng = self.world.rng
        self.nodes_count = rng.randint(2, 5)
        self.home = Path(tempfile.mkdtemp(prefix="kvstore-whole-", dir="/dev/shm"))
        loss = rng.choice((0.0, 0.01, 0.05))
        slow = ((client_address(0), SLOW_S),) if rng.random() < 0.7 else ()
        self.wires = Wires(
            self.world, Weather(latency_s=(50e-6, rng.choice((1e-3, 5e-3))), loss=loss, twice=loss, slow=slow)
        )
        self.flips = self.seed % 2 == 1
        members = ",".join(address_of(number) for number in range(self.nodes_count))
        self.nodes = [
            Node(self.world, self.wires, n, members, self.home, copies=self.flips) for n in range(self.nodes_count)
        ]
        self.clients = [
            Client(self.world, self.wires, n, self.nodes[n % self.nodes_count].address)
            for n in range(self.nodes_count + rng.randint(0, 2))
        ]
        self.quiet = False
        self.cleared: dict[bytes, float] = {}  # digests, as every node said, and when
        self.lives: list[asyncio.Task[None]] = []
        self.under_way: dict[str, tuple[str, float]] = {}  # by client: what it does, and by when it must be answered

    # ---- playing ----------------------------------------------------------------------------------------------------

    def run(self) -> Result:
        world = self.world
        try:
            with world.its_own_time():
                for node in self.nodes:
                    world.after(world.rng.uniform(0, 0.3), node.start)
                world.run_until(world.now + STARTS_S)
                for client in self.clients:
                    client.process.post(partial(self._begin, client))
                self._faults(world.now + FAULTS_S)
                self._run_to(world.now + FAULTS_S)
                self._calm()
                self._run_to(world.now + QUIET_S)
                self._judge()
        except AssertionError as error:
            trace = "\n".join(world.trace())
            raise Broken(f"{error}\n{trace}\n{error}\npython -m tests.simulation.whole {self.seed}") from error
        finally:
            world.close()
            shutil.rmtree(self.home, ignore_errors=True)
        trace = hashlib.sha256("\n".join(world.trace()).encode()).hexdigest()
        told = self.counts
        return Result(
            told["calls"], told["put"], told["got"], told["far"], told["missed"], told["faults"], told["found"],
            world.steps, trace,
        )  # fmt: skip

    def _run_to(self, end: float) -> None:
        while self.world.now < end:
            self.world.run_until(min(end, self.world.now + 0.1))
            for life in self.lives:
                if life.done() and not life.cancelled():
                    life.result()
            for who, (what, by) in self.under_way.items():
                if self.world.now > by:
                    raise Broken(f"a hang: {who} still waits for {what}")

    # ---- clients ----------------------------------------------------------------------------------------------------

    def _begin(self, client: Client) -> None:
        self.lives.append(asyncio.ensure_future(self._live(client)))

    async def _live(self, client: Client) -> None:
        rng = self.world.rng
        while not self.quiet:
            await asyncio.sleep(rng.expovariate(8.0))
            try:
                ns = await client.namespace(layout())
            except KvStoreError:
                continue
            name, verb = rng.choices(
                [("put", self._put), ("get", self._get), ("lookup", self._lookup), ("hold", self._hold),
                 ("prefetch", self._prefetch), ("churn", self._churn), ("clear", self._clear)],
                weights=(5, 8, 3, 2, 1, 1, 0.3),
            )[0]  # fmt: skip
            await self._timed(client, name, verb, ns)

    async def _timed(self, client: Client, name: str, verb: Verb, ns: AsyncNamespace) -> None:
        rng = self.world.rng
        chain = chain_of(ns, rng.randrange(CHAINS))[: rng.randint(1, BLOCKS)]
        self.counts["calls"] += 1
        self.under_way[client.name] = (name, self.world.now + DEADLINE_S + SLACK_S)
        calling = asyncio.ensure_future(verb(client, ns, chain))
        if rng.random() < GIVEN_UP:
            asyncio.get_running_loop().call_later(rng.uniform(0, 0.03), calling.cancel)
        try:
            await calling
        except asyncio.CancelledError:
            self.world.say(client.name, f"gives up a {name}")
        except KvStoreError as error:
            self.counts["failed"] += 1
            self.world.say(client.name, f"{name} fails: {error}")
        finally:
            self.under_way.pop(client.name, None)

    async def _put(self, client: Client, ns: AsyncNamespace, chain: Keys) -> None:
        source = np.stack([block_of(key) for key in chain])
        self.world.kept.append(source)
        try:
            stored = await ns.put(chain, source, replicas=self.world.rng.choice((1, 1, 2)))
        finally:
            source[:] = POISON  # it is the caller's again
        self.counts["put"] += stored.stored
        self.world.say(client.name, f"puts {stored.stored} of {len(chain)}: {stored.ended.value}")

    async def _get(self, client: Client, ns: AsyncNamespace, chain: Keys) -> None:
        into = np.full((len(chain), BLOCK), POISON, np.uint8)
        self.world.kept.append(into)
        digest, began = ns.digest, self.world.now
        got = await ns.get(chain, into, wait_s=self.world.rng.choice((0.0, 0.2)))
        self._look_at(client, chain, into, got.blocks, got.ended)
        if got.blocks and began > self.cleared.get(digest, began):
            raise Broken(f"{client.name} gets what was cleared, as every node said")
        far = int((np.asarray(got.tiers) > 8).sum())
        self.counts["got"] += got.blocks
        self.counts["far"] += far
        self.counts["missed"] += len(chain) - got.blocks
        self.world.say(client.name, f"gets {got.blocks} of {len(chain)}, {far} from afar: {got.ended.value}")

    def _look_at(self, client: Client, chain: Keys, into: Any, blocks: int, ended: Ended) -> None:
        for at in range(blocks):
            if (into[at] != block_of(chain[at])).any():
                raise Broken(f"wrong bytes: {client.name}, block {at}")
        if ended is Ended.CORRUPT and not self.flips:
            raise Broken(f"{client.name}: a block does not verify, and nobody has flipped a bit")

    async def _lookup(self, client: Client, ns: AsyncNamespace, chain: Keys) -> None:
        found = await ns.lookup(chain)
        if found.blocks > len(chain):
            raise Broken(f"{client.name} found more than it asked for")

    async def _hold(self, client: Client, ns: AsyncNamespace, chain: Keys) -> None:
        """What is held must be there for as long."""
        with await ns.hold(chain, wait_s=0.2) as held:
            self.world.say(client.name, f"holds {held.blocks} of {len(chain)}")
            await asyncio.sleep(self.world.rng.uniform(0, 0.05))

    async def _prefetch(self, client: Client, ns: AsyncNamespace, chain: Keys) -> None:
        await ns.prefetch(chain)

    async def _clear(self, client: Client, ns: AsyncNamespace, chain: Keys) -> None:
        digest = ns.digest
        told = await ns.clear()
        self.counts["clears"] += 1
        self.world.say(client.name, f"clears: {told.nodes} of {told.nodes_known} nodes know")
        if told.nodes == len(self.nodes):
            self.cleared[digest] = self.world.now

    async def _churn(self, client: Client, ns: AsyncNamespace, chain: Keys) -> None:
        """So much that nobody asks for that what is there goes."""
        first = CHAINS + self.world.rng.randrange(1_000)
        await asyncio.gather(*(self._put(client, ns, chain_of(ns, first + one)) for one in range(4)))

    # ---- what happens to nodes --------------------------------------------------------------------------------------

    def _faults(self, end: float) -> None:
        """One after the other; each ends by itself, or at the end."""
        world, rng = self.world, self.world.rng

        def strike() -> None:
            if world.now >= end - 1.0:
                return
            self.counts["faults"] += 1
            rng.choice(
                (self._kill, self._kill, self._lose, self._stop, self._cut, self._cut_one_way, self._kill_client)
            )()
            if self.flips:
                self._flip()
            world.after(rng.uniform(0.2, 2.0), strike)

        world.after(rng.uniform(0.5, 2.0), strike)

    def _kill(self) -> None:
        node = self.world.rng.choice(self.nodes)
        if node.life is not None:
            node.kill(machine=False)
            self.world.after(self.world.rng.uniform(0.05, 2.0), lambda: self._restart(node))

    def _lose(self) -> None:
        node = self.world.rng.choice(self.nodes)
        if node.life is not None:
            node.kill(machine=True)
            self.world.after(self.world.rng.uniform(0.5, 2.0), lambda: self._restart(node))

    def _kill_client(self) -> None:
        """In the middle of whatever it does; another one takes its place."""
        at = self.world.rng.randrange(len(self.clients))
        client = self.clients[at]
        self.world.say(client.name, "is killed")
        self.wires.leave(client.address, machine=False)
        self.under_way.pop(client.name, None)
        self.clients[at] = Client(self.world, self.wires, at, client.target)
        self.clients[at].process.post(partial(self._begin, self.clients[at]))

    def _flip(self) -> None:
        node = self.world.rng.choice(self.nodes)
        for _ in range(FLIPS):
            node.payload[self.world.rng.randrange(len(node.payload))] ^= 1 << self.world.rng.randrange(8)

    @staticmethod
    def _restart(node: Node) -> None:
        if node.life is None:
            node.start()

    def _stop(self) -> None:
        node = self.world.rng.choice(self.nodes)
        life = node.life
        if life is not None and not life.process.stopped:
            self.world.say(node.name, "is stopped")
            life.process.stop_still()
            self.world.after(self.world.rng.uniform(0.05, 2.5), lambda: self._go_on(node, life))

    def _go_on(self, node: Node, life: Any) -> None:
        if node.life is life:
            self.world.say(node.name, "goes on")
            life.process.go_on()

    def _cut(self) -> None:
        one, other = self._two()
        self.world.say(one.name, f"is cut from {other.name}")
        self.wires.cut(one.address, other.address)
        self.world.after(self.world.rng.uniform(0.05, 2.5), lambda: self.wires.heal(one.address, other.address))

    def _cut_one_way(self) -> None:
        one, other = self._two()
        self.world.say(one.name, f"is cut from {other.name}, one way")
        self.wires.cut_one_way(one.address, other.address)
        self.world.after(self.world.rng.uniform(0.05, 2.5), lambda: self.wires.heal(one.address, other.address))

    def _two(self) -> tuple[Node, Node]:
        one, other = self.world.rng.sample(self.nodes, 2)
        return one, other

    # ---- quiet, and the judgement -----------------------------------------------------------------------------------

    def _calm(self) -> None:
        self.quiet = True
        self.world.say("all", "quiet")
        for one in self.nodes:
            for other in self.nodes:
                self.wires.heal(one.address, other.address)
            if one.life is not None and one.life.process.stopped:
                self._go_on(one, one.life)
            self._restart(one)

    def _judge(self) -> None:
        for node in self.nodes:
            life = node.life
            assert life is not None
            if not life.joined:
                raise Broken(f"{node.name} has not joined")
            seen = {one.member.name: one.state.name for one in life.cluster.nodes()}
            if not life.cluster.fit or list(seen.values()).count("ALIVE") < len(self.nodes):
                raise Broken(f"{node.name} does not see all: {seen}")
            holds = life.core.stats(MEMORY)["holds"]
            if holds:
                raise Broken(f"{node.name} still holds {holds}")
            if life.lender.counts.corrupt and not self.flips:
                raise Broken(f"{node.name} was told of blocks that do not verify")
        checks: dict[str, asyncio.Task[None]] = {}
        for client in self.clients:
            client.process.post(partial(self._begin_check, client, checks))
        self.world.run_until(self.world.now + CHECK_S)
        for client in self.clients:
            if client.name not in checks or not checks[client.name].done():
                raise Broken(f"{client.name}: a call after quiet is not answered")
            try:
                checks[client.name].result()
            except KvStoreError as error:
                raise Broken(f"{client.name}: a call after quiet fails: {error}") from error

    def _begin_check(self, client: Client, checks: dict[str, asyncio.Task[None]]) -> None:
        checks[client.name] = asyncio.ensure_future(self._check(client))

    async def _check(self, client: Client) -> None:
        """All that any node holds is found and fetched from here."""
        ns = await client.namespace(layout())
        await client.reopen()
        for number in range(CHAINS):
            chain = chain_of(ns, number)
            held = self._held(ns.digest, chain)
            found = await ns.lookup(chain)
            self.world.say(client.name, f"looks for chain {number}: {found.blocks}, held {held}")
            if found.blocks != held and not self.flips:
                raise Broken(f"{client.name} finds {found.blocks} blocks of chain {number}, of which nodes hold {held}")
            into = np.full((len(chain), BLOCK), POISON, np.uint8)
            got = await ns.get(chain, into)
            self._look_at(client, chain, into, got.blocks, got.ended)
            if got.blocks < held and not self.flips:
                raise Broken(f"{client.name} gets {got.blocks} blocks of chain {number}, of which nodes hold {held}")
            self.counts["found"] += held

    def _held(self, digest: bytes, chain: Keys) -> int:
        there = np.zeros(len(chain), np.bool_)
        for node in self.nodes:
            assert node.life is not None
            there |= node.life.holds(digest, chain)
        return len(chain) if there.all() else int(there.argmin())


def chain_of(ns: AsyncNamespace, number: int) -> Keys:
    return ns.chain(np.arange(BLOCKS * BLOCK_TOKENS, dtype=np.int64) + 1_000_000 * number)


def block_of(key: Any) -> np.ndarray:
    return _block(key.tobytes())


@functools.cache
def _block(key: bytes) -> np.ndarray:
    return np.frombuffer(content(key, BLOCK), np.uint8)


def run_seed(seed: int) -> Result:
    """Raises Broken, with the trace and how to see it again."""
    cluster = Cluster(seed)
    kept = cluster.world.kept  # in which cores keep their books: they go first
    try:
        result = cluster.run()
    except BaseException:
        LEFT.append(kept)  # the traceback refers to cores
        raise
    del cluster
    gc.collect()
    kept.clear()
    return result


def main() -> int:
    for text in sys.argv[1:]:
        print(run_seed(int(text)))
    return 0
