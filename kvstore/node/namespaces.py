"""The namespaces of a node: which are open, whose they are, and how often each was cleared.

Kept in `namespaces.json` in the data directory, so that a restarted node lists its blocks before any client has come
back, and so that
what was cleared stays cleared: the file is on disk before a clear is answered.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvstore.errors import Misconfigured, Rejected, Unavailable
from kvstore.identity import NamespaceIdentity, namespace_digest, namespace_seed
from kvstore.layout import Shard
from kvstore.node.shares import check_share

if TYPE_CHECKING:
    from kvstore import native

log = logging.getLogger(__name__)

VERSION: Final = 1
CLOSED_MAX: Final = 1_024  # cleared ones still known by handle, for events and counters that speak of them


class NotOpen(Exception):
    """No such namespace is open here, or it is not the caller's. Both are answered alike."""


@dataclass(frozen=True, slots=True)
class Opened:
    """One namespace as this node has it open. `handle`: what the core calls it."""

    identity: NamespaceIdentity
    digest: bytes
    seed: bytes
    handle: int

    @property
    def tenant(self) -> str:
        return self.identity.tenant

    @property
    def generation(self) -> int:
        return self.identity.generation

    @property
    def block_tokens(self) -> int:
        return self.identity.block_tokens

    @property
    def shards(self) -> tuple[Shard, ...]:
        return self.identity.shards


class Namespaces:
    """Lives on the node's event loop."""

    def __init__(self, core: native.NodeCore, secret: bytes, path: Path, most: int) -> None:
        """most: namespaces_max, which the core enforces; a tenant's share of it is looked after here."""
        self._core, self._secret, self._path, self._most = core, secret, path, most
        self._generations: dict[NamespaceIdentity, int] = {}  # by the identity of generation 0
        self._by_digest: dict[bytes, Opened] = {}
        self._by_handle: dict[int, Opened] = {}
        self._tenants: dict[str, int] = {}

    def load(self) -> None:
        """Opens again what was open. Raises Misconfigured for a file that is not ours."""
        for identity in read(self._path):
            self._generations[replace(identity, generation=0)] = identity.generation
            try:
                self._admit(identity)
            except Rejected as error:
                log.warning("%s: not opened again: %s", identity.model, error)

    def open(self, asked: NamespaceIdentity, *, shared: bool = False) -> Opened:
        """The namespace in its present generation. Raises Rejected at namespaces_max.

        shared: it is asked for by somebody whose tenant has a share. What was cleared counts too: how often it was
        must be remembered for ever, so that to open and clear without end is no way round.
        """
        origin = replace(asked, generation=0)
        known = self._generations.get(origin)
        if known is None and shared:
            mine = sum(1 for one in self._generations if one.tenant == origin.tenant)
            check_share("namespaces_max", self._most, mine, len(self._generations) - mine)
        identity = replace(origin, generation=known or 0)
        opened = self._by_digest.get(namespace_digest(identity)) or self._admit(identity)
        if known is None:
            self._generations[origin] = 0
            try:
                self._write()
            except OSError as error:  # generation 0 is what a restarted node would take it for anyway
                log.warning("%s: %s", self._path, error)
        return opened

    def clear(self, opened: Opened) -> int:
        """Makes its blocks unreachable, on disk first. Returns the new generation. Raises Unavailable."""
        origin, former = replace(opened.identity, generation=0), opened.generation
        self._generations[origin] = former + 1
        try:
            self._write()
        except OSError as error:
            self._generations[origin] = former
            log.error("a namespace was not cleared: %s cannot be written: %s", self._path, error)
            raise Unavailable("namespace: not cleared, the node cannot write its list of them") from error
        self._by_digest.pop(opened.digest, None)
        self._core.drop_namespace(opened.handle)
        return former + 1

    def find(self, digest: bytes) -> Opened | None:
        return self._by_digest.get(digest)

    def by_handle(self, handle: int) -> Opened | None:
        """Also of those that were cleared not long ago."""
        return self._by_handle.get(handle)

    def all(self) -> list[Opened]:
        return list(self._by_digest.values())

    def _admit(self, identity: NamespaceIdentity) -> Opened:
        digest = namespace_digest(identity)
        tenant = self._tenants.setdefault(identity.tenant, len(self._tenants))
        parts = [list(shard.part_bytes) for shard in identity.shards]
        handle = self._core.open_namespace(digest, tenant, identity.block_tokens, parts)
        if handle < 0:
            raise Rejected("namespaces_max: no more namespaces can be open at this node", limit="namespaces_max")
        opened = Opened(identity, digest, namespace_seed(self._secret, identity.tenant, digest), handle)
        self._by_digest[digest] = self._by_handle[handle] = opened
        closed = [each for each in self._by_handle.values() if each.digest not in self._by_digest]
        for each in closed[: max(0, len(closed) - CLOSED_MAX)]:
            del self._by_handle[each.handle]
        return opened

    def _write(self) -> None:
        rows = [_row(replace(origin, generation=count)) for origin, count in self._generations.items()]
        temporary = self._path.with_suffix(".new")
        with temporary.open("w") as file:
            json.dump({"version": VERSION, "namespaces": rows}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _row(identity: NamespaceIdentity) -> dict[str, object]:
    return {
        "engine": identity.engine,
        "model": identity.model,
        "revision": identity.revision,
        "dtype": identity.dtype,
        "block_tokens": identity.block_tokens,
        "shards": [[shard.group, shard.rank, list(shard.part_bytes)] for shard in identity.shards],
        "fingerprint": identity.fingerprint.hex(),
        "tenant": identity.tenant,
        "generation": identity.generation,
    }


def read(path: Path) -> list[NamespaceIdentity]:
    """Raises Misconfigured: to go on without it could bring back what was cleared."""
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise Misconfigured(f"{path}: {error}; remove it only together with all blocks of this node") from error
    version = document.get("version") if isinstance(document, dict) else None
    if version != VERSION:
        raise Misconfigured(f"{path}: version {version!r}, this node reads {VERSION}")
    try:
        return [_identity(row) for row in document["namespaces"]]
    except (KeyError, TypeError, ValueError) as error:
        raise Misconfigured(f"{path}: not a list of namespaces: {error!r}") from error


def _identity(row: Mapping[str, object]) -> NamespaceIdentity:
    texts = {name: str(row[name]) for name in ("engine", "model", "revision", "dtype", "tenant")}
    numbers = {name: int(str(row[name])) for name in ("block_tokens", "generation")}
    shards = row["shards"]
    if not isinstance(shards, list):
        raise TypeError("shards")
    return NamespaceIdentity(
        engine=texts["engine"],
        model=texts["model"],
        revision=texts["revision"],
        dtype=texts["dtype"],
        block_tokens=numbers["block_tokens"],
        shards=tuple(Shard(str(group), int(rank), tuple(int(size) for size in sizes)) for group, rank, sizes in shards),
        fingerprint=bytes.fromhex(str(row["fingerprint"])),
        tenant=texts["tenant"],
        generation=numbers["generation"],
    )
