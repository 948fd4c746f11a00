"""One client process of the demonstration: a command as JSON a line on stdin, an answer a line on stdout.

{"user": u, "turn": t, "publish": true}   a prefill process: looks up, makes what is missing, publishes it
{"user": u, "turn": t, "publish": false}  a decode process: looks up, fetches, compares every byte
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

from kvstore.client import Client, Hints, Namespace
from kvstore.demo.synthetic import kv_of, layout, prompt


def publish(ns: Namespace, user: int, turn: int) -> dict[str, Any]:
    chain = ns.chain(prompt(user, turn))
    found = ns.lookup(chain)
    missing, size = chain[found.blocks :], ns.shard_bytes[0]
    blocks = np.concatenate([kv_of(key, size) for key in missing])
    parent = chain[found.blocks - 1] if found.blocks else None
    began = time.perf_counter()
    done = ns.put(missing, blocks, parent=parent, position=found.blocks, hints=_hints(user, turn))
    seconds = time.perf_counter() - began
    return {"asked": len(chain), "held": found.blocks, "stored": done.stored, "bytes": blocks.nbytes, "put_s": seconds}


def fetch(ns: Namespace, user: int, turn: int) -> dict[str, Any]:
    began = time.perf_counter()
    chain = ns.chain(prompt(user, turn))
    chained = time.perf_counter()
    found = ns.lookup(chain)
    looked = time.perf_counter()
    into = np.empty(found.blocks * ns.shard_bytes[0], dtype=np.uint8)
    into[::4096] = 0  # memory of an engine's cache is there before a prompt comes
    ready = time.perf_counter()
    got = ns.get(chain[: found.blocks], into, hints=_hints(user, turn))
    fetched = time.perf_counter()
    blocks = into.reshape(-1, ns.shard_bytes[0])[: got.blocks]
    equal = all(np.array_equal(block, kv_of(key, block.nbytes)) for key, block in zip(chain, blocks, strict=False))
    return {
        "asked": len(chain),
        "found": found.blocks,
        "blocks": got.blocks,
        "tiers": np.bincount(got.tiers, minlength=4).tolist(),
        "bytes": blocks.nbytes,
        "equal": equal,
        "chain_s": chained - began,
        "lookup_s": looked - chained,
        "get_s": fetched - ready,
    }


def _hints(user: int, turn: int) -> Hints:
    return Hints(session=f"user {user}", turn=turn)


def main() -> None:
    with Client(sys.argv[1]) as client:
        ns = client.namespace(layout())
        print(json.dumps({"ready": True}), flush=True)  # noqa: T201 - the protocol
        for line in sys.stdin:
            command = json.loads(line)
            verb = publish if command["publish"] else fetch
            print(json.dumps(verb(ns, command["user"], command["turn"])), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
