"""What `make demo-vllm` says and decides: the table fits a terminal, and nothing that is wrong passes."""

from __future__ import annotations

import dataclasses
import io

from rich.console import Console

from engine_adapters.pd.demo.report import Row, show, verdict
from engine_adapters.pd.demo.talk import Heard, Talk, _event

ALONE = Heard("w1 w2", prompt=4002, cached=0, first_s=12.34, prefill_s=0.0)
GIVEN = Heard("w1 w2", prompt=4002, cached=3968, first_s=10.5, prefill_s=10.12)
GOOD = Row("next turn", GIVEN, ALONE, full=True)


def other(row: Row = GOOD, full: bool = True, **given: object) -> Row:
    return dataclasses.replace(row, given=dataclasses.replace(row.given, **given), full=full)  # type: ignore[arg-type]


def test_the_table_fits_a_terminal() -> None:
    out = io.StringIO()
    show([GOOD, other(text="w3")], Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in out.getvalue()
    assert [line.split()[-1] for line in lines[-2:]] == ["yes", "NO"]
    assert "1.2 x" in lines[-2]


def test_what_is_wrong_is_said() -> None:
    assert verdict([GOOD, other(cached=0, full=False)], 128) == []
    (differs,) = verdict([GOOD, other(text="w1 w3")], 128)
    assert "differs" in differs
    (short,) = verdict([other(cached=3840)], 128)
    assert "3840 came from the store, not 3968" in short
    assert verdict([other(text="")], 128), "an empty answer is no answer"
    empty = dataclasses.replace(other(text=""), alone=dataclasses.replace(ALONE, text=""))
    assert verdict([empty], 128), "not even if both are"


def test_a_talk_goes_on() -> None:
    talk = Talk().user(3, "a").assistant(" w1 w2 ").user(2, "b")
    assert [message["role"] for message in talk.messages] == ["user", "assistant", "user"]
    assert [len(message["content"].split()) for message in talk.messages] == [3, 2, 2]
    assert talk.messages == Talk().user(3, "a").assistant("w1 w2").user(2, "b").messages


def test_events_are_told_from_what_lies_between() -> None:
    assert _event(b'data: {"choices": []}\n') == {"choices": []}
    for line in (b"\n", b": ping\n", b"data: [DONE]\n", b"event: x\n"):
        assert _event(line) is None
