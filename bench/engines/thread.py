"""CPU time that the engine's scheduling thread spends in our connector, a request: one at a time, from its arrival
until what it computed is saved.

Reading the clock of a thread is a system call, and with thirty calls a request a third of what it measures. So it is
read twice before each call, and what the second reading took is taken off; the row says beside it what the figure is
with that.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from bench.engines import statistics
from bench.engines.contender import Contender, probe, turns
from bench.engines.statistics import EngineRow
from bench.harness import at_most, no_target, row_of
from tests.engines.wire import Prompt, words

__all__ = ["LENGTHS", "Spent", "rows", "spend"]

LENGTHS = (1_032, 8_072)
DECODED = 65
REQUEST_US_MAX = 100.0
REQUESTS_S = 60.0


class Spent:
    """Microseconds of each request, by kind and tokens; the same with the clock's own; and what of them each method
    took, on average.
    """

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], list[float]] = {}
        self.clocked: dict[tuple[str, int], list[float]] = {}
        self.methods: dict[tuple[str, int], Counter[str]] = {}

    def add(self, kind: str, length: int, told: dict[str, list[int]]) -> None:
        gross = sum(spent for _, spent, _ in told.values()) / 1e3
        self.requests.setdefault((kind, length), []).append(_total(told) / 1e3)
        self.clocked.setdefault((kind, length), []).append(gross)
        methods = self.methods.setdefault((kind, length), Counter())
        methods.update({name: (spent - clock) / 1e3 for name, (_, spent, clock) in told.items()})

    def shares(self) -> list[str]:
        """A line a kind: where the time goes."""
        lines = []
        for (kind, length), methods in self.methods.items():
            count = len(self.requests[kind, length])
            each = ", ".join(f"{name} {spent / count:.0f}" for name, spent in methods.most_common(6))
            lines.append(f"{kind}, {length:,} tokens, us a request: {each}")
        return lines


def _ask(ours: Contender, prompt: Prompt) -> dict[str, list[int]]:
    """All that the request made the scheduler do, its saves too."""
    from tests.engines.store_rig import until

    probe(ours.engine, "spent")
    ours.ask(prompt)
    until(lambda: not probe(ours.engine, "pending"))
    told: dict[str, list[int]] = probe(ours.engine, "spent")
    return told


def _total(told: dict[str, list[int]]) -> int:
    return sum(took - clock for _, took, clock in told.values())


def _step(short: dict[str, list[int]], long: dict[str, list[int]]) -> dict[str, list[int]]:
    """One of the steps by which a request is longer than another."""
    more = [sum(each) for each in zip(*long.values(), strict=True)]
    less = [sum(each) for each in zip(*short.values(), strict=True)]
    return {"decode": [max(0, a - b) // (DECODED - 1) for a, b in zip(more, less, strict=True)]}


def spend(ours: Contender, requests: int, seed: int, lengths: tuple[int, ...] = LENGTHS) -> Spent:
    probe(ours.engine, "clock")
    spent = Spent()
    for turn in turns(requests + 1, REQUESTS_S):
        for length in lengths:
            # Another seed for each length: one of the same would begin alike.
            prompt = Prompt(words(length, seed + length + turn), max_tokens=1)
            figures = spent if turn else Spent()
            figures.add("miss", length, _ask(ours, prompt))
            ours.forget()
            figures.add("hit", length, _ask(ours, prompt))
        if turn:
            tokens = words(lengths[0], seed + turn)
            first = _ask(ours, Prompt(tokens, max_tokens=1))
            spent.add("step", 1, _step(first, _ask(ours, Prompt(tokens, max_tokens=DECODED))))
        ours.forget()
    return spent


def rows(spent: Spent, block: int, load: float) -> list[EngineRow]:
    made = []
    for (kind, length), us in spent.requests.items():
        request = f"scheduler's thread, a request of {length:,} tokens, {kind}, blocks of {block}"
        row = row_of(
            "scheduler's thread, a step of decoding" if kind == "step" else request,
            unit="us",
            ours=statistics.median(us),
            limit=None,
            limit_is="",
            target=no_target() if kind == "step" else at_most(REQUEST_US_MAX, "us"),
            taken=us,
            steady=us,
            load=load,
            peers={
                "p99": float(np.percentile(us, 99)),
                "with reading the clock": statistics.median(spent.clocked[kind, length]),
            },
        )
        made.append(statistics.with_intervals(row, {"ours": statistics.of(us)}, len(us)))
    return made
