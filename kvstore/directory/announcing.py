"""Telling homes what this node holds: batches in order, from scratch where something was missed, digests that find it.

What is queued is keys. What is told of them is asked of the holdings when a batch is made, so the last batch about a
key is always true, in whatever order its changes came. A key that is not the home's any more is told as not held. Pure.

    changes -> homes of each key, under every view in force -> queue of each home -> one batch at a time -> answered
    sweep: all that is held, a page a step, for homes to be told from scratch, keys whose homes moved, digests
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from kvstore.directory.homes import Places, SettledView, places_in
from kvstore.directory.messages import (
    ALL_BUCKETS,
    Announce,
    Answer,
    Bytes,
    Digest,
    DigestAnswer,
    Rows,
    Status,
    Words,
)
from kvstore.directory.settings import MS, DirectorySettings
from kvstore.native import claim_buckets, claim_digests, namespace_word

__all__ = ["Announcer", "Changes", "Holdings"]

RETRY_MS_MAX = 1_000
Keys: TypeAlias = tuple[bytes, Bytes]  # a namespace's digest, keys of 32 bytes


@dataclass(frozen=True, slots=True)
class Changes:
    keys: list[Keys]  # that came or went
    cleared: list[bytes]  # namespaces
    gap: bool  # some are not known: everything may have changed


class Holdings(Protocol):
    """What this node holds. Two implementations: the core's, and the simulation's."""

    def changes(self) -> Changes:
        """Since the last call. The first call may leave out what is there already."""
        ...

    def held(self, ns: bytes, keys: Bytes) -> tuple[Words, Bytes]:
        """The shards of each key, and the nearest tier (0 where there are none)."""
        ...

    def scan(self, after: int, slots: int) -> tuple[int, list[tuple[bytes, Bytes, Words, Bytes]]]:
        """All that is held, each key at least once, in steps: from 0 on, until 0 comes back."""
        ...


@dataclass(frozen=True, slots=True)
class _Mark:
    """In a queue: between the keys before and after it, buckets begin or end to be told from scratch."""

    begin: int = 0
    end: int = 0


@dataclass(slots=True)
class _Home:
    """`scratch`: buckets that wait for a sweep. `flight`: what was sent and is not answered."""

    incarnation: int
    sequence: int = 0
    scratch: int = ALL_BUCKETS
    queue: deque[Keys | _Mark] = field(default_factory=deque)
    queued: int = 0
    cleared: list[bytes] = field(default_factory=list)
    flight: Announce | Digest | None = None
    asked: bool = False  # of `flight`: it was given out, and its end is not known yet
    retry_at: int = 0
    failures: int = 0
    digest: Words | None = None
    valid: int = 0

    @property
    def answers(self) -> bool:
        """Not one whose last batch is still being tried again."""
        return self.failures == 0 or self.flight is None

    def push(self, item: Keys | _Mark) -> None:
        self.queue.append(item)
        if not isinstance(item, _Mark):
            self.queued += len(item[1])

    def forget(self) -> None:
        """All that it was to be told: it will be told from scratch."""
        self.queue.clear()
        self.cleared.clear()
        self.queued = 0
        self.scratch = ALL_BUCKETS
        self.digest = None


@dataclass(slots=True)
class _Sweep:
    """One pass over what is held. `scratch`: homes and buckets to tell. `before`: under which views keys were told
    until now, if that has changed; several where a change came before the sweep for the last one had ended.
    """

    scratch: dict[bytes, int]
    before: list[tuple[Places, ...]]
    digests: dict[bytes, Words] | None
    after: int = 0
    begun: bool = False


class Announcer:
    def __init__(self, view: SettledView, incarnation: int, holdings: Holdings, settings: DirectorySettings) -> None:
        self._view = view
        self._incarnation = incarnation
        self._holdings = holdings
        self._settings = settings
        self._homes: dict[bytes, _Home] = {}
        self._sequences: dict[bytes, int] = {}  # of homes that are gone for now: theirs go on when they are back
        self._told: tuple[Places, ...] = ()
        self._version = -1
        self._live: dict[bytes, int] | None = None  # as it was followed: the view makes another of each change
        self._sweep: _Sweep | None = None
        self._read_at = 0
        self._unread = False  # somebody looked before that: there may be changes that nobody speaks of again
        self._digest_at: int | None = None

    # ---- what drives it

    def poll(self, now: int) -> list[tuple[bytes, Announce | Digest]]:
        """What is to be sent now, to whom; each is answered once, with None where no answer came."""
        self._follow_view()
        self._unread = now < self._read_at
        if not self._unread:
            self._read_at = now + self._settings.announce_ms * MS
            self._read()
        self._plan_sweep(now)
        self._step()
        out: list[tuple[bytes, Announce | Digest]] = []
        for node, home in self._homes.items():
            if home.asked or home.retry_at > now:
                continue
            if home.flight is None:
                home.flight = self._next(node, home)
            if home.flight is not None:
                home.asked = True
                out.append((node, home.flight))
        return out

    def answered(self, node: bytes, message: Announce | Digest, answer: Answer | None, now: int) -> None:
        home = self._homes.get(node)
        if home is None or home.flight is not message:
            return
        home.asked = False
        status = answer.status if answer is not None else None
        if status in {Status.TAKEN, Status.RESYNC}:
            home.flight, home.failures = None, 0
            if status == Status.RESYNC:
                self._forget(node, home)
            elif isinstance(answer, DigestAnswer):
                home.scratch |= answer.differ
            return
        home.failures += 1
        delay = min(self._settings.announce_retry_ms << min(home.failures - 1, 8), RETRY_MS_MAX)
        home.retry_at = now + delay * MS
        if isinstance(message, Digest):
            home.flight = None  # what it says is of its moment

    def resync(self) -> None:
        """Something was listed that no change told of (files scanned after a start): tell every home from scratch."""
        for node, home in self._homes.items():
            self._forget(node, home)

    def _forget(self, node: bytes, home: _Home) -> None:
        home.forget()
        if self._sweep is not None:
            self._sweep.scratch.pop(node, None)

    def next_poll(self, now: int) -> int:
        """When poll() has something to do, unless something is held, goes or is answered before."""
        if self._sweep is not None:
            return now + MS
        times = [home.retry_at for home in self._homes.values() if self._waits(home)]
        times += [at for at in (self._digest_at,) if at is not None]
        times += [self._read_at] if self._unread else []
        return max(min(times, default=now + self._settings.digest_ms * MS), now + MS)

    def _waits(self, home: _Home) -> bool:
        return not home.asked and bool(
            home.flight or home.queue or home.cleared or home.scratch or home.digest is not None
        )

    # ---- homes come and go

    def _follow_view(self) -> None:
        live = self._view.live
        if live is self._live and self._version == self._view.version:
            return
        self._live = live
        for node, home in list(self._homes.items()):
            if live.get(node) != home.incarnation:
                self._sequences[node] = home.sequence
                del self._homes[node]
                if self._sweep is not None:
                    self._sweep.scratch.pop(node, None)
        if self._version != self._view.version:
            before, scratch = [self._told], {}
            if self._sweep is not None:
                before += self._sweep.before
                scratch = self._sweep.scratch if self._sweep.begun else {}
            self._version, self._told = self._view.version, self._view.told
            # Who was being told from scratch is told all of it once more, without another beginning.
            self._sweep = _Sweep(scratch, before, None, begun=True)
        for node in live:
            if len(live) <= self._settings.width or node in self._sequences:  # it may have what it was told before
                self._home(node)

    def _home(self, node: bytes) -> _Home | None:
        """None: it is dead."""
        incarnation = self._view.live.get(node)
        if incarnation is None:
            return None
        if node not in self._homes:
            self._homes[node] = _Home(incarnation, sequence=self._sequences.pop(node, 0))
        return self._homes[node]

    # ---- what has changed

    def _read(self) -> None:
        changes = self._holdings.changes()
        if changes.gap:
            self.resync()
        for ns in changes.cleared:
            for home in self._homes.values():
                home.cleared.append(ns)
        # What went before a sweep came to it is not seen by it: its former homes are told here.
        former = [places for told in self._sweep.before for places in told] if self._sweep is not None else []
        for ns, keys in changes.keys:
            for node, chosen in self._keepers(ns, keys, (*self._told, *former)).items():
                self._queue(node, ns, keys[chosen])

    def _keepers(self, ns: bytes, keys: Bytes, told: tuple[Places, ...]) -> dict[bytes, npt.NDArray[np.bool_]]:
        out: dict[bytes, npt.NDArray[np.bool_]] = {}
        for places in told:
            homes = places.of(ns)
            first, second = homes.of(keys)
            for place in places_in(first, second):
                chosen = (first == place) | (second == place)
                node = homes.ids[place]
                out[node] = out[node] | chosen if node in out else chosen
        return out

    def _queue(self, node: bytes, ns: bytes, keys: Bytes) -> None:
        if not len(keys):
            return
        home = self._home(node)
        if home is None:
            self._sequences.setdefault(node, 0)  # to be told when it is back
            return
        sweeping = self._sweep is not None and node in self._sweep.scratch
        if home.scratch == ALL_BUCKETS and not sweeping:
            return  # a sweep will come to them
        if home.queued + len(keys) > self._settings.queue_max:
            self._forget(node, home)
            return
        home.push((ns, keys))
        if home.valid:
            bits = np.uint64(1) << claim_buckets(keys).astype(np.uint64)
            home.valid &= ~int(np.bitwise_or.reduce(bits))

    # ---- sweeps

    def _plan_sweep(self, now: int) -> None:
        if self._digest_at is None:
            self._digest_at = now + self._settings.digest_ms * MS
        if self._sweep is not None:
            return
        scratch = {node: home.scratch for node, home in self._homes.items() if home.scratch and home.answers}
        if scratch:
            self._sweep = _Sweep(scratch, [], None)
        elif now >= self._digest_at:
            self._digest_at = now + self._settings.digest_ms * MS
            due = {node: np.zeros(64, np.uint64) for node, home in self._homes.items() if not home.scratch}
            for node in due:
                self._homes[node].digest, self._homes[node].valid = None, ALL_BUCKETS
            self._sweep = _Sweep({}, [], due)

    def _step(self) -> None:
        sweep = self._sweep
        if sweep is None:
            return
        for node, home in self._homes.items():
            if home.queued > self._settings.queue_max // 2:
                if home.answers:
                    return  # it will have been told before long
                self._forget(node, home)  # nobody waits for it
        if not sweep.begun:
            sweep.begun = True
            for node, mask in sweep.scratch.items():
                self._homes[node].scratch &= ~mask
                self._homes[node].push(_Mark(begin=mask))
        sweep.after, pages = self._holdings.scan(sweep.after, self._settings.scan_keys)
        for ns, keys, shards, tiers in pages:
            self._sweep_page(sweep, ns, keys, shards, tiers)
        if sweep.after:
            return
        self._read()  # what the sweep has seen and no change told of yet: digests leave it out
        self._sweep = None
        for node, mask in sweep.scratch.items():
            self._homes[node].push(_Mark(end=mask))
        for node, words in (sweep.digests or {}).items():
            if node in self._homes and not self._homes[node].scratch:
                self._homes[node].digest = words

    def _sweep_page(self, sweep: _Sweep, ns: bytes, keys: Bytes, shards: Words, tiers: Bytes) -> None:
        now = self._keepers(ns, keys, self._told)
        before = [self._keepers(ns, keys, told) for told in sweep.before]
        none = np.zeros(len(keys), np.bool_)
        for node in sorted(now.keys() | sweep.scratch.keys() | set().union(*before)):
            kept = now.get(node, none)
            ever, always = kept, kept
            for each in before:
                earlier = each.get(node, none)
                ever, always = ever | earlier, always & earlier
            mask = sweep.scratch.get(node)
            # From scratch: and what it was told since its beginning, under a view that is past.
            due = ever & ~always if mask is None else (kept & _in_buckets(keys, mask)) | (ever & ~kept)
            self._queue(node, ns, keys[due])
        digests = sweep.digests or {}
        for node, chosen in now.items():
            if node in digests:
                digests[node] ^= claim_digests(namespace_word(ns), keys[chosen], shards[chosen], tiers[chosen])

    # ---- batches

    def _next(self, node: bytes, home: _Home) -> Announce | Digest | None:
        if home.queue or home.cleared:
            return self._batch(node, home)
        if home.digest is not None:
            digest, home.digest = home.digest, None
            return Digest(self._view.me, self._incarnation, home.sequence, digest, home.valid)
        return None

    def _batch(self, node: bytes, home: _Home) -> Announce:
        begin = end = 0
        taken: dict[bytes, list[Bytes]] = {}
        room = self._settings.announce_rows_max
        while home.queue and room > 0 and not end:
            item = home.queue[0]
            if isinstance(item, _Mark):
                if item.begin and (taken or begin):
                    break
                begin, end = begin | item.begin, item.end
                home.queue.popleft()
                continue
            home.queue.popleft()
            ns, keys = item
            if len(keys) > room:
                home.queue.appendleft((ns, keys[room:]))
                keys = keys[:room]
            taken.setdefault(ns, []).append(keys)
            room -= len(keys)
            home.queued -= len(keys)
        cleared, home.cleared = tuple(home.cleared), []
        home.sequence += 1
        rows = tuple(self._rows(node, ns, np.concatenate(parts)) for ns, parts in taken.items())
        return Announce(self._view.me, self._incarnation, home.sequence, rows, cleared, begin, end)

    def _rows(self, node: bytes, ns: bytes, keys: Bytes) -> Rows:
        shards, tiers = self._holdings.held(ns, keys)
        kept = np.zeros(len(keys), np.bool_)
        for places in self._told:
            kept |= places.of(ns).kept_by(node, keys)
        return Rows(ns, np.ascontiguousarray(keys[:, :16]), np.where(kept, shards, np.uint64(0)), tiers)


def _in_buckets(keys: Bytes, mask: int) -> npt.NDArray[np.bool_]:
    if mask == ALL_BUCKETS:
        return np.ones(len(keys), np.bool_)
    wanted = np.array([mask >> bucket & 1 for bucket in range(64)], np.bool_)
    return wanted[claim_buckets(keys)]
