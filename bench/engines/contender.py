"""An engine with one of the stores, kept alive through a run, and asked the same as the others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.engines.stores import Store
from tests.engines.run import Engine, vllm
from tests.engines.wire import Answer, Prompt, words

__all__ = ["BLOCK", "Contender", "Wrong", "probe", "turns"]

BLOCK = 128
PROBES = "bench.engines.probes"
SETTLE_S = 0.7  # after an answer, in steps: what is stored in the background is there
FORGET_TRIES = 20
LEAST = 4


class Wrong(Exception):
    """A store did not give what it was asked for; the text says what it gave."""


def turns(most: int, seconds: float) -> Iterator[int]:
    """Numbers of rounds: `most`, fewer where the time is over before, but LEAST at least."""
    end = time.monotonic() + seconds
    for turn in range(most):
        if turn >= LEAST and time.monotonic() > end:
            return
        yield turn


def probe(engine: Engine, name: str, **given: Any) -> Any:
    return engine.call(f"{PROBES}:{name}", **given)


@dataclass
class Contender:
    store: Store
    engine: Engine

    @classmethod
    def start(cls, store: Store, folder: Path, stack: ExitStack, model: str, **arguments: Any) -> Contender:
        """Ends with `stack`."""
        home = folder / store.name
        home.mkdir(parents=True, exist_ok=True)
        given = stack.enter_context(store.start(home)).arguments()
        usual = {"block_size": BLOCK, "max_model_len": 8192, "kv_cache_memory_bytes": 384 << 20}
        engine = stack.enter_context(vllm(model, home, **{**usual, **arguments, **given}))
        found = cls(store, engine)
        found.ask(Prompt(words(2 * BLOCK + 8, 1)))  # the first of all is slow, with any store
        found.settle()
        return found

    def ask(self, prompt: Prompt) -> Answer:
        answer = self.engine.generate(prompt)
        if answer.finish != "length" or answer.first_token_s is None:
            raise Wrong(f"an answer ended with {answer.finish}")
        return answer

    def settle(self) -> None:
        probe(self.engine, "step", seconds=SETTLE_S)

    def forget(self, connector: bool = False) -> None:
        """The engine's own prefix cache is empty after this."""
        for _ in range(FORGET_TRIES):
            if probe(self.engine, "forget", connector=connector):
                return
            # Blocks are held until a step tells that they are stored; some only step with a request.
            self.ask(Prompt(words(8, 2), max_tokens=2))
            time.sleep(0.1)
        raise Wrong("the engine's blocks are held for ever")

    def fetched(self, prompt: Prompt, connector: bool = False) -> Answer:
        """An answer that the store had all full blocks of."""
        self.forget(connector)
        answer = self.ask(prompt)
        due = (len(prompt.tokens) - 1) // BLOCK * BLOCK
        if (answer.local, answer.external) != (0, due):
            raise Wrong(f"of {due} tokens {answer.external} came from the store, {answer.local} from the engine")
        return answer
