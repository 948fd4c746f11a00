"""`store-admin`: look at a cluster and its nodes, and steer them. Tables for people, --json for programs.

Exit codes: 0 well; 1 something was found that should not be (verify) or was not found (lookup, locate, pin, retire);
2 the command line, a name or an address is wrong; 3 the node cannot be reached or did not answer in time; 4 refused:
rights, or a limit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kvstore import __version__
from kvstore import config as settings
from kvstore.admin import across, rows
from kvstore.admin.chains import chain_message
from kvstore.admin.connection import OPERATORS, Connection
from kvstore.admin.drain import drain
from kvstore.admin.face import EXIT_FOUND, Context, Group, chain_options, digest_of, pass_context
from kvstore.client.tls import Tls
from kvstore.errors import Misconfigured, Unavailable
from kvstore.wire import admin, store


def default_address() -> str:
    """The socket for operators of the node that this user would run with the same settings."""
    socket = settings.socket_path(settings.load())
    return f"unix:{socket.with_name(socket.name + OPERATORS)}"


EXIT_CODES: Final = (
    "Exit codes: 0 well; 1 found what should not be (verify), or not what was asked for (lookup, locate, pin, retire); "
    "2 the command line is wrong; 3 no node answers; 4 refused: rights, or a limit."
)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.option(
    "--address",
    envvar=settings.ADDRESS_VARIABLE,
    show_envvar=True,
    help="unix:PATH of a node's socket, or HOST:PORT of its gRPC door.",
)
@click.option("--token-file", type=click.Path(path_type=Path), help="A file with the bearer token to show.")
@click.option("--tls-authority", type=click.Path(path_type=Path), help="PEM: who signed the node's certificate.")
@click.option("--tls-certificate", type=click.Path(path_type=Path), help="PEM: our own certificate.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="PEM: its private key.")
@click.option("--json", "as_json", is_flag=True, help="For programs: everything, as JSON. Also behind the command.")
@click.version_option(__version__)
@click.pass_context
def main(
    ctx: click.Context,
    address: str | None,
    token_file: Path | None,
    tls_authority: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    as_json: bool,
) -> None:
    """Look at a cluster and its nodes, and steer them."""
    tls = Tls(tls_authority, tls_certificate, tls_key) if tls_authority or tls_certificate else None
    try:
        token = token_file.read_text().strip() if token_file else None
    except OSError as error:
        raise Misconfigured(f"--token-file {token_file}: {error.strerror}") from error
    connection = Connection(address or default_address(), token, tls)
    ctx.obj = Context(connection, as_json, Console())
    ctx.call_on_close(connection.close)


main.add_command(drain)
for _command in across.COMMANDS:
    main.add_command(_command)


@main.command()
@pass_context
def namespaces(context: Context) -> None:
    """Namespaces that are open, with the layout that made them."""
    answer = context.call("Namespaces", admin.NamespacesRequest(), admin.NamespacesResponse)
    context.show("namespaces", rows.namespaces(answer), rows.NAMESPACE_COLUMNS)


@main.command()
@chain_options()
@pass_context
def lookup(context: Context, namespace: str, tokens: Path | None, keys: str | None) -> None:
    """Where each block of a chain lies, shard by shard. Exit code 1 if none does."""
    request = admin.LocateRequest(namespace=digest_of(context, namespace), chain=chain_message(tokens, keys))
    answer = context.call("Locate", request, admin.LocateResponse)
    found = rows.places(answer)
    context.show("blocks", found)
    if not context.as_json:
        click.echo(rows.places_told(found))
    if not any(rows.here(row) for row in found):
        sys.exit(EXIT_FOUND)


@main.command()
@chain_options(required=False)
@click.option("--shard", default=0, show_default=True, type=click.IntRange(0, 63))
@click.option("--for", "seconds", default=60.0, show_default=True, help="How many seconds.")
@click.option("--release", type=int, metavar="PIN", help="End this pin instead: the number that pin told.")
@pass_context
def pin(
    context: Context,
    namespace: str | None,
    tokens: Path | None,
    keys: str | None,
    shard: int,
    seconds: float,
    release: int | None,
) -> None:
    """Keep the blocks of a chain in memory for a while. Exit code 1 if nothing could be pinned."""
    if release is not None:
        ended = context.call("Unpin", admin.UnpinRequest(pin=release), admin.UnpinResponse)
        context.show("pin", [{"pin": release, "released": ended.released}])
        sys.exit(0 if ended.released else EXIT_FOUND)
    if namespace is None:
        raise ValueError("--namespace: needed to pin (--release PIN needs none)")
    request = admin.PinRequest(
        namespace=digest_of(context, namespace),
        shard=shard,
        chain=chain_message(tokens, keys),
        duration_ms=max(1, int(seconds * 1000)),
    )
    answer = context.call("Pin", request, admin.PinResponse)
    context.show(
        "pin", [{"pin": answer.pin, "blocks": answer.blocks, "pinned_bytes": answer.bytes, "seconds": seconds}]
    )
    if not answer.pin:
        sys.exit(EXIT_FOUND)


@main.command()
@chain_options()
@pass_context
def retire(context: Context, namespace: str, tokens: Path | None, keys: str | None) -> None:
    """Unlist the blocks of a chain now, on memory and file. Exit code 1 if none was there."""
    request = admin.RetireRequest(namespace=digest_of(context, namespace), chain=chain_message(tokens, keys))
    answer = context.call("Retire", request, admin.RetireResponse)
    context.show("retired", [{"slots": answer.slots}])
    if not answer.slots:
        sys.exit(EXIT_FOUND)


@main.command()
@click.option("--namespace", help="Only this one: its digest, or the first digits of it.")
@pass_context
def verify(context: Context, namespace: str | None) -> None:
    """Read every block and check it with a second implementation of the checksum. Exit code 1 if one was bad."""
    request = admin.VerifyRequest(namespace=digest_of(context, namespace) if namespace else b"")
    bad: list[rows.Row] = []
    last = admin.VerifyProgress()
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Progress is for people at a terminal; it goes to standard error, so that the result can be piped.
    with (
        context.connection.translated(),
        Progress(*columns, console=Console(stderr=True), transient=True, disable=context.as_json) as progress,
    ):
        task = progress.add_task("verify", total=None)
        for last in context.connection.admin().Verify(request, metadata=context.connection.metadata()):
            progress.update(task, total=last.blocks_total, completed=last.blocks_checked)
            bad += rows.corrupt(last.corrupt)
    summary: rows.Row = {"checked": last.blocks_checked, "checked_bytes": last.bytes_checked, "corrupt": len(bad)}
    if context.as_json:
        click.echo(json.dumps({**summary, "blocks": bad}, indent=2))
    else:
        context.show("verified", [summary])
        if bad:
            context.show("dropped because they did not verify", bad)
    if not last.done:
        raise Unavailable("the node ended before everything was checked")
    if bad:
        sys.exit(EXIT_FOUND)


@main.command()
@click.option("--namespace", help="Only this one: its digest, or the first digits of it.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now, until interrupted.")
@click.option("--from-start", is_flag=True, help="With --follow: begin with the oldest event that is kept.")
@pass_context
def events(context: Context, namespace: str | None, follow: bool, from_start: bool) -> None:
    """What was stored, removed and cleared, as far as it is kept; one JSON object a line with --json."""
    now = context.call("Status", admin.StatusRequest(), admin.StatusResponse)
    until = now.event_sequence
    request = store.WatchRequest(namespace=digest_of(context, namespace) if namespace else b"")
    if from_start or not follow:
        request.after.CopyFrom(store.Cursor(epoch=now.node.epoch, sequence=0))
        if until == 0 and not follow:
            return
    with context.connection.translated():
        for batch in context.connection.admin().Events(request, metadata=context.connection.metadata()):
            if batch.gap:
                click.echo("store-admin: events before these are not kept any more", err=True)
            for told in batch.events:
                _tell(context, rows.event(told))
            if not follow and batch.cursor.sequence >= until:
                return


def _tell(context: Context, row: rows.Row) -> None:
    if context.as_json:
        click.echo(json.dumps(row))
    else:
        click.echo(rows.event_told(row))
    sys.stdout.flush()
