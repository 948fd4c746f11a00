"""One engine rank's pools and the store: pages found, held, fetched and published. Called by the engine's own prefetch
and backup threads, which may wait; nothing here raises because of the store.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from engine_adapters.base.link import Link
from engine_adapters.base.promises import Budget, Crowded
from engine_adapters.sglang.hits import Hit, Wish, hit
from engine_adapters.sglang.keys import event_hash, run_of
from engine_adapters.sglang.layout import KV, Group
from engine_adapters.sglang.promised import Promised
from kvstore import PutOutcome
from kvstore.block_meta import metas_of
from kvstore.errors import KvStoreError
from kvstore.layout import KVLayout, Need

if TYPE_CHECKING:
    import torch

    from engine_adapters.base.settings import AdapterSettings
    from engine_adapters.sglang.stats import Stats
    from kvstore import Namespace

__all__ = ["Pools"]

log = logging.getLogger(__name__)

CLEAR_S: Final = 5.0
_THERE: Final = (PutOutcome.STORED, PutOutcome.HELD, PutOutcome.PENDING)


class Pools:
    """groups: by the pools' names. several: other ranks must agree on what is found."""

    def __init__(
        self, settings: AdapterSettings, layout: KVLayout, groups: Mapping[str, Group], stats: Stats, *, several: bool
    ) -> None:
        self.layout, self.groups = layout, groups
        self._settings, self._stats, self._several = settings, stats, several
        self._link = Link(settings, layout)
        self._budget = Budget(settings.promise_bytes_max)
        self.promised = Promised(settings.handover_ms / 1e3)
        self._link.client.register([buffer for group in groups.values() for buffer in group.pages.buffers])

    # ---- found

    def found(self, hashes: Sequence[str], before: Sequence[str] | None, wishes: Sequence[Wish]) -> Hit | None:
        """What may be told to the engine, held from here on; None where nothing is to be had. wishes: of sidecars."""
        self._stats.add("lookups")
        until = time.monotonic() + self._settings.lookup_ms / 1e3
        namespace = self._link.namespace()
        if namespace is None or not hashes or self._settings.load == "none":
            return None
        primary = [Wish(KV, Need(self.groups[KV].shard))] if KV in self.groups else []
        every = [*primary, *wishes]
        try:
            found = hit(namespace, self.layout, hashes, before, every, self._budget, until, several=self._several)
        except Crowded:
            self._stats.add("promises_refused")
            return None
        except KvStoreError as error:
            self._link.failed(error)
            return None
        self._link.worked()
        if found.promise.blocks:
            self._stats.add("promised_pages", found.promise.blocks)
            last = hashes[found.promise.end - 1]
            self.promised.keep(found.promise, last, {wish.need.shard for wish in every if wish.gates})
        return found

    # ---- fetched

    def load(
        self, group: Group, hashes: Sequence[str], before: Sequence[str] | None, indices: torch.Tensor
    ) -> list[bool]:
        """One answer a page; those behind one that did not arrive are not to be had either."""
        if not _fit(group, hashes, indices):
            return [False] * len(hashes)
        into, arrived = group.pages.target(indices)
        return self.load_into(group, hashes, before, into, arrived)

    def load_into(
        self,
        group: Group,
        hashes: Sequence[str],
        before: Sequence[str] | None,
        into: object,
        arrived: Callable[[int], None],
    ) -> list[bool]:
        begun, pages = time.monotonic(), 0
        deadline_s = self._settings.load_ms / 1e3
        namespace = self._link.namespace()
        try:
            if namespace is not None and hashes and self._settings.load != "none":
                run = run_of(namespace, hashes, before)
                pages = namespace.get(
                    run.keys,
                    into,
                    shard=group.shard,
                    position=run.position,
                    wait_s=deadline_s,
                    deadline_s=deadline_s,
                ).blocks
                arrived(pages)
                self._link.worked()
        except KvStoreError as error:
            self._link.failed(error)
        finally:
            self.promised.fetched(hashes, group.shard)
        took = time.monotonic() - begun
        self._stats.moved("load", pages, pages * self._size(group), took, whole=pages == len(hashes))
        return [True] * pages + [False] * (len(hashes) - pages)

    # ---- published

    def save(
        self, group: Group, hashes: Sequence[str], before: Sequence[str] | None, indices: torch.Tensor
    ) -> list[bool]:
        """One answer a page: whether it is in the store, or on its way there by somebody else."""
        if not _fit(group, hashes, indices):
            return [False] * len(hashes)
        return self.save_from(group, hashes, before, lambda: group.pages.source(indices))

    def save_from(
        self, group: Group, hashes: Sequence[str], before: Sequence[str] | None, source: Callable[[], object]
    ) -> list[bool]:
        """source: what a put takes; asked for only where there is somebody to take it."""
        begun, pages = time.monotonic(), 0
        there = [False] * len(hashes)
        namespace = self._link.namespace()
        try:
            if namespace is not None and hashes and self._settings.save != "none":
                there, pages = self._put(namespace, group, hashes, before, source())
                self._link.worked()
        except KvStoreError as error:
            self._link.failed(error)
        took = time.monotonic() - begun
        self._stats.moved("save", pages, pages * self._size(group), took, whole=all(there))
        return there

    def _put(
        self, namespace: Namespace, group: Group, hashes: Sequence[str], before: Sequence[str] | None, source: object
    ) -> tuple[list[bool], int]:
        run = run_of(namespace, hashes, before)
        done = namespace.put(
            run.keys,
            source,
            shard=group.shard,
            parent=run.parent,
            position=run.position,
            metas=self._metas(group, hashes, before),
            deadline_s=self._settings.save_ms / 1e3,
        )
        there = [PutOutcome(outcome) in _THERE for outcome in done.outcomes.tolist()]
        return there + [False] * (len(hashes) - len(there)), done.stored

    def _metas(self, group: Group, hashes: Sequence[str], before: Sequence[str] | None) -> list[bytes]:
        """What is told of pages in the engine's words, their tokens left out, which it does not say here."""
        return metas_of(
            [event_hash(name) for name in hashes],
            parent=event_hash(before[-1]) if before else None,
            tokens=(),
            block_tokens=self.layout.block_tokens,
            group=[each.name for each in self.layout.groups].index(group.name),
        )

    # ---- the rest

    def clear(self) -> None:
        namespace = self._link.namespace()
        if namespace is None:
            log.error("the store is not to be had: nothing was cleared")
            return
        try:
            namespace.clear(deadline_s=CLEAR_S)
        except KvStoreError as error:
            log.error("nothing was cleared: %s", error)
            self._link.failed(error)

    def close(self) -> None:
        self.promised.close()
        self._link.close()

    def _size(self, group: Group) -> int:
        return sum(group.pages.layer_bytes)


def _fit(group: Group, hashes: Sequence[str], indices: Any) -> bool:
    """Whether there is one page of the pool for each hash."""
    given = 0 if indices is None else int(indices.numel())
    if given == len(hashes) * group.pages.slots:
        return True
    log.error("pool %s: %d indices for %d pages of %d", group.name, given, len(hashes), group.pages.slots)
    return False
