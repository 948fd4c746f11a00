"""What the store costs where nothing is found: engines with its connector and without any, in pairs.

Prompts that nobody had: the search finds nothing, and what is computed is saved in the background. The limit is the
engine without a connector, the figure the ratio of each pair.
"""

from __future__ import annotations

from bench.engines import statistics
from bench.engines.contender import Contender, turns
from bench.engines.first_token import NONE, OURS, Taken, prompt
from bench.engines.statistics import EngineRow
from bench.harness import at_most, no_target, row_of
from tests.engines.wire import Prompt, words

__all__ = ["computed", "decode_row", "decoded", "rows"]

COST_MAX = 2.0  # percent
PAIRS_S, DECODES_S = 150.0, 50.0
DECODE_PROMPT, DECODE_TOKENS = 136, 150  # a block is saved while tokens are decoded


def computed(pair: tuple[Contender, Contender], blocks: int, pairs: int, seed: int, taken: Taken) -> None:
    """More rounds of what `compare` takes too: both, and then both the other way round."""
    for turn in turns(pairs, PAIRS_S):
        for contender in pair if turn % 2 else pair[::-1]:
            answer = contender.ask(prompt(blocks, seed + turn))
            taken.computed[contender.store.label].append(answer.first_token_s or 0.0)
            contender.settle()


def decoded(pair: tuple[Contender, Contender], pairs: int, seed: int) -> dict[str, list[float]]:
    """Seconds a decoded token, by label, one figure a round."""
    steps: dict[str, list[float]] = {OURS: [], NONE: []}
    for turn in turns(pairs, DECODES_S):
        for contender in pair if turn % 2 else pair[::-1]:
            answer = contender.ask(Prompt(words(DECODE_PROMPT, seed + turn), max_tokens=DECODE_TOKENS))
            assert answer.first_token_s is not None
            each = (answer.took_s - answer.first_token_s) / (DECODE_TOKENS - 1)
            steps[contender.store.label].append(each)
            contender.settle()
    return steps


def _row(name: str, mine: list[float], other: list[float], load: float) -> EngineRow:
    """Seconds of pairs, told in ms."""
    made = row_of(
        name,
        unit="ms",
        ours=statistics.median(mine) * 1e3,
        limit=statistics.median(other) * 1e3,
        limit_is="the same engine without a connector",
        target=no_target(),
        taken=mine,
        steady=other,
        load=load,
    )
    ratios = statistics.of(statistics.paired_ratio(mine, other))
    return statistics.with_intervals(made, {"ratio of pairs": ratios}, len(mine))


def rows(taken: Taken, blocks: int, load: float) -> list[EngineRow]:
    mine, other = taken.computed[OURS], taken.computed[NONE]
    tokens = len(prompt(blocks, 0).tokens)
    costs = [(ratio - 1) * 100 for ratio in statistics.paired_ratio(mine, other)]
    cost = row_of(
        "cost where nothing is found, of the prefill",
        unit="%",
        ours=statistics.median(costs),
        limit=None,
        limit_is="",
        target=at_most(COST_MAX, "%"),
        taken=other,
        steady=other,
        load=load,
    )
    return [
        _row(f"time to first token, {tokens:,} tokens that nobody had", mine, other, load),
        statistics.with_intervals(cost, {OURS: statistics.of(costs)}, len(costs)),
    ]


def decode_row(steps: dict[str, list[float]], load: float) -> EngineRow:
    return _row("a step of decoding, generated blocks saved", steps[OURS], steps[NONE], load)
