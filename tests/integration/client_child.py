"""A client process for tests that kill, stop and watch clients. Commands and answers are JSON lines."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from kvstore import Client
from kvstore.client.slots import Slots
from kvstore.client.views import View
from tests.integration.nodes import SIZE, block_of, blocks_of, layout, tokens


class Child:
    def __init__(self, address: str) -> None:
        self.client = Client(address)
        self.ns = self.client.namespace(layout())
        self.slots: Slots | None = None
        self.view: View | None = None
        self.arrays: list[np.ndarray] = []
        self.chain = np.empty((0, 32), np.uint8)

    def do(self, verb: str, blocks: int = 0, seed: int = 0, **more: Any) -> Any:
        if blocks:
            self.chain = self.ns.chain(tokens(blocks, seed))
        return getattr(self, verb)(**more)

    def put(self) -> Any:
        done = self.ns.put(self.chain, blocks_of(self.chain))
        return [done.stored, done.held, done.pending, done.rejected]

    def get(self) -> Any:
        into = np.zeros((len(self.chain), SIZE), np.uint8)
        got = self.ns.get(self.chain, into)
        right = all(
            np.array_equal(block, block_of(key)) for key, block in zip(self.chain, into[: got.blocks], strict=False)
        )
        return [got.blocks, right]

    def reserve(self) -> Any:
        self.slots = self.ns.reserve(self.chain)
        self.arrays = [self.slots.array(block) for block in self.slots.granted]
        return list(self.slots.granted)

    def fill(self, value: int) -> Any:
        """Writes straight into the slots, whatever became of the reservation meanwhile: a late landing."""
        for array in self.arrays:
            array[:] = value
        return True

    def seal(self) -> Any:
        assert self.slots is not None
        done = self.slots.seal()
        return [done.stored, done.rejected]

    def look(self) -> Any:
        self.view = self.ns.view(self.chain)
        self.arrays = list(self.view.blocks)
        return len(self.view)

    def check(self) -> Any:
        """Whether all arrays of the view still show their blocks."""
        return all(np.array_equal(array, block_of(key)) for key, array in zip(self.chain, self.arrays, strict=False))

    def close(self) -> Any:
        assert self.view is not None
        self.view.close()
        self.arrays = []
        return True


def main() -> None:
    child = Child(sys.argv[1])
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(child.do(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
