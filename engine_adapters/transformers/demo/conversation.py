"""Who says what: a shared system prompt, users, turns. Token ids are drawn from a seed; the model does not mind."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from .model import VOCABULARY


@dataclass(slots=True)
class Conversation:
    user: int
    tokens: list[int]
    turn: int = 0
    rng: random.Random = field(default_factory=random.Random)

    def say(self, count: int) -> list[int]:
        """The user's next message; returns the whole prompt so far."""
        self.tokens.extend(self.rng.randrange(VOCABULARY) for _ in range(count))
        self.turn += 1
        return list(self.tokens)

    def answer(self, tokens: list[int]) -> None:
        self.tokens.extend(tokens)


def conversations(users: int, system_tokens: int, seed: int) -> list[Conversation]:
    rng = random.Random(seed)
    system = [rng.randrange(VOCABULARY) for _ in range(system_tokens)]
    return [Conversation(user, list(system), rng=random.Random(f"{seed}/{user}")) for user in range(users)]
