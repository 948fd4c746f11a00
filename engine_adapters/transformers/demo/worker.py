"""One engine process of the demo. Reads a JSON command a line on stdin, answers one a line on stdout.

{"verb": "prefill", "ids": [...], "again": a} fetch what is held, compute the rest, publish all whole blocks; again: it
                                              was done before, so what is not found at once is worth a moment
{"verb": "decode", "ids": [...], "new": n}    fetch, compute the rest, generate n tokens greedily, publish them too
{"verb": "alone", "ids": [...], "new": n, "boundary": b}   no store: a full prefill; and the reference, which
                                              continues from its own cache cut at `boundary` tokens
{"verb": "poison", "ids": [...], "new": n}    spoil one stored block, then fetch it unverified and verified
{"verb": "where", "ids": [...]}               where the prompt's blocks would be taken from
{"verb": "attach", "address": a}              go on at another node
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from typing import Any

import torch
import transformers

from kvstore import Client, Hints
from kvstore.client.journeys import Found

from ..connector import Fetched, StoreConnector
from .model import build_model, revision
from .stray import overwrite

TIER_NAMES = {1: "memory", 2: "files", 3: "objects"}
WHERE_S = 3.0
HANDOVER_S = 0.5  # it has been prefilled, so it should be there


class Worker:
    def __init__(self, address: str, layers: int, block_tokens: int) -> None:
        self.address = address
        self.block_tokens = block_tokens
        self.revision = revision(layers)
        self.model = build_model(layers)
        self.connector = self._connect(verify=True)

    def _connect(self, *, verify: bool) -> StoreConnector:
        client = Client(self.address, verify=verify)
        return StoreConnector(client, self.model, revision=self.revision, block_tokens=self.block_tokens)

    def warm(self, tokens: int) -> None:
        """Both sides alike: one full-length forward and one step, nothing of it published."""
        ids = torch.arange(tokens)[None, :] % 1000
        out = self._forward(ids, None)
        self._forward(ids[:, -1:], out.past_key_values)

    def _forward(self, ids: torch.Tensor, cache: transformers.DynamicCache | None) -> Any:
        with torch.inference_mode():
            return self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def _generate(self, out: Any, new: int) -> tuple[list[int], transformers.DynamicCache]:
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        tokens = [int(token)]
        while len(tokens) < new:
            out = self._forward(token, out.past_key_values)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(int(token))
        return tokens, out.past_key_values

    def prefill(self, ids: torch.Tensor, hints: Hints, *, again: bool) -> dict[str, Any]:
        start = time.perf_counter()
        if again:
            self._found(ids[:, :-1], WHERE_S)
        fetched = self.connector.fetch(ids, hints)
        out = self._forward(ids[:, fetched.tokens :], fetched.cache)
        computed = time.perf_counter()
        stored = self.connector.publish(ids, out.past_key_values, hints)
        return {
            "held": fetched.tokens,
            "tiers": _by_tier(fetched),
            "computed": ids.shape[1] - fetched.tokens,
            "prefill_s": computed - start,
            "publish_s": time.perf_counter() - computed,
            "stored": stored,
        }

    def decode(self, ids: torch.Tensor, new: int, hints: Hints) -> dict[str, Any]:
        start = time.perf_counter()
        self._found(ids[:, :-1], HANDOVER_S)
        fetched = self.connector.fetch(ids, hints)
        fetch_s = time.perf_counter() - start
        out = self._forward(ids[:, fetched.tokens :], fetched.cache)
        first = int(out.logits[0, -1].argmax())
        ttft_s = time.perf_counter() - start
        logits = out.logits[0, -1].tolist()
        tokens, cache = self._generate(out, new)
        assert tokens[0] == first
        whole = torch.cat([ids, torch.tensor([tokens])], dim=1)
        stored = self.connector.publish(whole, cache, hints)
        return {
            "ttft_s": ttft_s,
            "fetch_s": fetch_s,
            "held": fetched.tokens,
            "tiers": _by_tier(fetched),
            "tokens": tokens,
            "logits": logits,
            "stored": stored,
        }

    def alone(self, ids: torch.Tensor, new: int, boundary: int) -> dict[str, Any]:
        start = time.perf_counter()
        out = self._forward(ids, None)
        int(out.logits[0, -1].argmax())
        ttft_s = time.perf_counter() - start
        logits = out.logits[0, -1].tolist()
        pairs = [(layer.keys[:, :, :boundary], layer.values[:, :, :boundary]) for layer in out.past_key_values.layers]
        cut = transformers.DynamicCache([(k.clone(), v.clone()) for k, v in pairs] if boundary else None)
        tokens, _ = self._generate(self._forward(ids[:, boundary:], cut), new)
        return {"ttft_s": ttft_s, "logits": logits, "tokens": tokens}

    def poison(self, ids: torch.Tensor, new: int) -> dict[str, Any]:
        """Overwrites the second block where it lies in the node's memory, as a stray write by a neighbour would."""
        namespace = self.connector.namespace
        chain = namespace.chain(ids[0].numpy())[:2]
        with namespace.view(chain) as view:
            block = view.blocks[1]
            noise = torch.randn(block.nbytes // 4, generator=torch.Generator().manual_seed(1)) * 8
            overwrite(block, noise.numpy().tobytes())
        unverified = self._connect(verify=False).fetch(ids)
        wrong, _ = self._generate(self._forward(ids[:, unverified.tokens :], unverified.cache), new)
        verified = self.connector.fetch(ids)
        right, _ = self._generate(self._forward(ids[:, verified.tokens :], verified.cache), new)
        return {
            "unverified": wrong,
            "unverified_held": unverified.tokens,
            "verified": right,
            "verified_held": verified.tokens,
        }

    def where(self, ids: torch.Tensor) -> dict[str, Any]:
        """Blocks by the name of another node, or by the tier of the own one."""
        found = self._found(ids, WHERE_S)
        names = {block: one.node for one in found.holders[::-1] for block in range(one.first, one.first + one.count)}
        places = Counter(names.get(i, TIER_NAMES.get(tier, "")) for i, tier in enumerate(found.tiers.tolist()))
        return {"blocks": ids.shape[1] // self.block_tokens, "places": places}

    def _found(self, ids: torch.Tensor, within_s: float) -> Found:
        """Asks again until all is found: nodes tell each other within some tens of milliseconds what was put, and look
        for objects of others after a first lookup. Engines that know that a prefill has ended do the same.
        """
        namespace = self.connector.namespace
        chain = namespace.chain(ids[0].numpy())
        until = time.monotonic() + within_s
        while (found := namespace.lookup(chain)).blocks < len(chain) and time.monotonic() < until:
            time.sleep(0.01)
        return found

    def attach(self, address: str) -> dict[str, Any]:
        self.address = address
        self.connector = self._connect(verify=True)
        return {}


def _by_tier(fetched: Fetched) -> dict[str, int]:
    """How many blocks came from each tier."""
    return Counter(str(tier) for tier in fetched.tiers.tolist())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--block-tokens", type=int, required=True)
    parser.add_argument("--warm-tokens", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    worker = Worker(arguments.address, arguments.layers, arguments.block_tokens)
    worker.warm(arguments.warm_tokens)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(obey(worker, json.loads(line))), flush=True)
    return 0


def obey(worker: Worker, command: dict[str, Any]) -> dict[str, Any]:
    ids = torch.tensor([command.get("ids", [])])
    hints = Hints(session=command.get("session", 0), turn=command.get("turn", 0))
    match command["verb"]:
        case "prefill":
            return worker.prefill(ids, hints, again=command["again"])
        case "decode":
            return worker.decode(ids, command["new"], hints)
        case "alone":
            return worker.alone(ids, command["new"], command["boundary"])
        case "where":
            return worker.where(ids)
        case "attach":
            return worker.attach(command["address"])
        case "poison":
            return worker.poison(ids, command["new"])
        case verb:
            raise ValueError(f"verb: {verb!r}")


if __name__ == "__main__":
    sys.exit(main())
