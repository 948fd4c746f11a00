"""Starts a node, a writer and a reader, lets them talk through three users' turns, and tells what came of it."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from kvstore.demo.child import Child
from kvstore.demo.synthetic import TURNS, USERS


@dataclass(frozen=True, slots=True)
class Row:
    """One turn of one user. Blocks `held` were there before the writer came; `fetched` is what the reader got."""

    user: int
    turn: int
    blocks: int
    held: int
    stored: int
    fetched: int
    equal: bool
    put_gib_s: float
    lookup_ms: float
    get_ms: float
    get_gib_s: float


def run(memory: str, as_json: bool) -> int:
    """0: every fetched byte was right, and every turn after a user's first found what the one before had left."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kvstore-demo-") as scratch, ExitStack() as stack:
        node = _start_node(Path(scratch), memory, stack)
        facts = node.answer()
        if not as_json:
            click.echo(f"node (pid {facts['pid']}): {facts['memory_bytes'] >> 20} MiB of memory, {facts['socket']}")
        address = f"unix:{facts['socket']}"
        writer, reader = (
            Child(name, ["-m", "kvstore.demo.worker", address], Path(scratch) / f"{name}.log", stack)
            for name in ("writer", "reader")
        )
        writer.answer(), reader.answer()
        rows = [_turn(writer, reader, user, turn) for turn in range(TURNS) for user in range(USERS)]
    good = all(row.equal and row.fetched == row.blocks for row in rows) and all(row.held for row in rows[1:])
    asked, held = sum(row.blocks for row in rows), sum(row.held for row in rows)
    total_s = time.perf_counter() - began
    if as_json:
        document = {"good": good, "hit_rate": held / asked, "seconds": total_s, "turns": [asdict(row) for row in rows]}
        click.echo(json.dumps(document, indent=1))
    else:
        _show(rows, held / asked, total_s)
        if not good:
            click.echo("NOT AS IT SHOULD BE: bytes differ or blocks are missing", err=True)
    return 0 if good else 1


def _start_node(scratch: Path, memory: str, stack: ExitStack) -> Child:
    flags = ["--data-dir", str(scratch / "data"), "--socket", str(scratch / "kv.sock"), "--memory", memory]
    flags += ["--address", "none", "--grpc", "none", "--metrics", "none", "--json"]
    for one in ("memory.keep=false", "file.enabled=false", "object.url=none"):  # nothing is left behind
        flags += ["--set", one]
    return Child("node", ["-m", "kvstore", "node", *flags], scratch / "node.log", stack)


def _turn(writer: Child, reader: Child, user: int, turn: int) -> Row:
    put = writer.ask(user=user, turn=turn, publish=True)
    got = reader.ask(user=user, turn=turn, publish=False)
    gib = 1 << 30
    return Row(
        user=user,
        turn=turn,
        blocks=put["asked"],
        held=put["held"],
        stored=put["stored"],
        fetched=got["blocks"],
        equal=got["equal"],
        put_gib_s=round(put["bytes"] / gib / put["put_s"], 2),
        lookup_ms=round(got["lookup_s"] * 1e3, 3),
        get_ms=round(got["get_s"] * 1e3, 2),
        get_gib_s=round(got["bytes"] / gib / got["get_s"], 2),
    )


def _show(rows: list[Row], hit_rate: float, total_s: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="A writer publishes each prompt's KV, a reader in another process fetches it")
    for name in ("user", "turn", "blocks", "held", "put", "put\nGiB/s", "lookup\nms", "get\nms", "get\nGiB/s", "same"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = (row.user, row.turn, row.blocks, row.held, row.stored, row.put_gib_s)
        told = (row.lookup_ms, row.get_ms, row.get_gib_s, "yes" if row.equal else "NO")
        table.add_row(*(str(value) for value in (*numbers, *told)))
    Console().print(table)
    click.echo(f"hit rate of the prompts {hit_rate:.0%} of blocks: what was held need not be computed again")
    click.echo(f"{total_s:.1f} s with starting and stopping three processes; shared memory and files are gone again")
