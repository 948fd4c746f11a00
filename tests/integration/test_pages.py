"""The pages that a newcomer follows: what they print runs, and what they point at is there."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import cli, config
from kvstore.admin import cli as admin_cli
from kvstore.allowed import human
from kvstore.node import handlers, shares
from tests.integration.nodes import NodeProcess

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "STYLE.md", "CHANGELOG.md", "bench/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
TOKENS = 1000  # of README's prompt
LAYERS = 32
# That of docs/python.md.
LAYOUT = kvstore.KVLayout.uniform(
    engine="transformers",
    model="llama-3-8b",
    revision="…",
    dtype="bfloat16",
    block_tokens=16,
    layers=LAYERS,
    kv_heads=8,
    head_dim=128,
)


def snippets(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node"), memory="256MiB") as started:
        yield started


@pytest.mark.parametrize("again", [False, True])
def test_the_program_of_the_readme_runs(node: NodeProcess, again: bool, tmp_path: Path) -> None:
    (program,) = snippets(ROOT / "README.md")
    path = tmp_path / "program.py"
    path.write_text(program)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, path, node.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    blocks = TOKENS // 16
    stored, held = (0, blocks) if again else (blocks, 0)
    assert done.stdout.splitlines() == [
        f"{stored} blocks stored, {held} were there already",
        f"{blocks * 16} of {TOKENS} tokens need no prefill",
    ]


def test_the_tour_of_the_python_page_runs(node: NodeProcess) -> None:
    tour = snippets(ROOT / "docs/python.md")[0]
    assert "unix:/run/kvstore.sock" in tour
    with kvstore.Client(node.address) as client:
        size = client.namespace(LAYOUT).shard_bytes[0]
        source = np.random.default_rng(1).integers(256, size=(2, size), dtype=np.uint8)
        into = np.zeros_like(source)
        layers = source.reshape(2, LAYERS, -1).swapaxes(0, 1)
        other = client.namespace(LAYOUT).chain(range(100, 132))
        names = {"token_ids": range(40), "source": source, "into": into, "layers": layers, "other_chain": other}
        exec(tour.replace("unix:/run/kvstore.sock", node.address), names)
        assert names["found"].blocks == 0  # looked up before anything was put
        assert (names["done"].stored, names["got"].blocks) == (2, 2)
        assert np.array_equal(into, source)
        assert names["view"].closed
        assert client.namespace(LAYOUT).generation == 1  # the tour ends with clear()
        names["client"].close()


async def test_the_program_of_the_python_page_runs_on_a_loop(node: NodeProcess) -> None:
    names: dict[str, Any] = {"kvstore": kvstore}
    exec(snippets(ROOT / "docs/python.md")[1], names)
    with kvstore.Client(node.address) as client:
        size = client.namespace(LAYOUT).shard_bytes[0]
    source = np.random.default_rng(2).integers(256, size=(2, size), dtype=np.uint8)
    into = np.zeros_like(source)
    got, first = await names["publish_and_fetch"](node.address, LAYOUT, range(1000, 1032), source, into)
    assert got.blocks == 2 and np.array_equal(into, source) and np.array_equal(first, source[0])


def test_the_promise_and_the_layers_of_the_python_page_run(node: NodeProcess) -> None:
    names: dict[str, Any] = {}
    for snippet in snippets(ROOT / "docs/python.md")[2:]:
        exec(snippet, names)
    with kvstore.Client(node.address) as client:
        ns = client.namespace(LAYOUT)
        chain = ns.chain(range(2000, 2048))
        source = np.random.default_rng(3).integers(256, size=(2, ns.shard_bytes[0]), dtype=np.uint8)
        assert ns.put(chain[:2], source).stored == 2
        layers = np.zeros((LAYERS, 2, ns.shard_bytes[0] // LAYERS), np.uint8)
        assert names["load_by_layers"](ns, chain[:2], layers) == 2
        assert np.array_equal(layers.swapaxes(0, 1).reshape(2, -1), source)
        tokens, held = names["promise"](ns, chain)
        assert (tokens, held.blocks) == (32, 2)
        held.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_snippet_of_a_page_is_python(page: Path) -> None:
    for snippet in snippets(page):
        compile(snippet, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_of_a_page_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    missing = {link for link in links if link and not (page.parent / link).exists()}
    # Paths in code spans, from the root or from the page: with a slash, and beginning with a folder of ours.
    ours = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    for span in re.findall(r"`([\w./-]+/[\w./-]*)`", text):
        if span.startswith(ours) and not span.startswith(("build/", "dist/", "bench/results")):
            missing |= {span} if not (ROOT / span).exists() else set()
    assert not missing


def commands_said(text: str) -> set[tuple[str, str]]:
    return set(re.findall(r"`(?:\.venv/bin/)?(kvstore|store-admin) ([a-z]+)", text))


def test_every_command_that_a_page_names_exists() -> None:
    have = {"kvstore": set(cli.main.commands), "store-admin": set(admin_cli.main.commands)}
    for page in PAGES:
        for program, command in commands_said(page.read_text()):
            assert command in have[program], f"{page.relative_to(ROOT)}: {program} {command}"


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z0-9-]+)", page.read_text())) <= targets, page.name


def shown_defaults(default: object) -> set[str]:
    """How the page may write it."""
    if isinstance(default, bool):
        return {str(default).lower()}
    if isinstance(default, int):
        return {f"{default:,}", *(human(default),) * (default >= 1 << 20)}
    if isinstance(default, tuple):
        return {", ".join(map(str, default)) or "none"}
    return {"decided", "none"} if default is None else {str(default)}


def test_the_page_of_settings_has_them_all_with_their_defaults() -> None:
    told: dict[str, str] = {}
    for part in (ROOT / "docs/settings.md").read_text().split("\n## ")[1:]:
        (section,) = re.findall(r"^`\[(\w+)\]`", part)
        rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", part, re.MULTILINE)
        told |= {f"{section}.{name}": default for name, default in rows}
    have = {
        f"{section.name}.{setting.name}": setting.default
        for section in dataclasses.fields(config.Config)
        for setting in dataclasses.fields(getattr(config.Config(), section.name))
    }
    assert told.keys() == have.keys()
    for name, default in have.items():
        assert told[name] in shown_defaults(default), name


def test_the_table_of_limits_has_them_all_with_their_defaults() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)`[^|]*\| ([^|]+) \|", page, re.MULTILINE)
    told = {name: default.strip() for name, default in rows}
    for limit in dataclasses.fields(config.LimitsConfig):
        default = limit.default
        if isinstance(default, int):
            shown = told[limit.name].partition(" (")[0].partition(", ")[0]
            units = {f"{default:,}", f"{default:,} us", f"{default >> 20} MiB", f"{default >> 30} GiB"}
            assert shown in units, limit.name
        else:
            assert limit.name in told
    door = config.GrpcConfig()
    counts = {
        "grpc.calls_max": door.calls_max,
        "grpc.streams_max": door.streams_max,
        "prefetches_max": handlers.PREFETCHES_MAX,
    }
    assert {name: told[name] for name in counts} == {name: str(count) for name, count in counts.items()}
    (kept,) = re.findall(
        r"^\| a tenant's share [^|]*\| three quarters of what the others have left \|", page, re.MULTILINE
    )
    assert kept and shares.share(64, 0) == 48
