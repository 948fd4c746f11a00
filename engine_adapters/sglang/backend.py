"""SGLang's HiCacheStorage over the store: what the engine calls, and what it is answered.

The engine calls from its prefetch thread (exists), its transfer thread (get) and its backup thread (set); its scheduler
only registers, clears and detaches. Nothing here raises into those threads: what fails is a miss, or a save that did
not happen. What is wrong with the configuration raises when the engine starts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, PoolTransferResult

from engine_adapters.base.weights import WeightsUnknown
from engine_adapters.sglang.engine import EngineFacts, facts_of
from engine_adapters.sglang.hits import wish_of
from engine_adapters.sglang.layout import KV, Group, Unsupported, describe
from engine_adapters.sglang.pages import Flat
from engine_adapters.sglang.settings import settings_of
from engine_adapters.sglang.stats import Stats
from engine_adapters.sglang.store import Pools
from kvstore.errors import Misconfigured

if TYPE_CHECKING:
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig, HiCacheStorageExtraInfo, PoolTransfer

__all__ = ["KVStoreBackend"]

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def _answers(nothing: Callable[..., R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """What a call is answered where something failed that nobody foresaw: said in the log, and no engine dies of it."""

    def wrap(call: Callable[P, R]) -> Callable[P, R]:
        @wraps(call)
        def wrapped(*given: P.args, **named: P.kwargs) -> R:
            try:
                return call(*given, **named)
            except Exception:
                backend: Any = given[0]
                backend.stats.add("errors")
                log.exception("%s failed; the engine goes on without the store", call.__name__)
                return nothing(*given, **named)

        return wrapped

    return wrap


def _none_of(_self: object, keys: Sequence[str], *_rest: object, **_named: object) -> list[bool]:
    return [False] * len(keys)


def _none_of_each(_self: object, transfers: Sequence[PoolTransfer], *_rest: object, **_named: object) -> dict[Any, Any]:
    return {transfer.name: [False] * len(transfer.keys or ()) for transfer in transfers}


class KVStoreBackend(HiCacheStorage):  # type: ignore[misc]
    """facts: what the engine says of its model; asked of it where it is not given."""

    def __init__(
        self,
        storage_config: HiCacheStorageConfig,
        _more: object = None,
        facts: Callable[[str], EngineFacts] = facts_of,
    ) -> None:
        self.settings, self._direct = settings_of(storage_config.extra_config)
        if storage_config.tp_lcm_size:  # taken out of the extra config by the engine
            raise Misconfigured(f"tp_lcm_size = {storage_config.tp_lcm_size}: ranks of other counts share no blocks")
        self.config, self._facts = storage_config, facts
        self.stats = Stats()
        self._host: dict[str, Any] = {}
        self._pools: Pools | None = None
        self._settled = False  # whether the pools are as they were when `_pools` was made
        self._settling = threading.Lock()
        self._told = False

    # ---- what there is to store

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        super().register_mem_pool_host(mem_pool_host)
        self._registered(KV, mem_pool_host)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        self._registered(str(getattr(host_pool_name, "value", host_pool_name)), host_pool)

    def _registered(self, name: str, pool: Any) -> None:
        with self._settling:
            self._settled = self._settled and self._host.get(name) is pool
            self._host[name] = pool

    def on_host_pools_registered(self) -> None:
        self._store()

    def _store(self) -> Pools | None:
        """Made anew when a pool was added: it is another layout then. None where the store cannot be used."""
        if self._settled:
            return self._pools
        with self._settling:
            if not self._settled and KV in self._host:
                old, self._pools, self._settled = self._pools, None, True
                try:
                    self._pools = self._made()
                except (Unsupported, WeightsUnknown) as error:
                    log.error("the store is not used: %s", error)
                finally:
                    if old is not None:
                        old.close()
            return self._pools

    def _made(self) -> Pools:
        config = self.config
        facts = self._facts(self.settings.revision)
        layout, groups = describe(config, self._host, facts, direct=self._direct)
        log.info("%s: %s", layout.content_format, {name: group.pages.form for name, group in groups.items()})
        several = max(config.tp_size, config.pp_size, config.attn_cp_size) > 1
        return Pools(self.settings, layout, groups, self.stats, several=several)

    def _before(self, extra_info: HiCacheStorageExtraInfo | None) -> list[str] | None:
        return extra_info.prefix_keys if extra_info is not None else None

    # ---- exists

    @_answers(lambda *_: 0)
    def batch_exists(self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None) -> int:
        store = self._store()
        found = store.found(keys, self._before(extra_info), ()) if store is not None else None
        return found.promise.end if found is not None else 0

    @_answers(lambda *_: PoolTransferResult.empty())
    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        store = self._store()
        if store is None:
            return PoolTransferResult.empty()
        wishes = [wish_of(self._group(store, transfer.name), transfer, keys) for transfer in pool_transfers or ()]
        found = store.found(keys, self._before(extra_info), wishes)
        if found is None:
            return PoolTransferResult.empty()
        end = found.promise.end
        lower = list(range(1, end + 1)) if found.lower is None else [boundary for boundary in found.lower if boundary]
        return PoolTransferResult(end, {name: pages for name, pages in found.pools.items() if pages}, lower)

    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    # ---- get and set, pages where they lie

    @_answers(_none_of)
    def batch_get_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        store = self._store()
        if store is None or KV not in store.groups:
            return [store is not None] * len(keys)  # an anchor without memory has nothing to fetch
        return store.load(store.groups[KV], keys, self._before(extra_info), host_indices)

    @_answers(_none_of)
    def batch_set_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        store = self._store()
        if store is None or KV not in store.groups:
            return [store is not None] * len(keys)
        before = self._before(extra_info)
        self._tell_orphans(before)
        return store.save(store.groups[KV], keys, before, host_indices)

    @_answers(_none_of_each)
    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[Any, list[bool]]:
        store, before = self._store(), self._before(extra_info)
        if store is None:
            return _none_of_each(self, transfers)
        return {
            transfer.name: store.load(
                self._group(store, transfer.name), transfer.keys or [], before, transfer.host_indices
            )
            for transfer in transfers
        }

    @_answers(_none_of_each)
    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[Any, list[bool]]:
        store, before = self._store(), self._before(extra_info)
        if store is None:
            return _none_of_each(self, transfers)
        return {
            transfer.name: store.save(
                self._group(store, transfer.name), transfer.keys or [], before, transfer.host_indices
            )
            for transfer in transfers
        }

    @staticmethod
    def _group(store: Pools, name: Any) -> Group:
        return store.groups[str(getattr(name, "value", name))]

    def _tell_orphans(self, before: object) -> None:
        if before is None and not self._told:
            self._told = True
            log.warning(
                "pages come without what is before them: set hicache_storage_pass_prefix_keys to true, or the store "
                "cannot know which pages build on which and evicts the beginnings of prompts too early"
            )

    # ---- get and set, pages copied: the interface that the engine uses without "interface_v1"

    @_answers(lambda _self, keys, *_, **__: [None] * len(keys))
    def batch_get(
        self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[torch.Tensor | None]:
        store, flat = self._copied()
        if store is None or flat is None:
            return [None] * len(keys)
        into = flat.room(len(keys))
        there = store.load_into(store.groups[KV], keys, None, into, lambda _pages: None)
        return [page if ok else None for ok, page in zip(there, flat.unpacked(into), strict=True)]

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> torch.Tensor | None:
        return self.batch_get([key])[0]

    @_answers(lambda *_, **__: False)
    def batch_set(
        self, keys: list[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        store, flat = self._copied()
        if store is None or flat is None or values is None:
            return False
        return all(store.save_from(store.groups[KV], keys, None, lambda: flat.packed(values)))

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        return self.batch_set([key], None if value is None else [value])

    def _copied(self) -> tuple[Pools | None, Flat | None]:
        store = self._store()
        if store is None or KV not in store.groups:
            return None, None
        pages = store.groups[KV].pages
        if not isinstance(pages, Flat):
            raise NotImplementedError("with interface_v1 pages are not copied: batch_get_v1, batch_set_v1")
        return store, pages

    # ---- the rest

    def clear(self) -> None:
        """Of the whole namespace, for every engine that shares it."""
        store = self._store()
        if store is not None:
            store.clear()

    def get_stats(self) -> Any:
        return self.stats.take()

    def close(self) -> None:
        with self._settling:
            pools, self._pools, self._settled = self._pools, None, True
        if pools is not None:
            log.info("store: %s", {name: value for name, value in self.stats.counts().items() if value})
            pools.close()
