"""What the second part of the demo says and decides: tables fit, nothing wrong passes, what dies is gone."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed (make test installs it)")

from rich.console import Console

from engine_adapters.transformers.demo.report import Row, show
from engine_adapters.transformers.demo.report_cluster import (
    FAR,
    OBJECTS,
    OWN,
    Act,
    Death,
    Lay,
    cluster_verdict,
    moved_told,
    show_lay,
)
from engine_adapters.transformers.demo.stage import StagedNode, free_addresses
from kvstore.demo.child import Child


def places(own: int, far: int, objects: int) -> dict[str, int]:
    return {OWN: own, FAR: far, OBJECTS: objects}


BEFORE = Row(0, 1, 2176, 33, 2112, places(24, 0, 0), places(0, 33, 0), 1.36, 0.68, 15.72, True, 0.0)
AFTER = Row(0, 2, 2840, 44, 2816, places(0, 34, 0), places(34, 10, 0), 0.077, 0.28, 14.23, True, 0.0)
LATE = Row(2, 1, 2176, 33, 2112, places(24, 0, 8), places(24, 1, 8), 0.047, 0.46, 10.19, True, 0.0)
LAID = [Lay(0, 34, {"node-2": 34}), Lay(2, 34, {"node-2": 24, "node-1": 10})]
LEFT = [Lay(0, 34, {"node-2": 34}), Lay(2, 34, {"node-2": 24, "objects": 8})]
DEATH = Death(pid=5083, bytes_deleted=82 << 20, noticed_s=0.677, packed=28, tcp=63 << 20, other=0)
GOOD = Act([BEFORE], [AFTER, LATE], LAID, LEFT, DEATH)


def test_the_tables_fit_eighty_columns() -> None:
    told = io.StringIO()
    console = Console(file=told, width=80)
    show(GOOD.before, console)
    show_lay(DEATH, LAID, LEFT, console)
    show(GOOD.after, console)
    text = told.getvalue()
    assert "\u2026" not in text
    assert max(map(len, text.splitlines())) <= 110
    rows = [line.split() for line in text.splitlines() if "before" in line or "after" in line]
    assert rows[:4] == [
        ["0", "before", "0", "34", "0", "0"],
        ["0", "after", "0", "34", "0", "0"],
        ["2", "before", "10", "24", "0", "0"],
        ["2", "after", "0", "24", "8", "2"],
    ]
    assert "pid 5083" in text and "82 MiB" in text and "677 ms" in text
    assert "33 blocks went" in moved_told(GOOD) and "63 MiB by TCP" in moved_told(GOOD)
    assert "42 blocks came" in moved_told(GOOD)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"before": [dataclasses.replace(BEFORE, same_tokens=False)]}, "tokens differ"),
        ({"after": [dataclasses.replace(AFTER, same_tokens=False), LATE]}, "tokens differ"),
        ({"before": [dataclasses.replace(BEFORE, tiers=places(33, 0, 0))]}, "from another node"),
        ({"after": [dataclasses.replace(AFTER, prefill_tiers=places(0, 0, 0)), LATE]}, "cost all"),
        ({"after": [dataclasses.replace(AFTER, prefill_tiers=places(34, 0, 0)), LATE]}, "from replicas"),
        ({"after": [AFTER, dataclasses.replace(LATE, prefill_tiers=places(24, 8, 0))]}, "from objects"),
        ({"left": LAID}, "node-1 is dead"),
        ({"death": dataclasses.replace(DEATH, tcp=0)}, "by TCP"),
        ({"death": dataclasses.replace(DEATH, other=1)}, "otherwise"),
    ],
)
def test_what_is_wrong_is_said(wrong: dict[str, object], says: str) -> None:
    assert cluster_verdict(GOOD) == []
    told = cluster_verdict(dataclasses.replace(GOOD, **wrong))
    assert any(says in line for line in told), told


def test_what_is_destroyed_is_dead_and_gone(tmp_path: Path) -> None:
    home = tmp_path / "node-1"
    (home / "data/objects").mkdir(parents=True)
    (home / "data/secret").write_bytes(bytes(32))
    payload = tmp_path / "kvstore-x.payload"
    for path in (payload, payload.with_suffix(".meta")):
        path.write_bytes(bytes(1000))
    with ExitStack() as stack:
        child = Child("node-1", ["-c", "import time; print('{}', flush=True); time.sleep(60)"], tmp_path / "log", stack)
        child.answer()
        node = StagedNode("node-1", child, home, {"memory_at": str(payload)})
        assert node.destroy() == 2032
        assert child.process.returncode == -9
        assert list(tmp_path.rglob("*.payload")) + list(tmp_path.rglob("*.meta")) == []
        assert not (home / "data").exists()
        assert node.delete() == 0  # of one that is gone already: at the end of the stage


def test_addresses_of_a_cluster_differ() -> None:
    assert len(set(free_addresses(8))) == 8


def test_a_part_that_does_not_exist_is_refused() -> None:
    command = [sys.executable, "-m", "engine_adapters.transformers.demo", "--part", "three"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "one, cluster, all" in done.stderr.replace("'", "")
