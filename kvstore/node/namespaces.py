"""The namespaces of a node: which are open, whose they are, and how often each was cleared, here or anywhere.

Kept in `namespaces.json` in the data directory (namespace_list.py), so that a restarted node lists its blocks before
any client has come back, and so that what was cleared stays cleared: the file is on disk before a clear is answered,
and before another node is told that its clear is known here.

    load   what is on disk; nothing is open yet, so that no block of it is listed
    merge  what other nodes know
    admit  what was open before is open again, in the generation that is known by now
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvstore.directory.generations import Clears, Generations
from kvstore.errors import Rejected, Unavailable
from kvstore.identity import NamespaceIdentity, namespace_digest, namespace_seed
from kvstore.layout import Shard
from kvstore.node import namespace_list
from kvstore.node.shares import check_share

if TYPE_CHECKING:
    from kvstore import native

log = logging.getLogger(__name__)

CLOSED_MAX: Final = 1_024  # cleared ones still known by handle, for events and counters that speak of them


class NotOpen(Exception):
    """No such namespace is open here, or it is not the caller's. Both are answered alike."""


@dataclass(frozen=True, slots=True)
class Opened:
    """One namespace as this node has it open. `handle`: what the core calls it. origin: its digest in generation 0."""

    identity: NamespaceIdentity
    digest: bytes
    seed: bytes
    handle: int
    origin: bytes

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

    def __init__(self, core: native.NodeCore, secret: bytes, path: Path, most: int, me: bytes) -> None:
        """most: namespaces_max, which the core enforces; a tenant's share of it is looked after here. me: this node's
        id, by which its clears are counted.
        """
        self._core, self._secret, self._path, self._most, self._me = core, secret, path, most, me
        self.generations = Generations()
        self.on_cleared: Callable[[Opened], object] = lambda _: None  # whoever cleared it
        self._identities: dict[bytes, NamespaceIdentity] = {}  # of generation 0, by their digests
        self._present: dict[bytes, Opened] = {}  # the one that is open, by its digest in generation 0
        self._by_digest: dict[bytes, Opened] = {}
        self._by_handle: dict[int, Opened] = {}
        self._tenants: dict[str, int] = {}
        self._over: list[bytes] = []  # digests of what was cleared while this node was away
        self._unwritten = False

    def load(self) -> None:
        """Raises Misconfigured for a file that is not ours."""
        identities, clears = namespace_list.read(self._path)
        self._identities = {namespace_digest(identity): identity for identity in identities}
        self.generations = Generations(clears)
        self._over = [self._digest(origin) for origin in self._identities]

    def admit(self) -> list[bytes]:
        """Opens again what was open. Answers digests that name nothing any more, so that what lies about of them can
        be deleted: those that were the present ones when this node ended, and those right before the present ones.
        """
        for origin, identity in self._identities.items():
            try:
                self._admit(origin, identity)
            except Rejected as error:
                log.warning("%s: not opened again: %s", identity.model, error)
        over = {digest for digest in self._over if digest not in self._by_digest}
        self._over = []
        for origin, identity in self._identities.items():
            if generation := self.generations.of(origin).generation:
                over.add(namespace_digest(replace(identity, generation=generation - 1)))
        return sorted(over)

    def open(self, asked: NamespaceIdentity, *, shared: bool = False) -> Opened:
        """The namespace in its present generation. Raises Rejected at namespaces_max.

        shared: it is asked for by somebody whose tenant has a share. What was cleared counts too: how often it was
        must be remembered for ever, so that to open and clear without end is no way round.
        """
        identity = replace(asked, generation=0)
        origin = namespace_digest(identity)
        known = origin in self._identities
        if not known and shared:
            mine = sum(1 for one in self._identities.values() if one.tenant == identity.tenant)
            check_share("namespaces_max", self._most, mine, len(self._identities) - mine)
        opened = self._present.get(origin) or self._admit(origin, identity)
        if not known:
            self._identities[origin] = identity
            try:
                self._write()
            except OSError as error:  # whoever opens it again is told the same
                log.warning("%s: %s", self._path, error)
        return opened

    def clear(self, named: Opened) -> int:
        """Makes its blocks unreachable, on disk first, whichever generation was named. Returns the new generation.
        Raises Unavailable, Rejected.
        """
        former = self.generations.of(named.origin)
        self.generations.clear(named.origin, self._me)
        try:
            self._write()
        except OSError as error:
            self.generations.undo(named.origin, former)
            log.error("a namespace was not cleared: %s cannot be written: %s", self._path, error)
            raise Unavailable("namespace: not cleared, the node cannot write its list of them") from error
        self._leave(named.origin)
        return self.generation(named)

    def cleared_elsewhere(self, named: Opened) -> None:
        """Somebody left word that this generation is over."""
        if self.generations.raise_to(named.origin, named.generation + 1):
            self._leave(named.origin)
            self._unwritten = True
        self.settle()

    def merge(self, rows: Iterable[tuple[bytes, Clears]]) -> bool:
        """What another node knows: in force at once. Whether it was news. Raises Unavailable where it is not on disk:
        it holds all the same, but nobody may count on it.
        """
        changed = self.generations.merge(rows)
        for origin in changed:
            self._leave(origin)
        self._unwritten = self._unwritten or bool(changed)
        self.settle()
        return bool(changed)

    def settle(self) -> None:
        """Writes what is in force and could not be written before, if there is anything. Raises Unavailable."""
        if not self._unwritten:
            return
        try:
            self._write()
        except OSError as error:
            log.error("what other nodes have cleared is not on disk: %s: %s", self._path, error)
            raise Unavailable("namespace: cleared, but the node cannot write its list of them") from error

    def generation(self, named: Opened) -> int:
        """As it is now."""
        return self.generations.of(named.origin).generation

    def clears_word(self, named: Opened) -> int:
        """The same at nodes that know of the same clears of it."""
        return self.generations.of(named.origin).word

    def find(self, digest: bytes) -> Opened | None:
        return self._by_digest.get(digest)

    def find_former(self, digest: bytes) -> Opened | None:
        """Also one that was cleared not long ago."""
        return self._by_digest.get(digest) or next(
            (opened for opened in self._by_handle.values() if opened.digest == digest), None
        )

    def by_handle(self, handle: int) -> Opened | None:
        """Also of those that were cleared not long ago."""
        return self._by_handle.get(handle)

    def all(self) -> list[Opened]:
        return list(self._by_digest.values())

    # ---- how ------------------------------------------------------------------------------------------------------

    def _digest(self, origin: bytes) -> bytes:
        """Of the present generation."""
        generation = self.generations.of(origin).generation
        return namespace_digest(replace(self._identities[origin], generation=generation))

    def _admit(self, origin: bytes, identity: NamespaceIdentity) -> Opened:
        identity = replace(identity, generation=self.generations.of(origin).generation)
        digest = namespace_digest(identity)
        tenant = self._tenants.setdefault(identity.tenant, len(self._tenants))
        parts = [list(shard.part_bytes) for shard in identity.shards]
        handle = self._core.open_namespace(digest, tenant, identity.block_tokens, parts)
        if handle < 0:
            raise Rejected("namespaces_max: no more namespaces can be open at this node", limit="namespaces_max")
        opened = Opened(identity, digest, namespace_seed(self._secret, identity.tenant, digest), handle, origin)
        self._present[origin] = self._by_digest[digest] = self._by_handle[handle] = opened
        closed = [each for each in self._by_handle.values() if each.digest not in self._by_digest]
        for each in closed[: max(0, len(closed) - CLOSED_MAX)]:
            del self._by_handle[each.handle]
        return opened

    def _leave(self, origin: bytes) -> None:
        """A generation that is over, if it was open here."""
        opened = self._present.get(origin)
        if opened is None or opened.generation >= self.generations.of(origin).generation:
            return
        del self._present[origin], self._by_digest[opened.digest]
        self._core.drop_namespace(opened.handle)
        self.on_cleared(opened)

    def _write(self) -> None:
        namespace_list.write(self._path, self._identities.values(), self.generations.rows)
        self._unwritten = False
