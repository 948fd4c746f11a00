"""Time to the first token: computed, and with the prompt's blocks from each store; engines take turns, round by round.

Of each prompt all but a few tokens are full blocks. It is asked for once (computed, and stored in the background), once
more (found in the engine's own cache, which says what a hit must answer), and again after the engine has forgotten it.
A store that gives fewer blocks than there are, or other tokens, drops out with the reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.engines import statistics
from bench.engines.contender import BLOCK, Contender, Wrong, turns
from bench.engines.statistics import EngineRow
from bench.harness import Target, row_of
from tests.engines.run import EngineFailed
from tests.engines.wire import Prompt, words

__all__ = ["Taken", "compare", "rows"]

OURS, NONE = "ours", "no store"
ROUNDS_S = 300.0


@dataclass
class Taken:
    """Seconds to the first token, by the label of who took them, a figure a round: of prompts that nobody had, of
    hits, and of hits in the engine's own cache. A round that somebody dropped out of has no figure of his.
    """

    computed: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    fetched: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    local: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    missing: dict[str, str] = field(default_factory=dict)  # labels, and why


def prompt(blocks: int, seed: int) -> Prompt:
    return Prompt(words(blocks * BLOCK + 8, seed), max_tokens=4)


def compare(
    contenders: list[Contender], blocks: int, rounds: int, seed: int, say: Callable[[str], None], taken: Taken
) -> None:
    """Every second round is backwards. The first does not count."""
    for turn in turns(rounds + 1, ROUNDS_S):
        for contender in contenders if turn % 2 else contenders[::-1]:
            try:
                _round(contender, prompt(blocks, seed + turn), taken if turn else Taken())
            except (EngineFailed, Wrong, KeyError) as why:
                _drop(contender, str(why).strip().splitlines()[0], taken)
                say(f"{contender.store.label}: dropped out: {why}")
                contenders = [each for each in contenders if each is not contender]


def _drop(contender: Contender, why: str, taken: Taken) -> None:
    for label in (contender.store.label, contender.store.files):
        if label:
            taken.missing[label] = why
            for figures in (taken.computed, taken.fetched, taken.local):
                figures.pop(label, None)


def _round(contender: Contender, wanted: Prompt, taken: Taken) -> None:
    label = contender.store.label
    computed = contender.ask(wanted)
    if computed.cached:
        raise Wrong(f"{computed.cached} tokens of a prompt that is new were there already")
    contender.settle()
    local = contender.ask(wanted)
    taken.computed[label].append(computed.first_token_s)
    taken.local[label].append(local.first_token_s)
    if contender.store.name == "none":
        return
    for found, connector in ((label, False), (contender.store.files, True)):
        if found:
            answer = contender.fetched(wanted, connector)
            if answer.tokens != local.tokens:
                raise Wrong("a hit gave other tokens than one of the engine's own cache")
            taken.fetched[found].append(answer.first_token_s)


def _fastest(taken: Taken) -> Target:
    """Where the interval of the ratio of each pair says so; a peer that is too near to tell is not beaten."""

    def holds(_ours: float, _limit: float | None) -> bool:
        mine = taken.fetched[OURS]
        others = [figures for label, figures in taken.fetched.items() if label != OURS]
        others.append(taken.computed[NONE])
        return all(statistics.of(statistics.paired_ratio(mine, other)).high < 1 for other in others)

    return Target("ours fastest of the stores", holds, False)


def rows(taken: Taken, blocks: int, load: float) -> list[EngineRow]:
    ms = {label: [value * 1e3 for value in values] for label, values in taken.fetched.items()}
    ms[NONE] = [value * 1e3 for value in taken.computed[NONE]]
    mine, local = ms.pop(OURS), [value * 1e3 for value in taken.local[OURS]]
    intervals = {label: statistics.of(values) for label, values in {OURS: mine, "limit": local, **ms}.items()}
    peers: dict[str, float | str] = {label: statistics.median(values) for label, values in ms.items()}
    row = row_of(
        f"time to first token, {blocks * BLOCK:,} of {blocks * BLOCK + 8:,} tokens from the store",
        unit="ms",
        ours=statistics.median(mine),
        limit=statistics.median(local),
        limit_is="a hit in the engine's own cache",
        target=_fastest(taken),
        taken=mine,
        steady=taken.computed[NONE],
        load=load,
        peers=peers | {label: f"not measured: {why}" for label, why in taken.missing.items()},
    )
    return [statistics.with_intervals(row, intervals, len(mine))]
