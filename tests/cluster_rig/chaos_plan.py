"""What happens to a cluster in a run of chaos, and what its clients ask meanwhile: all of it from one seed. Pure."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["ETCD", "Fault", "Link", "Operation", "links", "operations", "plan"]

ETCD: Final = "etcd"
CHAINS: Final = 25  # of each model, the first ones asked for most
MODELS: Final = ("a", "b")
BLOCKS_MAX: Final = 24

# How likely each is, and for how long. What `links` knows cuts or slows; the rest happens to processes.
_KINDS: Final = {
    "kill": (6, 0.2, 3.0),  # -9, and started again after that
    "lose": (1, 0.2, 2.0),  # -9, its memory and disk deleted: the machine is replaced by an empty one
    "restart": (2, 0.1, 0.5),  # in order
    "stop": (4, 0.3, 5.0),  # SIGSTOP
    "drain": (1, 1.0, 6.0),  # and then it takes blocks again
    "vanish": (3, 1.0, 5.0),  # its packets do
    "one-way": (3, 1.0, 5.0),  # the second hears nothing of the first
    "split": (2, 1.0, 6.0),  # two or three against the others
    "slow": (2, 1.0, 5.0),
    "lossy": (2, 1.0, 5.0),
    "etcd-kill": (1, 0.5, 5.0),
    "etcd-vanish": (1, 0.5, 5.0),
}
_ONE: Final = {"kill", "lose", "restart", "stop", "drain", "vanish", "slow", "lossy"}
_VERBS: Final = {"put": 30, "get": 40, "lookup": 20, "prefetch": 5, "hold": 5, "copy": 5, "clear": 0.2}


@dataclass(frozen=True, slots=True)
class Fault:
    """Begins at_s after the start and is over for_s later. nodes: whom it befalls."""

    at_s: float
    for_s: float
    kind: str
    nodes: tuple[str, ...]

    @property
    def ends_s(self) -> float:
        return self.at_s + self.for_s

    def __str__(self) -> str:
        return f"{self.at_s:7.2f} s: {self.kind} {' '.join(self.nodes)} for {self.for_s:.2f} s"


@dataclass(frozen=True, slots=True)
class Link:
    """Of one machine: whom it does not hear, how much of the rest is lost, how fast its cable is (0: as it comes)."""

    deaf_to: frozenset[str] = frozenset()
    loss: float = 0.0
    megabits: float = 0.0


@dataclass(frozen=True, slots=True)
class Operation:
    verb: str
    model: str
    seed: int
    blocks: int


def plan(seed: int, seconds: float, nodes: Sequence[str]) -> list[Fault]:
    """In the order of their begins. A node has one fault of its own at a time; all are over at the end."""
    draw = random.Random(f"plan {seed}")
    kinds, weights = list(_KINDS), [weight for weight, _, _ in _KINDS.values()]
    free_at = dict.fromkeys([*nodes, ETCD, "links"], 0.0)
    found: list[Fault] = []
    at = 1.0
    while (at := at + draw.uniform(0.2, 2.5)) < seconds:
        kind = draw.choices(kinds, weights)[0]
        for_s = min(draw.uniform(*_KINDS[kind][1:]), seconds - at)
        if kind in _ONE:
            whom: tuple[str, ...] = (draw.choice(nodes),)
        elif kind.startswith(ETCD):
            whom = (ETCD,)
        else:
            whom = tuple(draw.sample(nodes, 2 if kind == "one-way" else draw.choice((2, 3))))
        taken = whom if len(whom) == 1 else ("links",)
        if all(free_at[name] < at for name in taken):
            found.append(Fault(at, for_s, kind, whom))
            free_at.update(dict.fromkeys(taken, at + for_s))
    return found


def links(active: Sequence[Fault], nodes: Sequence[str]) -> dict[str, Link]:
    """What these faults together come to, for every machine."""
    everybody = [*nodes, ETCD]
    deaf = {name: set[str]() for name in everybody}
    loss, megabits = dict.fromkeys(everybody, 0.0), dict.fromkeys(everybody, 0.0)
    for fault in active:
        if fault.kind in {"vanish", "etcd-vanish", "split"}:
            others = [name for name in everybody if name not in fault.nodes]
            for one, other in itertools.product(fault.nodes, others):
                deaf[one].add(other)
                deaf[other].add(one)
        elif fault.kind == "one-way":
            deaf[fault.nodes[1]].add(fault.nodes[0])
        elif fault.kind == "lossy":
            loss[fault.nodes[0]] = 0.05
        elif fault.kind == "slow":
            megabits[fault.nodes[0]] = 20.0
    return {name: Link(frozenset(deaf[name]), loss[name], megabits[name]) for name in everybody}


def operations(seed: int, node: str) -> Iterator[Operation]:
    """Without an end. How far a client comes depends on the machine; what it asks in which order does not."""
    draw = random.Random(f"operations {seed} {node}")
    verbs, weights = list(_VERBS), list(_VERBS.values())
    popular = list(itertools.accumulate(1 / (rank + 2) for rank in range(CHAINS)))
    while True:
        rank = bisect.bisect(popular, draw.random() * popular[-1])
        blocks = draw.randint(1, BLOCKS_MAX)
        yield Operation(draw.choices(verbs, weights)[0], draw.choice(MODELS), rank, blocks)
