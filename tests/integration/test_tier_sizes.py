"""What an operator asked a tier to have is what it has, nearly; and where it has less, that is told."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

from kvstore import Client
from tests.integration.nodes import START_MAX_S, NodeProcess, eventually, layout, put, right

MIB = 1 << 20
ASKED = 12 * MIB
FILES = ("file.enabled=true", f"file.bytes={ASKED}", "file.admission=always")


def shown(node: NodeProcess, *flags: str) -> str:
    command = [sys.executable, "-m", "kvstore.admin", "--address", f"unix:{node.socket}.grpc", *flags, "tiers"]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_MAX_S, check=True).stdout


def test_a_small_file_tier_is_filled_with_what_was_asked_for(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, *FILES, memory="8MiB") as node, Client(node.address, deadline_s=20) as client:
        told = {tier["tier"]: tier for tier in node.facts["tiers"]}
        assert told["memory"]["bytes"] == told["memory"]["asked_bytes"] == 8 * MIB
        assert told["file"]["asked_bytes"] == ASKED
        assert 0.9 * ASKED < told["file"]["bytes"] < ASKED
        assert "threads, 12 MiB asked for): " in shown(node) or "io_uring, 12 MiB asked for): " in shown(node)
        assert f'"asked_bytes": {ASKED}' in shown(node, "--json")
        ns = client.namespace(layout())
        for seed in range(60):  # 2 MiB each of blocks of 64 KiB with a header: ten times what fits
            put(ns, seed, 32)
        # Of each 68 KiB of files 64 are payload. A disk that was slow has had little of that: then it is given more.
        more = itertools.count(60)

        def is_full() -> bool:
            put(ns, next(more), 32)
            return node.counters(2)["used"] > 0.8 * ASKED

        eventually(is_full, within_s=30)
    with NodeProcess(tmp_path, *FILES, memory="8MiB") as node, Client(node.address, deadline_s=20) as client:
        assert node.facts["tiers"][1]["bytes"] == told["file"]["bytes"]
        assert node.counters(2)["used"] > 0.8 * ASKED, "what lies there is found again"
        right(client.namespace(layout()), next(more) - 1, 32)


def test_a_memory_tier_tells_it_too_and_people_can_read_it(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, memory="9500KiB")
    node._flags.remove("--json")
    process = node.spawn()
    try:
        assert process.stdout is not None
        process.stdout.readline()
        line = process.stdout.readline()
        assert line.startswith("  memory   9 MiB of 9.3 MiB asked for in /"), line
    finally:
        process.terminate()
        process.communicate(timeout=START_MAX_S)
        for suffix in ("payload", "meta"):
            Path(line.split(" in ")[1].split(",")[0]).with_suffix("." + suffix).unlink(missing_ok=True)
