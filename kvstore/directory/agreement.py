"""What the nodes of a cluster must agree on, as flat texts, and how a difference is told. Pure.

A node whose keys, formats or places differ from the others' would neither find nor be found, and nobody would know
why. So it is refused when it joins, by whoever notices, with the setting and both values. Sizes are a node's own.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from kvstore.identity import FORMAT_VERSION
from kvstore.layout import LAYOUT_VERSION

if TYPE_CHECKING:
    from kvstore.config import ClusterConfig

__all__ = ["Settings", "agreed", "check_table", "difference", "secret_id"]

Settings = Mapping[str, str]

TABLE_MAX: Final = 64
NAME_MAX: Final = 64
VALUE_MAX: Final = 256
PEERS_VERSION: Final = 3  # of what nodes say to each other (peers.proto)


def secret_id(secret: bytes) -> str:
    """Tells secrets apart and nothing else of them: 8 bytes in hex."""
    return hmac.digest(secret, b"kvstore secret id 1", "sha256")[:8].hex()


def agreed(cluster: ClusterConfig, secret: bytes, url: str | None) -> dict[str, str]:
    """The table of a node. url: of its object tier; a directory is its own business, a bucket everybody's."""
    shared = url is not None and not url.startswith("file:")
    return {
        "cluster.secret_file (its id)": secret_id(secret),
        "cluster.family_blocks": str(cluster.family_blocks),
        "cluster.directory_width": str(cluster.directory_width),
        "object.url (its digest)": hashlib.sha256(url.encode()).hexdigest()[:16] if shared and url else "not shared",
        "format of blocks": str(FORMAT_VERSION),
        "format of layouts": str(LAYOUT_VERSION),
        "protocol between nodes": str(PEERS_VERSION),
    }


def difference(ours: Settings, theirs: Settings, who: str) -> str | None:
    """The first setting that differs, in the order of ours, with both values; None where all agree. A name that only
    one side knows is one that a newer release has added: it differs.
    """
    for name in (*ours, *(name for name in theirs if name not in ours)):
        here, there = (repr(table[name]) if name in table else "not known" for table in (ours, theirs))
        if here != there:
            return f"{name}: {here} here, {there} at {who}: nodes of one cluster must agree"
    return None


def check_table(table: Settings) -> Settings:
    """A table that somebody sent, within bounds. ValueError says what is wrong."""
    if len(table) > TABLE_MAX:
        raise ValueError(f"settings: more than {TABLE_MAX}")
    for name, value in table.items():
        if len(name) > NAME_MAX or len(value) > VALUE_MAX or not (name + value).isprintable():
            raise ValueError(f"settings: names have {NAME_MAX} characters at most, values {VALUE_MAX}, all printable")
    return table
