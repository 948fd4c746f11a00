"""`store-admin drain NODE`: a node hands on what only it holds, so that it can be stopped with nothing lost.

Exit codes: 0 all of it is elsewhere; 1 some blocks nobody took, or it was cancelled; else as kvstore/admin/cli.py.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from kvstore.admin import rows
from kvstore.allowed import human
from kvstore.errors import Unavailable
from kvstore.wire import admin

if TYPE_CHECKING:
    from kvstore.admin.face import Context

__all__ = ["drain"]

EXIT_LEFT: Final = 1
STATES: Final[dict[int, str]] = {number: text or "not draining" for number, text in rows.DRAIN_STATES.items()}


@click.command()
@click.argument("node", default="")
@click.option("--cancel", is_flag=True, help="It takes blocks again; what was handed on stays where it is.")
@click.option("--look", is_flag=True, help="Begin nothing: tell how far it is.")
@click.option("--json", "json_too", is_flag=True, help="Progress as JSON, one object a line.")
@click.pass_obj
def drain(context: Context, node: str, cancel: bool, look: bool, json_too: bool) -> None:
    """Have NODE (name, id or address; without one, the node that is asked) hand on what only it holds.

    It takes no new blocks from then on, and goes on where it was after a restart; interrupting this command ends
    nothing. Exit code 1 if some blocks nobody took: run it again when there is room.
    """
    if cancel and look:
        raise ValueError("--cancel, --look: one of them")
    as_json = context.as_json or json_too
    request = admin.DrainRequest(node=node, cancel=cancel, look=look)
    told: admin.DrainProgress | None = None
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    with (
        context.connection.translated(),
        Progress(*columns, console=Console(stderr=True), transient=True, disable=as_json) as progress,
    ):
        task = progress.add_task("draining", total=None, left="")
        for told in context.connection.admin().Drain(request, metadata=context.connection.metadata()):
            settled = told.handed_blocks + told.kept_blocks + told.failed_blocks
            progress.update(task, total=settled + told.left_blocks, completed=settled, left=_left(told))
            if as_json:
                click.echo(json.dumps(row(told)))
                sys.stdout.flush()
            if look:
                break
    if told is None:
        raise Unavailable("the node ended before it was drained; it goes on when it is started again")
    if not as_json:
        click.echo(said(told))
    if not told.done and not look:
        raise Unavailable("the node ended before it was drained; it goes on when it is started again")
    if told.state == admin.DRAIN_NONE and not (cancel or look):
        click.echo(f"store-admin: {told.node}: somebody cancelled the drain before it had ended", err=True)
        sys.exit(EXIT_LEFT)
    if told.failed_blocks:
        sys.exit(EXIT_LEFT)


def row(told: admin.DrainProgress) -> dict[str, str | int | float | bool | None]:
    return {
        "node": told.node,
        "state": STATES[told.state],
        "handed_on": told.handed_blocks,
        "kept_by_others": told.kept_blocks,
        "could_not_be": told.failed_blocks,
        "left": told.left_blocks,
        "left_bytes": told.left_bytes,
        "bytes_per_s": round(told.bytes_per_s),
        "problem": told.problem or None,
    }


def said(told: admin.DrainProgress) -> str:
    if told.state == admin.DRAIN_NONE:
        return f"{told.node}: not draining"
    text = (
        f"{told.node}: {STATES[told.state]}: {told.handed_blocks} blocks handed on, {told.kept_blocks} kept by others, "
        f"{told.failed_blocks} could not be"
    )
    return f"{text} ({told.problem})" if told.failed_blocks and told.problem else text


def _left(told: admin.DrainProgress) -> str:
    return f"{told.left_blocks} blocks, {human(told.left_bytes)} left, {human(round(told.bytes_per_s))}/s"
