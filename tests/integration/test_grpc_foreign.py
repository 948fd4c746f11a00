"""docs/foreign_client.py: none of our code, the same keys, a real node."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.golden.keys_witness import extras_of
from tests.integration.grpc_node import TIMEOUT_S, config_for, running, tcp_address

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "docs" / "foreign_client.py"


def foreign() -> ModuleType:
    spec = importlib.util.spec_from_file_location("foreign_client", CLIENT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_has_none_of_our_code_and_is_short() -> None:
    lines = [line for line in CLIENT.read_text().splitlines() if line.strip()]
    assert len(lines) <= 32 and not any("kvstore" in line and "import" in line for line in lines)


def test_it_passes_the_golden_vectors() -> None:
    chain = foreign().chain
    vectors = json.loads((ROOT / "tests" / "golden" / "keys.json").read_text())["chains"]
    assert vectors
    for case in vectors:
        if "tokens" in case:
            tokens = case["tokens"]
        else:
            tokens = [(case["first"] + case["step"] * i) % 2**32 for i in range(case["count"])]
        n = case["block_tokens"]
        extras = [extras_of(case["extras"], start, n) for start in range(0, len(tokens) // n * n, n)]
        made = [key.hex() for key in chain(bytes.fromhex(case["seed"]), tokens, n, extras)]
        assert made == case["keys"], case


async def test_it_puts_and_gets_at_a_real_node(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    async with running(config_for(tmp_path)) as node:
        for _ in range(2):  # the second time everything is held
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                str(CLIENT),
                tcp_address(node),
                env={**os.environ, "PYTHONPATH": str(ROOT / "proto/kvstore/v1")},
                stdout=asyncio.subprocess.PIPE,
            )
            async with asyncio.timeout(3 * TIMEOUT_S):
                out, _ = await child.communicate()
            assert out.decode().split() == ["2", "2", "True", "True"]
