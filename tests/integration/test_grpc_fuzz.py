"""Any bytes in any method: an answer, never a dead or stuck node. Seeded; `make fuzz` goes on for longer."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from tests.integration.grpc_fuzz import CORPUS, Case, Target, cases
from tests.integration.grpc_node import config_for, running

ROUNDS = 20


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Target]:
    async with (
        running(config_for(tmp_path)) as node,
        grpc.aio.insecure_channel(f"unix:{node.admin_socket}") as channel,
    ):
        yield Target(node, channel)


async def test_any_bytes_in_any_method(target: Target) -> None:
    rng = random.Random(20_260_101)
    for _ in range(ROUNDS):
        for case in cases(rng):
            assert await target.refuses(case) is None, case.kept()
        await target.lives()
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT} <= target.codes


async def test_what_was_kept(target: Target) -> None:
    """The corpus: what once went wrong, and one call of every method that goes well."""
    kept = sorted(CORPUS.glob("*.json"))
    assert kept
    for path in kept:
        assert await target.refuses(Case.load(path)) is None, path.name
    await target.lives()
