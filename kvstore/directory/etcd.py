"""A cluster that meets in etcd: a lease for each node, its record under it, and the settings that all agree on.

    PREFIX/settings       JSON, written by the first node and compared by every later one; no lease
    PREFIX/nodes/ID       JSON of the node (base.encode_member), under its lease: gone `ttl_s` after it was last seen

Rules
- What etcd says is a hint about whom to ask; it never takes away a node that answers pings. While etcd is away the last
  view stays, nothing ends, and only joining waits.
- An own record that is gone (the lease ran out while etcd or this node was away, somebody deleted it) is written again
  under a new lease, and the settings where they are gone, too.
- A record of our own id at another address is another node if somebody with that id answers there, else an earlier
  life of ours, whose place is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from dataclasses import dataclass, field
from typing import Final

from kvstore.directory.agreement import Settings, check_table, difference
from kvstore.directory.base import (
    MEMBERS_MAX,
    Discovery,
    Greet,
    Member,
    View,
    already_has,
    decode_member,
    duplicate,
    encode_member,
)
from kvstore.directory.etcd_client import Compacted, EtcdClient
from kvstore.errors import Misconfigured, NotJoined, Unavailable
from kvstore.wire import etcd

__all__ = ["Etcd"]

log = logging.getLogger(__name__)

PAUSE_S_MIN: Final = 0.1
PAUSE_S_MAX: Final = 2.0
LEAVE_S: Final = 1.0


@dataclass(slots=True)
class _Records:
    """Who is written down, by key; of two at one address the newer one counts. Pure."""

    members: dict[bytes, tuple[int, Member]] = field(default_factory=dict)

    def put(self, kv: etcd.kv.KeyValue) -> None:
        try:
            member = decode_member(kv.value)
            if not kv.key.endswith(b"/" + member.id.hex().encode()):
                raise ValueError("id: not that of its key")
        except ValueError as error:
            log.warning("etcd: %r: not a node's record: %s", kv.key, error)
            self.members.pop(kv.key, None)
            return
        if kv.key in self.members or len(self.members) < MEMBERS_MAX:
            self.members[kv.key] = (kv.mod_revision, member)

    def others(self, me: Member) -> tuple[Member, ...]:
        newest: dict[str, Member] = {}
        for _, member in sorted(self.members.values(), key=lambda one: one[0]):
            newest[member.address] = member
        newest.pop(me.address, None)  # our own, or of whoever was there before us
        return tuple(newest[address] for address in sorted(newest))


class Etcd:
    """join_s: how long joining may wait for etcd. ttl_s: of the lease."""

    def __init__(self, client: EtcdClient, prefix: str, join_s: float, ttl_s: int) -> None:
        self._client, self._join_s, self._ttl_s = client, join_s, ttl_s
        base = prefix.strip("/").encode()
        self._settings_key, self._nodes = base + b"/settings", base + b"/nodes/"
        self._me = Member("")
        self._settings: Settings = {}
        self._key = b""
        self._lease = 0
        self._records = _Records()
        self._after, self._cluster = 0, 0
        self._away_since: float | None = None
        self._why = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._gone = asyncio.Event()  # our own record: look after it now
        self._news = asyncio.Event()
        self.view = View()

    @property
    def discovery(self) -> Discovery:
        away = 0.0 if self._away_since is None else time.monotonic() - self._away_since
        return Discovery("etcd", away, self._why if self._away_since is not None else "")

    # ---- joining and leaving --------------------------------------------------------------------------------------

    async def join(self, me: Member, settings: Settings, greet: Greet) -> None:
        self._me, self._key, self._settings = me, self._nodes + me.id.hex().encode(), settings
        until, pause = time.monotonic() + self._join_s, PAUSE_S_MIN
        while True:
            try:
                await self._agree()
                await self._enter(greet)
                await self._list()
                break
            except Unavailable as error:
                self._is_away(error)
                if time.monotonic() + pause > until:
                    raise NotJoined(
                        f"cluster.members: not joined within cluster.join_ms, {self._join_s:.0f} s: {error}"
                    ) from error
                await asyncio.sleep(pause)
                pause = min(PAUSE_S_MAX, 2 * pause)
        self._is_back()
        self._tasks = [asyncio.ensure_future(self._keep(greet)), asyncio.ensure_future(self._watch())]

    async def leave(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        lease, self._lease = self._lease, 0
        with contextlib.suppress(Unavailable, Misconfigured, TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                if lease:
                    await self._client.revoke(lease)
        await self._client.close()

    async def changed(self, epoch: int) -> View:
        while self.view.epoch == epoch:
            self._news.clear()
            await self._news.wait()
        return self.view

    async def _agree(self) -> None:
        """Raises Misconfigured where the cluster's settings are others."""
        found = await self._client.swap(self._settings_key, json.dumps(dict(self._settings)).encode())
        if found is None:
            return
        where = f"{self._settings_key.decode()} in etcd"
        try:
            told = json.loads(found.value)
            if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
                raise ValueError("not a JSON object of texts")
            theirs = check_table(told)
        except (ValueError, RecursionError) as error:
            raise Misconfigured(f"cluster.members: {where}: {error}") from None
        differs = difference(self._settings, theirs, where)
        if differs is not None:
            raise Misconfigured(f"{differs}; to change it, stop every node and delete that key")

    async def _enter(self, greet: Greet) -> None:
        """Writes our record under a lease. Raises Misconfigured where another node has our id."""
        if not self._lease:
            self._lease = await self._client.grant(self._ttl_s)
        record = encode_member(self._me)
        try:
            found = await self._client.swap(self._key, record, self._lease)
            while found is not None:
                await self._check_mine(found, greet)
                found = await self._client.swap(self._key, record, self._lease, revision=found.mod_revision)
        except Unavailable:
            self._lease = 0  # it may be the lease that is gone; one that is not ends by itself
            raise

    async def _check_mine(self, found: etcd.kv.KeyValue, greet: Greet) -> None:
        try:
            there = decode_member(found.value)
        except ValueError:
            return  # of nobody
        if there.incarnation == self._me.incarnation or there.address == self._me.address:
            return
        if await already_has(greet, self._me, there):
            raise Misconfigured(duplicate(self._me.id, self._me.address, there.address))

    # ---- staying --------------------------------------------------------------------------------------------------

    async def _keep(self, greet: Greet) -> None:
        """The lease, and our record under it."""
        pause, refused = 0.0, ""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause or self._ttl_s / 3):
                    await self._gone.wait()
            lost = self._gone.is_set()
            self._gone.clear()
            try:
                if not self._lease or not await self._client.keep_alive(self._lease):
                    self._lease, lost = 0, True
                if lost:
                    await self._agree()  # gone as well, perhaps: who came next would make his own everybody's
                    await self._enter(greet)
                    log.warning("etcd: this node's record was gone and is written again")
                pause = 0.0
                self._is_back()
                refused = ""
            except (Misconfigured, Unavailable) as error:
                pause = min(PAUSE_S_MAX, max(PAUSE_S_MIN, 2 * pause))
                if isinstance(error, Unavailable):
                    self._is_away(error)
                elif str(error) != refused:
                    refused = str(error)
                    log.error("etcd: %s; this node goes on and is not listed", error)
                if lost:
                    self._gone.set()
                    await asyncio.sleep(pause)

    async def _watch(self) -> None:
        pause = PAUSE_S_MIN
        while True:
            try:
                async with contextlib.aclosing(self._client.watch(self._nodes, self._after, self._cluster)) as watch:
                    async for events in watch:
                        pause = PAUSE_S_MIN
                        self._take(events.revision, events.changes)
            except Compacted as error:
                log.info("etcd: %s: listing anew", error)
                await self._list_anew()
            except Misconfigured as error:
                log.error("etcd: %s", error)
                await asyncio.sleep(PAUSE_S_MAX)
            except Unavailable as error:
                log.info("%s", error)
                await asyncio.sleep(pause)
                pause = min(PAUSE_S_MAX, 2 * pause)

    async def _list_anew(self) -> None:
        try:
            await self._list()
        except (Misconfigured, Unavailable) as error:
            self._is_away(error)
            await asyncio.sleep(PAUSE_S_MAX)

    async def _list(self) -> None:
        listing = await self._client.listing(self._nodes, MEMBERS_MAX)
        records = _Records()
        for kv in listing.kvs:
            records.put(kv)
        self._records, self._after, self._cluster = records, listing.revision, listing.cluster
        if self._key not in records.members:
            self._gone.set()
        self._tell()

    def _take(self, revision: int, changes: tuple[tuple[bytes, etcd.kv.KeyValue | None], ...]) -> None:
        for key, kv in changes:
            if kv is not None:
                self._records.put(kv)
            else:
                self._records.members.pop(key, None)
                if key == self._key:
                    self._gone.set()
        self._after = revision
        if changes:
            self._tell()

    def _tell(self) -> None:
        others = self._records.others(self._me)
        if others != self.view.members or not self.view.epoch:
            self.view = View(others, self.view.epoch + 1)
            self._news.set()

    def _is_away(self, error: Exception) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning("%s; the nodes that are known stay known, none can join", error)
        self._why = str(error)

    def _is_back(self) -> None:
        if self._away_since is not None:
            log.warning("etcd answers again after %.1f s", time.monotonic() - self._away_since)
            self._away_since = None
