"""What `make demo` says and decides: the tables fit a terminal, and nothing that is wrong passes."""

from __future__ import annotations

import dataclasses
import io

import pytest

pytest.importorskip("torch", reason="torch is not installed (make test installs it)")

from rich.console import Console

from engine_adapters.transformers.demo.report import Row, hit_rates, show, verdict

GOOD = Row(
    user=1,
    turn=2,
    prompt=2840,
    blocks=44,
    held=2816,
    prefill_tiers={"memory": 20, "file": 4, "object": 2},
    tiers={"memory": 40, "file": 0, "object": 4},
    fetch_s=1.0123,
    with_s=0.13,
    without_s=3.9,
    same_tokens=True,
    logits_apart=3e-6,
)


def test_the_tables_fit_eighty_columns() -> None:
    told = io.StringIO()
    show([GOOD, GOOD], Console(file=told, width=80))
    text = told.getvalue()
    assert "30.0 x" in text
    assert "\u2026" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_hit_rates_are_of_what_both_processes_asked_for() -> None:
    assert hit_rates([GOOD]) == (
        "hit rate 79.5% of the 88 blocks that both asked for: memory 68.2%, file 4.5%, object 6.8%"
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"same_tokens": False}, "tokens differ"),
        ({"logits_apart": 2e-4}, "logits"),
        ({"logits_apart": float("nan")}, "logits"),
        ({"held": 0}, "nothing came"),
    ],
)
def test_what_is_wrong_is_said(wrong: dict[str, float | bool], says: str) -> None:
    assert verdict([GOOD]) == []
    (line,) = verdict([GOOD, dataclasses.replace(GOOD, **wrong)])
    assert says in line
