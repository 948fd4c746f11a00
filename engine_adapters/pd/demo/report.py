"""The demo's table, and its verdict. Everything fits 80 columns."""

from __future__ import annotations

from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .talk import Heard


@dataclass(frozen=True, slots=True)
class Row:
    """One question, with the store through the proxy and without it at the decode server alone. `full`: decode has
    nothing of its own cache, so that every whole block must have come from the store."""

    what: str
    given: Heard
    alone: Heard
    full: bool

    @property
    def same(self) -> bool:
        return bool(self.given.text) and self.given.text == self.alone.text


def show(rows: list[Row], console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    heads = ("prompt\ntokens", "cached\nat decode", "with", "of it in\nprefill", "without", "sooner", "same\ntokens")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        given, alone = row.given, row.alone
        table.add_row(
            row.what,
            *map(str, (given.prompt, given.cached)),
            *(f"{seconds:.2f} s" for seconds in (given.first_s, given.prefill_s, alone.first_s)),
            *(f"{alone.first_s / given.first_s:.1f} x", "yes" if row.same else "NO"),
        )
    console.print("Time to first token, seen by the client", style="bold")
    console.print(table)


def verdict(rows: list[Row], block_tokens: int) -> list[str]:
    """What went wrong, in words; empty when nothing did. Speed is no part of it."""
    wrong = [
        f"{row.what}, {row.given.prompt} tokens: the answer differs from the one without the store"
        for row in rows
        if not row.same
    ]
    for row in rows:
        whole = (row.given.prompt - 1) // block_tokens * block_tokens
        if row.full and row.given.cached != whole:
            wrong.append(f"{row.what}, {row.given.prompt} tokens: {row.given.cached} came from the store, not {whole}")
    return wrong
