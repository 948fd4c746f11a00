"""What lies in deploy/, read; and whether a command in it is one that we have."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from kvstore import cli
from kvstore import config as settings
from kvstore.admin import cli as admin_cli
from kvstore.config import Config
from kvstore.security import check_addresses

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMMANDS: dict[str, click.Group] = {"kvstore": cli.main, "store-admin": admin_cli.main}


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one is not None]


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """What our command line makes of a command, whose options are returned. Raises click.ClickException."""
    name, *rest = words
    group = COMMANDS[Path(name).name]
    outer = group.make_context(name, list(rest))
    inner_name, command, left = group.resolve_command(outer, [*outer._protected_args, *outer.args])
    assert command is not None and inner_name is not None
    return {**outer.params, **command.make_context(inner_name, list(left), parent=outer).params}


def looked_at(path: Path | None, environ: Mapping[str, str] | None = None) -> Config:
    """The settings as a node would read them, which also binds nothing that it may not. Raises Misconfigured."""
    config = settings.load(path, environ=environ or {})
    addresses = (config.node.address, config.grpc.address, config.metrics.address)
    assert check_addresses(config.security, addresses) == ()
    return config


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def certificates(folder: Path, *hosts: str) -> Path:
    """Made by the script that is shipped."""
    assert shutil.which("openssl"), "openssl is not installed"
    subprocess.run(["sh", str(DEPLOY / "certificates.sh"), str(folder), *hosts], check=True, capture_output=True)
    return folder
