"""The command `kvstore`: run a node, see a demonstration, look at this machine.

Exit codes: 0 well; 1 it failed, did not stop in time, or a demonstration did not show what it should; 2 the command
line or the settings are wrong; 3 a node could not join, since etcd did not answer: another start may.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from kvstore import __version__, readiness
from kvstore import config as settings
from kvstore.allowed import human
from kvstore.config import Config, Said
from kvstore.errors import Misconfigured, NotJoined

if TYPE_CHECKING:
    from kvstore.node.node import Node

EXIT_SETTINGS: Final = 2
EXIT_NOT_JOINED: Final = 3
STOP_MAX_S: Final = 30.0  # from the signal to the end, beside what object.flush_ms allows

# Flags that stand for a setting; every other setting is reached by --set.
FLAGS: Final = {
    "data_dir": ("node.data_dir", "Where the node keeps what it must not forget.", "PATH"),
    "socket": ("node.socket", "The Unix socket that clients connect to.", "PATH"),
    "address": ("node.address", "HOST:PORT where clients of other machines connect, or none.", "ADDRESS"),
    "members": ("cluster.members", "The cluster: HOST:PORT,... of every node, or etcd://HOST:PORT/PREFIX.", "MEMBERS"),
    "name": ("node.name", "Names the node and its shared memory.", "NAME"),
    "memory": ("memory.bytes", "Size of the memory tier, such as 4GiB.", "SIZE"),
    "grpc": ("grpc.address", "HOST:PORT of the gRPC door, or none.", "ADDRESS"),
    "metrics": ("metrics.address", "HOST:PORT of /metrics, or none.", "ADDRESS"),
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """A store for the KV cache of large language models."""


def _setting_flags(command: Callable[..., None]) -> Callable[..., None]:
    for name, (_, text, metavar) in reversed(FLAGS.items()):
        command = click.option("--" + name.replace("_", "-"), name, metavar=metavar, help=text)(command)
    command = click.option(
        "--insecure", is_flag=True, help="Allow addresses that others reach without TLS and tokens."
    )(command)
    command = click.option(
        "--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help="Any setting; see docs/settings.md."
    )(command)
    return click.option(
        "--config", "path", type=click.Path(path_type=Path), help="A TOML file of settings (or KVSTORE_CONFIG)."
    )(command)


def read_settings(path: Path | None, sets: tuple[str, ...], insecure: bool, flags: dict[str, str | None]) -> Config:
    """File, environment and flags, the later over the earlier. Raises Misconfigured."""
    said: dict[str, Said] = {}
    for one in sets:
        key, equals, text = one.partition("=")
        if not equals:
            raise Misconfigured(f"--set {one}: must be SECTION.KEY=VALUE")
        said[key.strip()] = Said("--set", text)
    for name, value in flags.items():
        if value is not None:
            said[FLAGS[name][0]] = Said("--" + name.replace("_", "-"), value)
    if insecure:
        said["security.insecure"] = Said("--insecure", True)
    return settings.load(path, said)


@main.command()
@_setting_flags
@click.option("--json", "as_json", is_flag=True, help="Say what was started as one line of JSON.")
@click.option("--verbose", "-v", is_flag=True, help="Log what is done, not only what is wrong.")
def node(
    path: Path | None, sets: tuple[str, ...], insecure: bool, as_json: bool, verbose: bool, **flags: str | None
) -> None:
    """Run a node until SIGTERM or SIGINT; SIGHUP reads tokens and certificates again. Needs no settings at all."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        config = read_settings(path, sets, insecure, flags)
        asyncio.run(_serve(config, as_json))
    except Misconfigured as error:
        click.echo(f"kvstore node: {error}", err=True)
        sys.exit(EXIT_NOT_JOINED if isinstance(error, NotJoined) else EXIT_SETTINGS)
    _leave()


