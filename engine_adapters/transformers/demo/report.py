"""The demo's table, and its verdict."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

LOGITS_AGREE = 1e-4


@dataclass(frozen=True, slots=True)
class Row:
    user: int
    turn: int
    prompt: int
    prefilled: int
    held: int
    prefill_tiers: list[int]  # blocks that the prefill process got from memory, file, object
    tiers: list[int]  # and the decode process
    fetch_s: float
    with_s: float
    without_s: float
    same_tokens: bool
    logits_apart: float


def show(rows: list[Row], console: Console) -> None:
    table = Table(title="time to first token at the decode process (lookup, transfer and verification counted)")
    heads = [
        "user",
        "turn",
        "prompt",
        "computed\nby prefill",
        "prefill got\nmem/file/obj",
        "held for\ndecode",
        "decode got\nmem/file/obj",
    ]
    heads += ["fetch", "with store", "without", "speed-up", "same\ntokens", "logits\napart"]
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        counts = [row.user, row.turn, row.prompt, row.prefilled]
        got = ["/".join(map(str, row.prefill_tiers)), str(row.held), "/".join(map(str, row.tiers))]
        times = [f"{row.fetch_s * 1e3:.0f} ms", f"{row.with_s:.2f} s", f"{row.without_s:.2f} s"]
        agree = [f"{row.without_s / row.with_s:.1f} x", "yes" if row.same_tokens else "NO", f"{row.logits_apart:.1e}"]
        table.add_row(*map(str, counts), *got, *times, *agree)
    console.print(table)
    blocks = [sum(row.tiers[tier] + row.prefill_tiers[tier] for row in rows) for tier in range(3)]
    total = sum(blocks)
    if total:
        names = ("memory", "file", "object")
        shares = ", ".join(f"{name} {count / total:.0%}" for name, count in zip(names, blocks, strict=True))
        rate = sum(row.held for row in rows) / sum(row.prompt for row in rows)
        console.print(f"{total} blocks were fetched: {shares}; hit rate at decode {rate:.1%} of tokens")


def verdict(rows: list[Row]) -> list[str]:
    """What went wrong, in words; empty when nothing did."""
    wrong = [
        f"user {row.user} turn {row.turn}: tokens differ from the reference" for row in rows if not row.same_tokens
    ]
    wrong += [
        f"user {row.user} turn {row.turn}: logits {row.logits_apart:.2e} from a full prefill's, limit {LOGITS_AGREE}"
        for row in rows
        if row.logits_apart > LOGITS_AGREE
    ]
    wrong += [f"user {row.user} turn {row.turn}: nothing came from the store" for row in rows if row.held == 0]
    return wrong
