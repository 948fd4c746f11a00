"""A whole cluster's directory on virtual time, from one seed. Nodes put, drop and clear; clients look up and get; and
messages are late, lost, doubled and out of order, nodes are killed, stopped, cut off, come back, or come anew.

What must hold:

- no claim is believed: a get from who does not hold it is a miss, and never a wrong byte;
- every lookup ends by its deadline, with at most as many first messages as a namespace has homes, and as many hedges;
- a batch of another incarnation, or of a sequence that a home has had, changes nothing there;
- in calm (one node comes, goes or restarts at a time, and nothing is lost): what a live node has held for a while is
  found, also while homes move, and who has dropped it is not named any more;
- after quiet, directory and nodes agree: each home has exactly what each node holds of its keys. In half of the seeds
  there is no digest exchange, so that order alone must do it; in the others homes lose claims as well.

`run_seed` raises Broken, with the trace and how to replay it: `python -m kvstore.testing.cluster_simulation SEED`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kvstore.directory.directory import Directory
from kvstore.directory.messages import Announce
from kvstore.directory.settings import MS, DirectorySettings
from kvstore.native import claim_digests, namespace_word
from kvstore.testing.models.cluster import LOOKUP_SLACK_MS, Asking, ClusterNode, Judge
from kvstore.testing.models.holdings import FILE, MEMORY, Name, keys_array
from kvstore.testing.network import Network, Weather
from kvstore.testing.world import Broken, World

__all__ = ["ClusterCast", "ClusterSimulation", "Result", "run_seed"]

NODES_MAX = 7
KEYS = 24
SHARDS = 3
PING_MS = 100
DEAD_AFTER_MS = 400
FAULTS_END_MS = 9_000
EVENTS_MAX = 60_000
FRESH_MS = 800  # in calm: how long a change takes at most until every lookup knows
QUIET_MS = 1_000  # the last, in which nothing changes
SETTLE_MS = 600
GRACE_MS = 2_000


@dataclass(frozen=True, slots=True)
class ClusterCast:
    """Who plays, so that a faulty twin can take a part."""

    directory: type[Directory] = Directory
    client: type[Asking] = Asking
    node: type[ClusterNode] = ClusterNode


@dataclass(frozen=True, slots=True)
class Result:
    events: int
    calm: bool
    lookups: int
    got: int
    missed: int
    restarts: int
    moved: int  # changes of whom lookups ask, at all nodes
    hedged: int
    lost: int
    forgotten: int
    agreed: int  # claims that were as they should be at the end


def _name(number: int) -> bytes:
    return f"n{number}".encode() + hashlib.sha256(f"node {number}".encode()).digest()[:14]


class ClusterSimulation:
    def __init__(self, seed: int, cast: ClusterCast) -> None:
        self.world = World(seed)
        rng = self.world.rng
        self.cast = cast
        self.calm = rng.random() < 0.4
        self.digests = rng.random() < 0.5
        delay = rng.choice((5, 20)) * MS
        foul = Weather(delay, rng.choice((0, 0.02, 0.1)), rng.choice((0, 0.05)), rng.choice((0, 0.03)), 1_500 * MS)
        self.network = Network(self.world, Weather(10 * MS) if self.calm else foul)
        self.settings = DirectorySettings(
            width=rng.choice((2, 3, 16)),
            claims_max=4_096,
            settle_ms=SETTLE_MS,
            grace_ms=GRACE_MS,
            announce_rows_max=rng.choice((2, 8, 64)),
            queue_max=rng.choice((30, 10_000)),
            scan_keys=rng.choice((3, 15)),
            digest_ms=1_500 if self.digests else 1 << 40,
            hedge_ms=60,
            locate_ms_max=400,
        )
        self.judge = Judge(self._announced, self._located)
        self.keys = [hashlib.sha256(f"key {n}".encode()).digest() for n in range(KEYS)]
        self.generations = [0, 0]
        self.nodes: dict[bytes, ClusterNode] = {}
        self.askings: list[Asking] = []
        self.restarts = self.forgotten = self.moved = 0
        self._before: tuple[object, ...] = ()
        self.log_max = rng.choice((8, 1 << 30)) if not self.calm else 1 << 30
        for number in range(rng.randint(3, NODES_MAX - 1)):
            self._join(number)
        self._ping()
        self._every(rng.randint(20, 120), self._change)
        self._every(rng.randint(20, 60) if self.calm else rng.randint(60, 200), self._lookup)
        if self.calm:
            self._churn()
        else:
            self._every(rng.randint(200, 1_500), self._fault)

    # ---- what happens

    def _every(self, ms: int, call: Callable[[], None]) -> None:
        def again() -> None:
            if self.world.now < FAULTS_END_MS * MS:
                call()
                self.world.after(self.world.rng.randint(1, 2 * ms) * MS, again)

        self.world.after(self.world.rng.randint(1, 2 * ms) * MS, again)

    def _join(self, number: int) -> None:
        name = _name(number)
        node = self.cast.node(
            self.world, self.network, name, self.settings, self.cast.directory, self.judge, self.log_max
        )
        self.nodes[name] = node
        node.start(wiped=True)

    def namespace(self, number: int) -> bytes:
        return hashlib.sha256(f"namespace {number} {self.generations[number]}".encode()).digest()

    def _up(self) -> list[ClusterNode]:
        return [node for node in self.nodes.values() if node.running and not node.stopped]

    def _change(self) -> None:
        rng = self.world.rng
        node = rng.choice(self._up() or [next(iter(self.nodes.values()))])
        if not node.running:
            return
        number = rng.randrange(2)
        ns = self.namespace(number)
        what = rng.random()
        if what < 0.01:
            self.world.note("all", f"clear namespace {number}")
            self.generations[number] += 1
            for each in self._up():
                each.holdings.clear(ns, self.world.now)
                each.changed()
            return
        for key in rng.sample(self.keys, rng.randint(1, 4)):
            if what < 0.65:
                node.holdings.put((ns, key), rng.randrange(SHARDS), rng.choice((MEMORY, FILE)), self.world.now)
            else:
                node.holdings.drop((ns, key), rng.randrange(SHARDS), self.world.now)
        node.changed()

    def _lookup(self) -> None:
        rng = self.world.rng
        up = self._up()
        if up:
            keys = rng.sample(self.keys, rng.randint(1, 8))
            asking = self.cast.client(rng.choice(up), self.namespace(rng.randrange(2)), keys, self.judge)
            self.askings.append(asking)
            asking.start()

    def _fault(self) -> None:
        rng = self.world.rng
        node = rng.choice(list(self.nodes.values()))
        fault = rng.choice(("kill", "kill", "stop", "cut", "one way", "join", "forget"))
        back = rng.choice((200, 700, 1_500, 4_000)) * MS
        if fault == "kill" and node.running:
            node.kill()
            self.world.after(back, lambda: self._restart(node, wiped=rng.random() < 0.3))
        elif fault == "stop" and node.running and not node.stopped:
            node.stop()
            self.world.after(back, node.wake)
        elif fault in {"cut", "one way"}:
            self._cut(node, back, both=fault == "cut")
        elif fault == "join" and len(self.nodes) < NODES_MAX:
            self._join(len(self.nodes))
        elif fault == "forget" and self.digests:
            self._forget(node)

    def _cut(self, node: ClusterNode, back: int, *, both: bool) -> None:
        others = [other for other in self.nodes if other != node.name]
        far = self.world.rng.sample(others, self.world.rng.randint(1, len(others)))
        pairs = {(node.name, other) for other in far}
        if both:
            pairs |= {(other, node.name) for other in far}
        self.world.note(str(node), f"is cut from {len(far)}, {'both ways' if both else 'one way'}")
        self.network.cut |= pairs
        self.world.after(back, lambda: self.network.cut.difference_update(pairs))

    def _forget(self, node: ClusterNode) -> None:
        """A home loses claims, as by a full table."""
        table = node.directory.claims.table
        number = self.world.rng.randrange(NODES_MAX)
        mask = self.world.rng.getrandbits(64)
        try:
            table.begin(number, mask)
            self.forgotten += table.end(number, mask)
        except ValueError:  # it has no claims of as many nodes
            return

    def _restart(self, node: ClusterNode, *, wiped: bool) -> None:
        if not node.running:
            self.restarts += 1
            node.start(wiped=wiped)

    def _churn(self) -> None:
        """In calm: one node at a time, and the next only when homes have moved."""
        if self.world.now >= (FAULTS_END_MS - 3_500) * MS:
            return
        rng = self.world.rng
        node = rng.choice(list(self.nodes.values()))
        if rng.random() < 0.4 and len(self.nodes) < NODES_MAX:
            self._join(len(self.nodes))
        elif node.running:
            node.kill()
            back = rng.choice((30, 700, 3_200)) * MS
            self.world.after(back, lambda: self._restart(node, wiped=rng.random() < 0.3))
        self.world.after(5_000 * MS, self._churn)

    def _ping(self) -> None:
        """Each node's own view, by whom it has heard of lately."""
        now, chance, loss, cut = self.world.now, self.world.rng.random, self.network.weather.loss, self.network.cut
        there = [
            (name, (now, node.incarnation)) for name, node in self.nodes.items() if node.running and not node.stopped
        ]
        for node in self._up():
            me = node.name
            for name, heard in there:
                if not (cut and ((me, name) in cut or (name, me) in cut)) and chance() >= loss:
                    node.heard[name] = heard
            alive = {n: inc for n, (when, inc) in node.heard.items() if now - when <= DEAD_AFTER_MS * MS}
            if not node.fit and 2 * len(alive) > len(self.nodes):
                node.rejoined()
            asked = node.directory.view.asked.members
            node.see(alive | {node.name: node.incarnation})
            self.moved += node.directory.view.asked.members != asked
        if now < self.ends_at:
            self.world.after(PING_MS * MS, self._ping)

    @property
    def ends_at(self) -> int:
        return (FAULTS_END_MS + GRACE_MS + 6 * SETTLE_MS + 4 * 1_500) * MS

    # ---- what must hold

    def _announced(self, home: ClusterNode, message: Announce, before: bool) -> None:
        """Around each batch: one that a home may not take changes nothing."""
        claims = home.directory.claims
        teller = claims.tellers.get(message.node)
        known = home.directory.view.live.get(message.node)
        now = (teller and (teller.number, claims.table.digests(teller.number).tobytes()), known)
        if before:
            self._before = (now, teller and (teller.incarnation, teller.sequence))
            return
        was, had = self._before
        if known != message.incarnation and was != now:
            raise Broken(
                f"an older incarnation was believed: {home} took {message.incarnation:x}, knows {known or 0:x}"
            )
        if isinstance(had, tuple) and had[0] == message.incarnation and message.sequence <= had[1] and was != now:
            raise Broken(f"an older batch was taken: {home} had {had[1]}, took {message.sequence}")

    def _located(self, asking: Asking) -> None:
        world, locating = self.world, asking.locating
        if world.now > locating.ends_at + LOOKUP_SLACK_MS * MS:
            raise Broken("hang: a lookup ended after its deadline")
        if asking.first_wave > self.settings.width or locating.hedges > self.settings.width:
            raise Broken(f"too many messages: {asking.first_wave} and {locating.hedges} hedges")
        if world.now >= self.ends_at - QUIET_MS * MS:
            self._judge_end(asking)
        elif self.calm and asking.node.running:
            self._judge_calm(asking)

    def _judge_calm(self, asking: Asking) -> None:
        fresh = asking.began - FRESH_MS * MS
        if asking.node.started_at > fresh:
            return
        for key in asking.keys:
            name = (asking.ns, key)
            for node in self.nodes.values():
                held = [s for s in range(SHARDS) if node.holdings.since.get((name, s), 1 << 62) <= fresh]
                known = node.running and node.started_at <= fresh
                if known and held and not asking.found[key]:
                    raise Broken(f"not found: {key[:4].hex()}, which {node} holds, by a lookup at {asking.node}")
            for holder in asking.found[key]:
                node = self.nodes[holder]
                there = node.running and name in node.holdings.blocks
                if not there and not self._lately(node, name, fresh):
                    raise Broken(f"named what it has not: {key[:4].hex()} of {node}, by a lookup at {asking.node}")

    def _lately(self, node: ClusterNode, name: Name, since: int) -> bool:
        """It had it after `since`, or was killed after that. One that came back without it may not know whom its former
        incarnation had told: that is forgotten after the grace time.
        """
        if not node.running:
            return node.killed_at >= since
        return node.started_at >= since - GRACE_MS * MS or node.holdings.dropped.get(name, -1) >= since

    def _judge_end(self, asking: Asking) -> None:
        for key in asking.keys:
            name = (asking.ns, key)
            held = {node.name: node.holdings.state(name)[0] for node in self.nodes.values()}
            held = {node: shards for node, shards in held.items() if shards}
            found = asking.found[key]
            if any(held.get(node) != shards for node, shards in found.items()):
                raise Broken(f"at the end: {key[:4].hex()} is not as {asking.node} was told")
            if len(found) != min(len(held), self.settings.holders_max):
                raise Broken(f"at the end: {key[:4].hex()} has {len(held)} holders, {asking.node} found {len(found)}")

    # ---- the end

    def _end_faults(self) -> None:
        self.world.note("all", "faults end")
        self.network.weather = Weather(5 * MS)
        self.network.cut.clear()
        for node in self.nodes.values():
            node.wake()
            self._restart(node, wiped=False)

    def _last_lookups(self) -> None:
        for node in self.nodes.values():
            for number in range(2):
                asking = self.cast.client(node, self.namespace(number), self.keys, self.judge)
                self.askings.append(asking)
                asking.start()

    def _finish(self) -> None:
        """Directory and nodes agree; then all of them end, so that nothing is left to happen."""
        agreed = sum(self._agrees(home, node) for home in self.nodes.values() for node in self.nodes.values())
        if any(not asking.done or asking.waiting for asking in self.askings):
            raise Broken("hang: somebody waits for what never comes")
        self.result = Result(
            self.world.events,
            self.calm,
            len(self.askings),
            sum(asking.got for asking in self.askings),
            sum(asking.missed for asking in self.askings),
            self.restarts,
            self.moved,
            sum(asking.locating.hedges for asking in self.askings),
            self.network.lost,
            self.forgotten,
            agreed,
        )
        for node in self.nodes.values():
            node.running = False

    def _agrees(self, home: ClusterNode, node: ClusterNode) -> int:
        view = home.directory.view
        if view.asked.members != self.nodes.keys() or len(view.told) != 1:
            raise Broken(f"at the end: homes have not settled at {home}")
        want, count = np.zeros(64, np.uint64), 0
        for ns in sorted({ns for ns, _ in node.holdings.blocks}):
            keys = keys_array([key for each, key in node.holdings.blocks if each == ns])
            kept = keys[view.asked.of(ns).kept_by(home.name, keys)]
            want ^= claim_digests(namespace_word(ns), kept, *node.holdings.held(ns, kept))
            count += len(kept)
        claims = home.directory.claims
        claims.table.check_integrity()
        teller = claims.tellers.get(node.name)
        have = claims.table.claims_of(teller.number) if teller else 0
        if have != count or (teller and (claims.table.digests(teller.number) != want).any()):
            raise Broken(
                f"directory and nodes disagree: {home} has {have} claims of {node}, which holds {count} for it"
            )
        return count

    def run(self) -> Result:
        self.world.at(FAULTS_END_MS * MS, self._end_faults)
        self.world.at(self.ends_at - QUIET_MS * MS, self._last_lookups)
        self.world.at(self.ends_at, self._finish)
        self.world.run(EVENTS_MAX, lambda: None)
        return self.result


def run_seed(seed: int, cast: ClusterCast | None = None) -> Result:
    """Plays one seed out. Broken says what did not hold, the end of the trace, and how to see it again."""
    simulation = None
    try:
        simulation = ClusterSimulation(seed, cast or ClusterCast())
        return simulation.run()
    except AssertionError as error:
        trace = "\n".join(simulation.world.trace()[-60:]) if simulation is not None else ""
        replay = f"replay: python -m kvstore.testing.cluster_simulation {seed}"
        raise Broken(f"{error}\n{trace}\n{error}\n{replay}") from error


def main() -> None:
    """Replays the seeds given as arguments; the trace of one that breaks is printed."""
    for seed in map(int, sys.argv[1:]):
        print(seed, run_seed(seed))  # noqa: T201


if __name__ == "__main__":
    main()