def _leave() -> NoReturn:
    """The end of a node that has stopped. Not the interpreter's: threads of gRPC and of the object store's library
    still run, and to take it down under them can hang, where nobody watches any more.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(0)


async def _serve(config: Config, as_json: bool) -> None:
    from kvstore.node.node import serve

    loop, ended, reload = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def end() -> None:
        if ended.is_set():
            return  # said again: the deadline is that of the first
        ended.set()
        readiness.notify(readiness.STOPPING)
        # A stop that hangs is ended: a killed node loses nothing that was sealed. Stacks go to standard error.
        faulthandler.dump_traceback_later(STOP_MAX_S + config.object.flush_ms / 1000, exit=True)

    for number in (signal.SIGTERM, signal.SIGINT):  # before anything is started that would have to be stopped
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    await serve(config, lambda started: _tell(started, as_json), ended.wait, reload)


def started_facts(started: Node) -> dict[str, Any]:
    """Where everything is, for people and programs."""
    from kvstore.tiers.base import TierKind

    sizes = started.segments.size
    return {
        "pid": os.getpid(),
        "node": started.name,
        "socket": str(started.socket),
        "address": started.address,
        "addresses": list(started.doors().addresses),
        "data_dir": str(started.home.path),
        "memory_bytes": sizes.bytes,
        "memory_slab_bytes": sizes.slab_bytes,
        "memory_at": str(started.segments.payload.path),
        "tiers": [
            {
                "tier": TierKind(told.tier).name.lower(),
                "medium": told.medium,
                "bytes": told.capacity_bytes,
                "asked_bytes": told.asked_bytes,
            }
            for told in started.tiers()
        ],
        "blocks_found_again": int(started.core.recovered),
        "warnings": list(started.said_aloud),
    }


def _tell(started: Node, as_json: bool) -> None:
    readiness.notify(readiness.READY)
    facts = started_facts(started)
    if as_json:
        click.echo(json.dumps(facts))
        return
    for warning in facts["warnings"]:
        click.echo(warning, err=True)
    again = f"; {facts['blocks_found_again']} blocks found again" if facts["blocks_found_again"] else ""
    slab = human(facts["memory_slab_bytes"])
    click.echo(f"kvstore node {facts['node']} (pid {facts['pid']})")
    click.echo(f"  memory   {_size(facts['tiers'][0])} in {facts['memory_at']}, slabs of {slab}{again}")
    for tier in facts["tiers"][1:]:
        click.echo(f"  {tier['tier']:8} {_size(tier)}, {tier['medium']}")
    click.echo(f"  data     {facts['data_dir']}")
    for i, (who, address) in enumerate(started.listening()):
        click.echo(f"  {'listens ' if i == 0 else '        '} {who:14}  {address}")
    click.echo(f'  try      kvstore.Client("unix:{facts["socket"]}"); stop with SIGTERM')


def _size(tier: dict[str, Any]) -> str:
    if not tier["bytes"]:
        return "unbounded"
    # Whole slabs fit what was asked for, and no more.
    asked = f" of {human(tier['asked_bytes'])} asked for" if tier["asked_bytes"] != tier["bytes"] else ""
    return human(tier["bytes"]) + asked


@main.command()
@click.option("--memory", default="256MiB", show_default=True, metavar="SIZE", help="Of the demonstration's node.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
def demo(memory: str, as_json: bool) -> None:
    """Publish and fetch synthetic KV through a node of its own, in three processes. Ten seconds, no torch."""
    from kvstore.demo.stage import run

    sys.exit(run(memory, as_json))


@main.command()
@_setting_flags
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.option(
    "--peer", metavar="ADDRESS", help="Look at the way to this node instead: unix:PATH or HOST:PORT of its framed door."
)
@click.option("--token-file", type=click.Path(path_type=Path), help="With --peer: a file with the token to show.")
@click.option("--tls-authority", type=click.Path(path_type=Path), help="PEM: who signed the door's certificate.")
@click.option("--tls-certificate", type=click.Path(path_type=Path), help="PEM: our own certificate.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="PEM: its private key.")
def doctor(
    path: Path | None,
    sets: tuple[str, ...],
    insecure: bool,
    as_json: bool,
    peer: str | None,
    token_file: Path | None,
    tls_authority: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    **flags: str | None,
) -> None:
    """Look at this machine: what the store can use, what is missing, what to do about it. Exit code 1 if a node
    would not start.

    With --peer: by which way bytes go from that node to here, and why no faster one is used. Exit code 1 if there is
    none, or if no right bytes came.
    """
    shown = (token_file, tls_authority, tls_certificate, tls_key)
    try:
        config = read_settings(path, sets, insecure, flags)
        if peer is None and any(shown):
            raise Misconfigured("--token-file and --tls-*: are shown to a peer; give --peer")
        if peer is not None:
            sys.exit(_look_at(peer, config, as_json, *shown))
    except Misconfigured as error:
        click.echo(f"kvstore doctor: {error}", err=True)
        sys.exit(2)
    _examine(config, as_json)


def _look_at(
    peer: str,
    config: Config,
    as_json: bool,
    token_file: Path | None,
    authority: Path | None,
    certificate: Path | None,
    key: Path | None,
) -> int:
    """The exit code. Raises Misconfigured."""
    from kvstore.client.tls import Tls
    from kvstore.doctor_peer import look, told

    try:
        token = token_file.read_text().strip() if token_file else None
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"--token-file {token_file}: {error}") from error
    tls = Tls(authority, certificate, key) if authority or certificate else None
    found = look(peer, token, tls, config)
    click.echo(json.dumps(asdict(found), indent=1) if as_json else "\n".join(told(found)))
    return 0 if found.well else 1


def _examine(config: Config, as_json: bool) -> None:
    from kvstore.doctor import examine

    findings = examine(config)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            click.echo(f"{finding.state:5} {finding.subject}: {finding.found}")
            if finding.advice:
                click.echo(f"      {finding.advice}")
    sys.exit(1 if any(finding.state == "bad" for finding in findings) else 0)
