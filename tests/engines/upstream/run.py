"""One run of upstream's tests against our connector and a node of their own, and what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from tests.engines.run import environment
from tests.engines.upstream.plugin.store_cases import FILES
from tests.engines.upstream.source import SITE, TESTS, fetch
from tests.engines.venvs import RECIPES, ROOT
from tests.integration.nodes import NodeProcess

__all__ = ["Result", "failed", "run", "table"]

PLUGIN = Path(__file__).with_name("plugin")
RUN_MAX_S = 500
TEST_MAX_S = 120


@dataclass(frozen=True, slots=True)
class Result:
    """test: its name from tests/v1 on. ours: whether it was given our connector. said: why it failed or was skipped."""

    test: str
    outcome: str
    ours: bool
    said: str


def run(*more: str) -> list[Result]:
    """Every test that takes part. more: for pytest. What it prints is printed where something failed."""
    fetch()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        report = home / "report.json"
        node = NodeProcess(home, memory="64MiB").start()
        try:
            path = os.pathsep.join(map(str, (TESTS, PLUGIN, SITE, ROOT)))  # `tests` is upstream's
            env = environment("vllm", {
                "PYTHONPATH": path, "KVSTORE_UPSTREAM_ADDRESS": node.address, "KVSTORE_UPSTREAM_REPORT": str(report),
                "TMPDIR": folder,
            })  # fmt: skip
            command = [RECIPES["vllm"].python, "-m", "pytest", "-p", "store_plugin", "-p", "no:cacheprovider"]
            command += ["-q", "--tb=short", f"--timeout={TEST_MAX_S}", "--confcutdir=tests/v1"]
            files = more or [f"tests/v1/{name}" for name in FILES]
            ended = subprocess.run(
                [*command, *files], cwd=TESTS, env=env, capture_output=True, text=True, timeout=RUN_MAX_S, check=False
            )
        finally:
            node.stop()
        if ended.returncode not in {0, 1} or not report.exists():
            raise RuntimeError(f"upstream's pytest ended with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}")
        if ended.returncode:
            print(ended.stdout)
        said = json.loads(report.read_text())
    return [
        Result(name.removeprefix("tests/v1/"), each["outcome"], each["ours"], each["said"])
        for name, each in said.items()
    ]


def failed(results: list[Result]) -> list[Result]:
    return [result for result in results if result.outcome == "failed"]


def table(results: list[Result]) -> str:
    """As engine_adapters/README.md has it."""
    files: defaultdict[str, Counter[str]] = defaultdict(Counter)
    reasons: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for result in results:
        file, _, test = result.test.partition("::")
        passed = "passed with ours" if result.ours else "passed, none made"
        files[file][passed if result.outcome == "passed" else result.outcome] += 1
        if result.outcome != "passed":
            reasons[result.outcome, result.said].append(f"`{test}`")
    columns = ("passed with ours", "passed, none made", "skipped", "failed")
    lines = ["| file of tests/v1 | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for file in [*files, ""]:
        counts = files[file] if file else sum(files.values(), Counter())
        lines.append(f"| {file or 'in all'} | " + " | ".join(str(counts[column]) for column in columns) + " |")
    lines.append("")
    for (outcome, said), tests in reasons.items():
        names = sorted({test.partition("[")[0].rstrip("`") + "`" for test in tests})
        lines.append(f"- {outcome}, {len(tests)}: {', '.join(names)}: {said}")
    return "\n".join(lines)
