"""The table of other stores' scenarios (README.md) names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_what_the_table_names_exists() -> None:
    page = (TESTS / "cluster_rig" / "README.md").read_text()
    named = re.findall(r"`([\w/]+/\w+\.py)(?:::(\w+))?`", page)
    assert len(named) > 40
    for path, test in named:
        text = (TESTS / path).read_text()
        assert not test or f"def {test}(" in text, f"{path}::{test}"
    rows = [line for line in page.splitlines() if line.startswith("| `") and "::" in line]
    assert all(row.count("|") == 4 for row in rows)
