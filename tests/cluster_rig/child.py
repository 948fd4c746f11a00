"""An engine's process on one machine of the rig: a client of that machine's node. Commands and answers are JSON lines.

What a block holds follows from its key, so every byte that arrives is compared here.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from kvstore import Client, Namespace
from kvstore.config import TransferConfig
from kvstore.errors import KvStoreError
from tests.integration.nodes import SIZE, blocks_of, layout, tokens


class Child:
    """One chain a call: `blocks` of what `seed` names in the namespace `model`. Errors of the store are answers."""

    def __init__(self, address: str, certificate: str, private_key: str, authority: str) -> None:
        files = TransferConfig(
            address="none", certificate=Path(certificate), private_key=Path(private_key), peer_ca=Path(authority)
        )
        self.client = Client(address, transfers=files, deadline_s=3.0)
        self._spaces: dict[str, Namespace] = {}

    def do(self, verb: str, model: str, seed: int, blocks: int, deadline_s: float) -> dict[str, Any]:
        began = time.monotonic()
        try:
            if model not in self._spaces:
                self._spaces[model] = self.client.namespace(layout(model))
            ns = self._spaces[model]
            if verb == "survey":  # of what it is called since somebody cleared it
                with contextlib.suppress(KvStoreError):
                    ns.lookup(ns.chain(tokens(1, seed)), deadline_s=deadline_s)
            told: dict[str, Any] = getattr(self, verb)(ns, ns.chain(tokens(blocks, seed)), deadline_s)
        except KvStoreError as error:
            told = {"error": type(error).__name__, "why": str(error)}
        return {"s": time.monotonic() - began, **told}

    def put(self, ns: Namespace, chain: np.ndarray, deadline_s: float) -> dict[str, Any]:
        contents = blocks_of(chain)
        began = time.monotonic()
        done = ns.put(chain, contents, deadline_s=deadline_s)
        return {"s": time.monotonic() - began, "stored": done.stored, "held": done.held, "rejected": done.rejected}

    def copy(self, ns: Namespace, chain: np.ndarray, deadline_s: float) -> dict[str, Any]:
        """A put that is to be on two machines."""
        done = ns.put(chain, blocks_of(chain), replicas=2, deadline_s=deadline_s)
        return {"stored": done.stored, "hosts": done.replicas}

    def clear(self, ns: Namespace, chain: np.ndarray, deadline_s: float) -> dict[str, Any]:
        told = ns.clear(deadline_s=deadline_s)
        return {"nodes": told.nodes}

    def get(self, ns: Namespace, chain: np.ndarray, deadline_s: float) -> dict[str, Any]:
        into = np.zeros((len(chain), SIZE), np.uint8)
        began = time.monotonic()
        got = ns.get(chain, into, deadline_s=deadline_s)
        took = time.monotonic() - began
        wrong = int((into[: got.blocks] != blocks_of(chain[: got.blocks])).sum())
        return {"s": took, "blocks": got.blocks, "tiers": got.tiers.tolist(), "ended": got.ended.value, "wrong": wrong}

    def lookup(self, ns: Namespace, chain: np.ndarray, deadline_s: float) -> dict[str, Any]:
        began = time.monotonic()
        found = ns.lookup(chain, deadline_s=deadline_s)
        took = time.monotonic() - began
        holders = [one.node for one in found.holders]
        return {"s": took, "blocks": found.blocks, "tiers": found.tiers.tolist(), "holders": holders}

    def survey(self, ns: Namespace, chain: np.ndarray, deadline_s: float) -> dict[str, Any]:
        """The tier of each block, whatever lies before it; 0: nowhere."""
        tiers: list[int] = []
        while len(tiers) < len(chain):
            found = ns.lookup(chain[len(tiers) :], deadline_s=deadline_s)
            tiers += found.tiers.tolist()
            if len(tiers) < len(chain):
                tiers.append(0)
        return {"tiers": tiers}

    def prefetch(self, ns: Namespace, chain: np.ndarray, deadline_s: float) -> dict[str, Any]:
        return {"blocks": ns.prefetch(chain, deadline_s=deadline_s)}

    def hold(self, ns: Namespace, chain: np.ndarray, deadline_s: float) -> dict[str, Any]:
        with ns.hold(chain, wait_s=deadline_s / 2, deadline_s=deadline_s) as held:
            return {"blocks": held.blocks}


def main() -> None:
    child = Child(*sys.argv[1:])
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(child.do(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
