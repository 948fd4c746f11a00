"""What every command of `store-admin` has: a connection, tables or JSON, errors as one line, chains by options."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from kvstore.admin import rows
from kvstore.admin.connection import CALL_S, Connection
from kvstore.errors import Misconfigured, Rejected, Unavailable
from kvstore.wire import admin

EXIT_FOUND: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNAVAILABLE: Final = 3
EXIT_REFUSED: Final = 4
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Context:
    connection: Connection
    as_json: bool
    console: Console

    def call(self, method: str, request: object, kind: type[Answer]) -> Answer:
        """One unary call of the Admin service, whose answers are of that kind."""
        with self.connection.translated():
            verb = getattr(self.connection.admin(), method)
            answer = verb(request, timeout=CALL_S, metadata=self.connection.metadata())
        assert isinstance(answer, kind)
        return answer

    def ask(self, question: admin.Question, nodes: Sequence[str] = (), *, within_ms: int = 0) -> list[admin.NodeAnswer]:
        """Every node that is named, or all: the one that is called first, then by name. within_ms: for each to answer,
        0: as the node that is called thinks. Raises Unavailable where nodes are named and none of them answers.
        """
        request = admin.AskRequest(question=question, nodes=nodes, deadline_ms=within_ms)
        with self.connection.translated():
            calling = self.connection.admin().Ask(request, timeout=CALL_S, metadata=self.connection.metadata())
            told = sorted(calling, key=lambda one: (not one.node.self, one.node.name, one.node.address))
        if nodes and not any(one.HasField("answer") for one in told):
            raise Unavailable("; ".join(rows.unanswered(told)))
        return told

    def tell(self, document: object) -> bool:
        """As JSON, if that is asked for."""
        if self.as_json:
            click.echo(json.dumps(document, indent=2))
        return self.as_json

    def show(self, title: str, table: Sequence[rows.Row], columns: Sequence[str] = ()) -> None:
        """`columns`: those for people; --json has them all."""
        if self.tell(list(table)):
            return
        if not table:
            self.console.print(f"{title}: none")
            return
        names = list(columns or table[0])
        shown = Table(box=SIMPLE_HEAD)
        shown.show_edge, shown.pad_edge, shown.collapse_padding = False, False, True  # so that all fit 80 columns
        for name in names:
            number = any(isinstance(row[name], int | float) and not isinstance(row[name], bool) for row in table)
            number = number or name.endswith("rate")  # which nobody has where nothing was asked
            # Numbers, and what is copied into the next command, are never cut short.
            whole = number or name in rows.COPIED
            shown.add_column(rows.heading(name), justify="right" if number else "left", no_wrap=whole)
        for row in table:
            shown.add_row(*(rows.shown(name, row[name]) for name in names))
        self.console.print(title, style="bold")
        self.console.print(shown)

    def details(self, row: rows.Row) -> None:
        """One thing, a line a property."""
        table = Table(show_header=False, box=None)
        table.add_column()
        table.add_column(overflow="fold")  # an address that is cut short is of no use
        for name, value in row.items():
            lines = "\n".join(map(str, value)) if isinstance(value, list) else rows.shown(name, value)
            table.add_row(rows.heading(name), lines)
        self.console.print(table)


class Group(click.Group):
    """Errors of the store as one line and an exit code, never as a traceback. --json may stand behind the command too:
    there people type it.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--json" in args:
            args = ["--json", *(word for word in args if word != "--json")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (Misconfigured, ValueError) as error:
            _end(str(error), EXIT_USAGE)
        except Unavailable as error:
            _end(str(error), EXIT_UNAVAILABLE)
        except Rejected as error:
            _end(str(error), EXIT_REFUSED)
        except KeyboardInterrupt:
            sys.exit(130)


def _end(text: str, code: int) -> NoReturn:
    click.echo(f"store-admin: {text}", err=True)
    sys.exit(code)


pass_context = click.make_pass_decorator(Context)


def chain_options(required: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """How a chain is named on a command line."""
    options = (
        click.option("--namespace", required=required, help="Its digest, or the first digits of it."),
        click.option(
            "--tokens", type=click.Path(path_type=Path), help="A file of token ids: JSON list, or one a line."
        ),
        click.option("--keys", help="Keys in hex, separated by commas."),
    )

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return with_options


def digest_of(context: Context, text: str) -> bytes:
    """The namespace that is open at the node which is called and whose digest begins so."""
    answer = context.call("Namespaces", admin.NamespacesRequest(), admin.NamespacesResponse)
    return the_one(text, [row.digest for row in answer.rows])


def the_one(text: str, digests: Sequence[bytes]) -> bytes:
    found = sorted({digest for digest in digests if digest.hex().startswith(text.lower())})
    if len(found) != 1:
        raise ValueError(
            f"--namespace {text}: {'no' if not found else len(found)} namespaces begin so; "
            "`store-admin namespaces` lists those that are open"
        )
    return found[0]
