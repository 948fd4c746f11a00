"""`cluster.members` as it is written: alone, a list of addresses, or where etcd is. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from kvstore.allowed import address

__all__ = ["Alone", "EtcdAt", "Listed", "Members", "parse_members"]

ALLOWED: Final = (
    "standalone, or HOST:PORT,HOST:PORT,... of every node's framed door, or etcd://HOST:PORT[,HOST:PORT]/PREFIX "
    "(etcds:// with TLS)"
)
LISTED_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class Alone:
    pass


@dataclass(frozen=True, slots=True)
class Listed:
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EtcdAt:
    endpoints: tuple[str, ...]
    prefix: str
    tls: bool


Members = Alone | Listed | EtcdAt


def parse_members(text: str) -> Members:
    """ValueError says what would be allowed."""
    if text == "standalone":
        return Alone()
    etcd = re.fullmatch(r"(etcds?)://([^/]+)/([A-Za-z0-9._-][A-Za-z0-9._/-]{0,127})", text)
    if etcd is None and "://" in text:
        raise ValueError(ALLOWED)
    listed = (etcd[2] if etcd else text).split(",")
    addresses = tuple(one.strip() for one in listed if one.strip())
    if not addresses or len(addresses) > LISTED_MAX:
        raise ValueError(ALLOWED)
    for one in addresses:
        try:
            address(one)
        except ValueError:
            raise ValueError(ALLOWED) from None
        if one == "none" or int(one.rpartition(":")[2]) == 0:
            raise ValueError(ALLOWED)
    if etcd is not None:
        return EtcdAt(addresses, etcd[3].strip("/"), etcd[1] == "etcds")
    return Listed(addresses)


def members(value: object) -> object:
    """A reader of settings (kvstore.allowed): the text, looked at."""
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        value = ",".join(value)
    if not isinstance(value, str):
        raise ValueError(ALLOWED)
    parse_members(value)
    return value
