"""What must hold of a cluster that was let be: what any node holds, every node finds and brings, and nobody more."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from tests.cluster_rig.chaos_plan import BLOCKS_MAX, CHAINS, MODELS
from tests.cluster_rig.rig import Rig

AGREE_S = 30.0
GET_S = 10.0  # holders that failed lately are passed over for two seconds
Chain = tuple[str, int]

__all__ = ["check"]


def check(rig: Rig) -> list[str]:
    """What does not hold, in words."""
    began = time.monotonic()
    chains = [(model, seed) for model in MODELS for seed in range(CHAINS)]
    while True:
        surveys = _surveys(rig, chains)
        wrong = _disagreements(rig, surveys)
        if not wrong:
            break
        if time.monotonic() - began > AGREE_S:
            return wrong[:10]
        time.sleep(0.2)
    held = sum(len(one) for one in _held(surveys).values())
    print(f"== all agree about {held} blocks after {time.monotonic() - began:.1f} s", flush=True)
    return _gets(rig, chains)


def _surveys(rig: Rig, chains: list[Chain]) -> list[dict[Chain, list[int]]]:
    """Of each node: the tier of every block of every chain as it finds it, 0 where it does not."""

    def ask(i: int) -> dict[Chain, list[int]]:
        found: dict[Chain, list[int]] = {}
        for model, seed in chains:
            until = time.monotonic() + GET_S
            while "tiers" not in (told := rig.engines[i].ask("survey", model, seed, BLOCKS_MAX)):
                # A client that found its node away a moment ago looks again after a pause.
                assert time.monotonic() < until, (rig.names[i], told)
                time.sleep(0.1)
            found[model, seed] = told["tiers"]
        return found

    with ThreadPoolExecutor(rig.count) as pool:
        return list(pool.map(ask, range(rig.count)))


def _held(surveys: list[dict[Chain, list[int]]]) -> dict[Chain, set[int]]:
    """Blocks that some node has itself."""
    return {
        chain: {at for one in surveys for at, tier in enumerate(one[chain]) if 0 < tier < 8} for chain in surveys[0]
    }


def _disagreements(rig: Rig, surveys: list[dict[Chain, list[int]]]) -> list[str]:
    held, wrong = _held(surveys), []
    for name, survey in zip(rig.names, surveys, strict=True):
        for chain, tiers in survey.items():
            found = {at for at, tier in enumerate(tiers) if tier}
            if found != held[chain]:
                lacks, more = sorted(held[chain] - found), sorted(found - held[chain])
                wrong.append(f"{name} of {chain}: does not find blocks {lacks}, finds {more} which nobody holds")
    return wrong


def _gets(rig: Rig, chains: list[Chain]) -> list[str]:
    """Every beginning of a chain that is found comes to every node (and right, which Engine.ask sees to). One node
    after the other; what is found is asked anew, since what gets bring up pushes out other blocks.
    """
    blocks = 0
    for name, engine in zip(rig.names, rig.engines, strict=True):
        for model, seed in chains:
            until = time.monotonic() + GET_S
            while True:
                told = engine.ask("get", model, seed, BLOCKS_MAX)
                found = engine.ask("lookup", model, seed, BLOCKS_MAX)
                if "blocks" in told and "blocks" in found and told["blocks"] >= found["blocks"]:
                    blocks += told["blocks"]
                    break
                if time.monotonic() > until:
                    return [f"{name} finds of {model} {seed}: {found}, but gets {told}"]
                time.sleep(0.1)
    print(f"== {blocks} blocks came to every node, as they were put", flush=True)
    return []
