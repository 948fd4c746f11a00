"""Of the tokens that an engine which forgets nothing would have found in its own cache: how many the store gave.

Conversations on a few system prompts, each turn all that was said before and a new question; the engine forgets
everything between turns. What could be found is counted here, from the tokens alone: a block can be found where all
tokens up to its end were computed before, in a prompt or as an answer (the last token of one was never computed), and a
prompt's last token is always computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.engines.contender import Contender
from bench.engines.statistics import EngineRow, with_intervals
from bench.harness import at_least, row_of
from tests.engines.wire import Answer, Prompt, words

__all__ = ["Ideal", "converse", "row"]

SYSTEMS = (400, 230)  # tokens of each system prompt
QUESTION = (40, 170)  # tokens, least and most
ANSWER = 48


@dataclass
class Ideal:
    """A prefix cache that forgets nothing."""

    block: int
    seen: set[tuple[int, ...]] = field(default_factory=set)

    def found(self, tokens: list[int]) -> int:
        blocks = 0
        while (blocks + 1) * self.block < len(tokens) and tuple(tokens[: (blocks + 1) * self.block]) in self.seen:
            blocks += 1
        return blocks * self.block

    def computed(self, tokens: list[int]) -> None:
        for end in range(self.block, len(tokens) + 1, self.block):
            self.seen.add(tuple(tokens[:end]))


def converse(ours: Contender, block: int, conversations: int, turns: int, seed: int) -> tuple[int, int, int]:
    """Tokens found, tokens that could be, and tokens asked."""
    ideal, found, could, asked = Ideal(block), 0, 0, 0
    said = [words(SYSTEMS[number % len(SYSTEMS)], seed + number % len(SYSTEMS)) for number in range(conversations)]
    for turn in range(turns):
        for number, history in enumerate(said):
            least, most = QUESTION
            length = least + (turn * 37 + number * 53) % (most - least)
            history.extend(words(length, seed + 1_000 + turn * conversations + number))
        # In the first turn one after the other: what is shared is computed once and then found.
        waves = [[number] for number in range(conversations)] if turn == 0 else [list(range(conversations))]
        for wave in waves:
            could += sum(ideal.found(said[number]) for number in wave)
            asked += sum(len(said[number]) for number in wave)
            for number, answer in zip(wave, _ask(ours, [said[number] for number in wave]), strict=True):
                found += answer.cached  # what one of a wave has loaded is there for the others
                said[number] += answer.tokens
                ideal.computed(said[number][:-1])
    return found, could, asked


def _ask(ours: Contender, prompts: list[list[int]]) -> list[Answer]:
    from tests.engines.store_rig import settle

    settle(ours.engine)
    ours.forget()
    return ours.engine.generate_all([Prompt(list(prompt), max_tokens=ANSWER) for prompt in prompts])


def row(counted: tuple[int, int, int], conversations: int, turns: int, load: float) -> EngineRow:
    found, could, asked = counted
    share = found / could * 100
    made = row_of(
        f"hit tokens of those that could hit, {conversations} conversations of {turns} turns, {asked:,} tokens",
        unit="%",
        ours=share,
        limit=could / asked * 100,
        limit_is="of all tokens, those that could hit",
        target=at_least(100.0, "%"),
        taken=[share],
        steady=[share],
        load=load,
    )
    return with_intervals(made, {}, 1)
