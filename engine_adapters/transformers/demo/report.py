"""The demo's tables, and its verdict. Everything fits 80 columns."""

from __future__ import annotations

from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

LOGITS_AGREE = 1e-4


@dataclass(frozen=True, slots=True)
class Row:
    """One turn of one user. `blocks`: the prompt's whole ones without its last token, which is always computed. Tiers
    are by name, the same in every row.
    """

    user: int
    turn: int
    prompt: int
    blocks: int
    held: int
    prefill_tiers: dict[str, int]  # blocks that the prefill process got from each
    tiers: dict[str, int]  # and the decode process
    fetch_s: float
    with_s: float
    without_s: float
    same_tokens: bool
    logits_apart: float


def show(rows: list[Row], console: Console) -> None:
    console.print("Time to first token at the decode process", style="bold")
    console.print(_times(rows))
    console.print(
        "\nwith: looking up, fetching, verifying, computing the rest. without: the same prompt in the same\n"
        "process, no store. logits apart: from those of the full prefill, at the first new token.\n",
        highlight=False,
        soft_wrap=True,
    )
    console.print("Blocks of each prompt, by where each process got them", style="bold")
    console.print(_places(rows))
    console.print(f"\n{hit_rates(rows)}\n", highlight=False, soft_wrap=True)


def table(heads: list[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _times(rows: list[Row]) -> Table:
    heads = ["user", "turn", "prompt\ntokens", "from the\nstore", "fetch", "with", "without", "sooner"]
    shown = table([*heads, "same\ntokens", "logits\napart"])
    for row in rows:
        shown.add_row(
            *map(str, (row.user, row.turn, row.prompt, row.held)),
            *(f"{row.fetch_s * 1e3:.0f} ms", f"{row.with_s:.2f} s", f"{row.without_s:.2f} s"),
            *(f"{row.without_s / row.with_s:.1f} x", "yes" if row.same_tokens else "NO", f"{row.logits_apart:.0e}"),
        )
    return shown


def _places(rows: list[Row]) -> Table:
    shown = table(["user", "turn", "process", *rows[0].tiers, "computed"])
    for row in rows:
        for process, tiers in (("prefill", row.prefill_tiers), ("decode", row.tiers)):
            counts = (*tiers.values(), row.blocks - sum(tiers.values()))
            shown.add_row(*map(str, (row.user, row.turn)), process, *map(str, counts))
    return shown


def hit_rates(rows: list[Row]) -> str:
    """Of the blocks that both processes asked for, in words."""
    asked = 2 * sum(row.blocks for row in rows)
    found = {name: sum(row.tiers[name] + row.prefill_tiers[name] for row in rows) for name in rows[0].tiers}
    shares = ", ".join(f"{name} {count / asked:.1%}" for name, count in found.items())
    return f"hit rate {sum(found.values()) / asked:.1%} of the {asked} blocks that both asked for: {shares}"


def verdict(rows: list[Row]) -> list[str]:
    """What went wrong, in words; empty when nothing did."""
    wrong = [
        f"user {row.user} turn {row.turn}: tokens differ from the reference" for row in rows if not row.same_tokens
    ]
    wrong += [
        f"user {row.user} turn {row.turn}: logits {row.logits_apart:.2e} from a full prefill's, limit {LOGITS_AGREE}"
        for row in rows
        if not row.logits_apart <= LOGITS_AGREE
    ]
    wrong += [f"user {row.user} turn {row.turn}: nothing came from the store" for row in rows if row.held == 0]
    return wrong
