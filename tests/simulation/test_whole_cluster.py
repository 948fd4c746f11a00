"""Does a whole cluster, nodes and clients as they are, stay honest under faults? `--seeds 10000`: 100 of them.

And would the simulation notice? With each of these wrong, and only that, it must.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from kvstore.client import moving
from kvstore.client.ways import Ways
from kvstore.node.clearing import Clearing
from kvstore.node.far import Lender
from kvstore.node.leases import Leases
from kvstore.node.locator import Locator
from tests.simulation.whole.run import run_seed
from tests.simulation.whole.world import Broken

BATCHES = 4
SHARE = 100  # of the seeds of one node's simulation: one here takes a second or two
SEEDS = range(20, 60)

Patch = pytest.MonkeyPatch


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_seeds_hold(batch: int, request: pytest.FixtureRequest) -> None:
    seeds = max(BATCHES, request.config.getoption("--seeds") // SHARE)
    results = [run_seed(seed) for seed in range(batch, seeds, BATCHES)]
    for what in ("calls",) if len(results) < 8 else ("blocks_put", "blocks_got", "far", "missed", "faults", "found"):
        assert sum(getattr(result, what) for result in results) > len(results), f"{what}: hardly ever happens"


def _holds_nothing(patch: Patch) -> None:
    leased = Leases._leased

    async def wrong(self: Leases, *asked: Any) -> Any:
        told = await leased(self, *asked)
        for lease in self._leases.values():
            self._release(lease.hold)
        return told

    patch.setattr(Leases, "_leased", wrong)


def _compares_nothing(patch: Patch) -> None:
    real = Ways.read

    async def wrong(self: Ways, *asked: Any, **named: Any) -> Any:
        return await real(self, *asked, **(named | {"verify": False}))

    patch.setattr(Ways, "read", wrong)


def _waits_for_ever(patch: Patch) -> None:
    real = Lender._ask

    async def wrong(self: Lender, piece: Any, request: Any, left_s: float) -> Any:
        try:
            return await real(self, piece, request, left_s)
        finally:
            await asyncio.sleep(60.0)

    patch.setattr(Lender, "_ask", wrong)
    patch.setattr("kvstore.node.far.DEADLINE_S_MAX", 600.0)


def _tells_nobody(patch: Patch) -> None:
    async def wrong(self: Locator, to: bytes, message: Any, deadline_s: float) -> None:
        return None

    patch.setattr(Locator, "_ask", wrong)


def _never_releases(patch: Patch) -> None:
    patch.setattr(Leases, "_end", lambda self, number: None)


def _clears_alone(patch: Patch) -> None:
    async def wrong(self: Clearing, origin: bytes, addresses: Any) -> set[str]:
        return set(addresses)

    async def agreed(self: Clearing, address: str, deadline_s: float) -> None:
        return None

    patch.setattr(Clearing, "tell", wrong)
    patch.setattr(Clearing, "agree", agreed)


def _asks_no_other(patch: Patch) -> None:
    def wrong(*asked: Any) -> Any:
        return moving.Told()
        yield

    patch.setattr(moving, "fetching_far", wrong)


CAUGHT: dict[str, tuple[Callable[[Patch], None], tuple[str, ...]]] = {
    "a lease holds nothing": (_holds_nothing, ("not verify",)),
    "what landed is not compared": (_compares_nothing, ("wrong bytes",)),
    "a holder is waited for": (_waits_for_ever, ("after quiet", "gets", "a hang")),
    "homes are not told": (_tells_nobody, ("finds",)),
    "leases do not end": (_never_releases, ("still holds",)),
    "a clear is told nobody": (_clears_alone, ("what was cleared", "does not see all")),
    "nobody else is asked": (_asks_no_other, ("gets",)),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(CAUGHT))
def test_what_is_wrong_is_caught(name: str, monkeypatch: Patch) -> None:
    wrong, how = CAUGHT[name]
    wrong(monkeypatch)
    for seed in SEEDS:
        try:
            run_seed(seed)
        except Broken as broken:
            what = str(broken).splitlines()[0]
            assert any(one in what for one in how), f"seed {seed}: {what}"
            return
    pytest.fail(f"not caught in {len(SEEDS)} seeds")


def test_a_seed_is_one_run_in_every_process() -> None:
    """Else a failing seed is worth nothing."""
    told = {
        subprocess.run(
            [sys.executable, "-m", "tests.simulation.whole", "3", "4"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "77")
    }
    assert len(told) == 1, told
