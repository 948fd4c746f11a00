"""Runs in SGLang's venv: the engine's own host pools, made on this CPU, and the backend over them; no model.

    python -m tests.engines.sglang_pools ADDRESS     (one line of JSON: what each case saw)

For the layouts and pools that no engine can be started with on a CPU: their device copies are CUDA kernels, but what
lies in host memory and how pages are addressed there is the engine's code all the same.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from sglang.srt.mem_cache import device_pool_info as info
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
)
from sglang.srt.mem_cache.pool_host.base import host_memory_budget_scope
from sglang.srt.mem_cache.pool_host.mamba import MambaPoolHost
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost

from engine_adapters.sglang import KVStoreBackend
from engine_adapters.sglang.engine import EngineFacts

PAGE, LAYERS, HEADS, WIDTH = 16, 3, 2, 32
HOST_TOKENS = PAGE * 24
CPU = torch.device("cpu")
FACTS = EngineFacts("tiny", "made", "float32", 24, {})
CONFIG = HiCacheStorageConfig(
    tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1, is_mla_model=False,
    enable_storage_metrics=True, is_page_first_layout=False, model_name="tiny",
)  # fmt: skip


def mha(layout: str) -> Any:
    rows = tuple(torch.zeros(PAGE, HEADS, WIDTH) for _ in range(LAYERS))
    pointers = torch.tensor([row.data_ptr() for row in rows], dtype=torch.uint64)
    buffers = info.KVBuffers(k=rows, v=rows, k_data_ptrs=pointers, v_data_ptrs=pointers, layout=info.KVBufferLayout.NHD)
    geometry = info.MHABufferInfo(
        buffers=buffers,
        page_size=PAGE,
        head_num=HEADS,
        head_dim=WIDTH,
        v_head_dim=WIDTH,
        dtype=torch.float32,
        device=CPU,
    )
    return MHATokenToKVPoolHost(
        geometry, 1.0, 0, PAGE, layout, pin_memory=False, device_capacity_tokens=PAGE, start_layer=0,
        end_layer=LAYERS - 1, host_token_capacity=HOST_TOKENS,
    )  # fmt: skip


def mla(layout: str) -> Any:
    rows = tuple(torch.zeros(PAGE, 1, 64 + 16) for _ in range(LAYERS))
    geometry = info.MLABufferInfo(
        buffers=rows, data_ptrs=torch.tensor([row.data_ptr() for row in rows], dtype=torch.uint64),
        layer_indices=tuple(range(LAYERS)), device_layer_num=LAYERS, page_size=PAGE, kv_lora_rank=64,
        qk_rope_head_dim=16, kv_cache_dim=80, dtype=torch.float32, device=CPU,
    )  # fmt: skip
    return MLATokenToKVPoolHost(
        geometry, 1.0, 0, PAGE, layout, pin_memory=False, device_capacity_tokens=PAGE, start_layer=0,
        end_layer=LAYERS - 1, target_layer_num=LAYERS, host_token_capacity=HOST_TOKENS,
    )  # fmt: skip


def mamba() -> Any:
    state = info.MambaStateBufferInfo(temporal=torch.zeros(2, 24, 4, 32, 8), conv=(torch.zeros(2, 24, 3, 48),))
    return MambaPoolHost(state, 1.0, 0, device_capacity=23, pin_memory=False, layout="page_first")


def backend(
    address: str, pools: dict[Any, Any], *, mla_model: bool = False, ranks: int = 1, rank: int = 0, **extra: Any
) -> KVStoreBackend:
    given = {"interface_v1": 1, "address": address, **extra}
    config = replace(CONFIG, extra_config=given, is_mla_model=mla_model, tp_size=ranks, tp_rank=rank)
    made = KVStoreBackend(config, {}, lambda _revision: FACTS)
    made.register_mem_pool_host(pools[PoolName.KV])
    for name, pool in pools.items():
        made.register_mem_host_pool_v2(pool, name)
    made.on_host_pools_registered()
    return made


def hashes(count: int, seed: str) -> list[str]:
    return [f"{seed}{number:02d}".encode().hex().ljust(64, "0") for number in range(count)]


def fill(pool: Any, value: Callable[[torch.Tensor], object]) -> None:
    """Everything that the pool has in host memory."""
    buffers = pool.kv_buffer if isinstance(pool.kv_buffer, list | tuple) else [pool.kv_buffer]
    for buffer in buffers:
        value(buffer)


def wanted(pool: Any, pages: int) -> tuple[torch.Tensor, list[int]]:
    indices = pool.alloc(pages * pool.page_size)
    return indices, indices[:: pool.page_size].tolist()


def shuffled(pool: Any, pages: int) -> tuple[torch.Tensor, list[int]]:
    """Pages that do not follow one another in the pool."""
    indices, _ = wanted(pool, pages)
    indices = indices.reshape(pages, -1).flip(0).reshape(-1)
    return indices, indices[:: pool.page_size].tolist()


def round_trip(address: str, seed: str, pool: Any, **extra: Any) -> dict[str, Any]:
    """Five pages set, in two calls, and got into other places of the pool, in other calls; one beyond is asked for."""
    store = backend(address, {PoolName.KV: pool}, **extra)
    names = hashes(5, seed)
    fill(pool, lambda buffer: buffer.normal_())
    source, firsts = shuffled(pool, 5)
    before = [pool.get_data_page(first, flat=True).clone() for first in firsts]
    cut = 2 * pool.page_size
    setting = store.batch_set_v1(names[:2], source[:cut], HiCacheStorageExtraInfo([]))
    setting += store.batch_set_v1(names[2:], source[cut:], HiCacheStorageExtraInfo(names[:2]))
    found = store.batch_exists([*names, "ab" * 32], HiCacheStorageExtraInfo([]))
    middle = store.batch_exists(names[3:], None)
    fill(pool, lambda buffer: buffer.zero_())
    target, places = shuffled(pool, 6)
    getting = store.batch_get_v1([*names, "ab" * 32], target, HiCacheStorageExtraInfo([]))
    equal = [bool(torch.equal(pool.get_data_page(p, flat=True), page)) for p, page in zip(places, before, strict=False)]
    missed = bool(pool.get_data_page(places[5], flat=True).any())
    said = {"set": setting, "found": found, "middle": middle, "get": getting, "equal": equal, "missed": missed,
            "format": store._store().layout.content_format, "stats": store.stats.counts(),
            "bandwidths": len(store.get_stats().backup_bandwidth)}  # fmt: skip
    store.close()
    return said


def copying(address: str) -> dict[str, Any]:
    """The interface without zero-copy, as HiCacheController's _generic_page_set and _generic_page_get use it."""
    pool = mha("page_first")
    store = backend(address, {PoolName.KV: pool}, interface_v1=0)
    names = hashes(3, "copying")
    fill(pool, lambda buffer: buffer.normal_())
    _, firsts = shuffled(pool, 3)
    pages = [pool.get_data_page(first).clone() for first in firsts]
    ok = store.batch_set(names, pages)
    got = store.batch_get([*names, "cd" * 32], [pool.get_dummy_flat_data_page() for _ in range(4)])
    said = {"set": ok, "exists": [store.exists(names[2]), store.exists("cd" * 32)], "missing": got[3] is None,
            "equal": [bool(torch.equal(page.flatten(), there)) for page, there in zip(pages, got, strict=False)],
            "one": bool(torch.equal(store.get(names[1]), pages[1].flatten()))}  # fmt: skip
    direct = backend(address, {PoolName.KV: pool})
    said["other_form"] = direct.batch_exists(names, None)
    said["refused"] = direct.batch_set(names, pages)
    for each in (store, direct):
        each.close()
    return said


def unselectable(address: str) -> dict[str, Any]:
    """A layout whose pages the engine itself cannot address: nothing is stored, and nothing raises."""
    pool = mha("page_unified")
    store = backend(address, {PoolName.KV: pool})
    indices, _ = wanted(pool, 2)
    names = hashes(2, "unified")
    said = {"set": store.batch_set_v1(names, indices), "found": store.batch_exists(names, None)}
    store.close()
    return said


def sidecars(address: str) -> dict[str, Any]:
    """KV with an indexer (every page), a window (the last two) and a state (the last one)."""
    pools = {PoolName.KV: mha("page_first"), PoolName.INDEXER: mha("layer_first"), PoolName.SWA: mha("page_first"),
             PoolName.MAMBA: mamba()}  # fmt: skip
    store = backend(address, pools)
    names = hashes(8, "sides")
    info_of = HiCacheStorageExtraInfo

    def transfer(pool: PoolName, keys: list[str], **more: Any) -> PoolTransfer:
        return PoolTransfer(pool, host_indices=pools[pool].alloc(len(keys) * pools[pool].page_size), keys=keys, **more)

    for pool in pools.values():
        fill(pool, lambda buffer: buffer.normal_())
    kv, _ = shuffled(pools[PoolName.KV], 8)
    said: dict[str, Any] = {"kv": store.batch_set_v1(names, kv, info_of([]))}
    stored = [
        ([transfer(PoolName.INDEXER, names[:7])], []),
        ([transfer(PoolName.SWA, names[2:5])], names[:2]),
        ([transfer(PoolName.MAMBA, names[1:2])], names[:1]),
        ([transfer(PoolName.MAMBA, names[3:4])], names[:3]),
    ]
    said["set"] = [store.batch_set_v2(each, info_of(before)) for each, before in stored]
    kept = {
        name: [
            pools[name].get_data_page(int(i), flat=True).clone() for i in each.host_indices[:: pools[name].page_size]
        ]
        for (each,), _ in (stored[0], stored[1], stored[3])
        for name in (each.name,)
    }

    trailing = PoolHitPolicy.TRAILING_PAGES
    asked = {
        "every": [PoolTransfer(PoolName.INDEXER)],
        "window": [PoolTransfer(PoolName.SWA, keys=names[-2:], hit_policy=trailing)],
        "state": [PoolTransfer(PoolName.MAMBA, keys=names[-1:], hit_policy=trailing)],
        "all": [
            PoolTransfer(PoolName.INDEXER),
            PoolTransfer(PoolName.SWA, keys=names[-2:], hit_policy=trailing),
            PoolTransfer(PoolName.MAMBA, keys=names[-1:], hit_policy=trailing),
        ],
        "nothing": [PoolTransfer(PoolName.SWA, keys=names[-4:], hit_policy=trailing)],
        "groups": [
            PoolTransfer(
                PoolName.INDEXER, keys=names, hit_policy=PoolHitPolicy.BLOCK_GROUPS, block_pages=2, group_pages=2
            )
        ],
    }
    for case, transfers in asked.items():
        result = store.batch_exists_v2(names, transfers, info_of([]))
        pages = {str(name): count for name, count in result.extra_pool_hit_pages.items()}
        said[case] = [result.kv_hit_pages, pages, result.restorable_prefix_pages]

    for pool in pools.values():
        fill(pool, lambda buffer: buffer.zero_())
    back = [
        transfer(PoolName.INDEXER, names[:7]),
        transfer(PoolName.SWA, names[2:5]),
        transfer(PoolName.MAMBA, names[3:4]),
    ]
    results = [store.batch_get_v2([each], info_of([])) for each in back]
    said["get"] = [{str(name): list(ok) for name, ok in each.items()} for each in results]
    said["equal"] = {
        each.name.value: all(
            torch.equal(pools[each.name].get_data_page(int(i), flat=True), page)
            for i, page in zip(each.host_indices[:: pools[each.name].page_size], kept[each.name], strict=True)
        )
        for each in back
    }
    said["short"] = store.batch_get_v2([transfer(PoolName.INDEXER, names[5:8])], info_of(names[:5]))[PoolName.INDEXER]
    said["misfit"] = store.batch_set_v2(
        [PoolTransfer(PoolName.SWA, host_indices=torch.arange(3), keys=names[:2])], info_of([])
    )[PoolName.SWA]
    said["errors"] = store.stats.counts()["errors"]
    late = mha("page_first")
    store.register_mem_host_pool_v2(late, PoolName.DRAFT)
    said["late"] = store.batch_exists(names, None)  # another pool is another layout
    store.close()
    return said


def agreeing(address: str) -> dict[str, Any]:
    """One of two ranks: each tells every boundary that it can restore, so that they can agree on one."""
    pools = {PoolName.KV: mha("page_first"), PoolName.MAMBA: mamba()}
    store = backend(address, pools, ranks=2)
    names = hashes(8, "agreeing")
    kv, _ = shuffled(pools[PoolName.KV], 8)
    store.batch_set_v1(names, kv, HiCacheStorageExtraInfo([]))
    for page in (1, 3, 6):
        state = PoolTransfer(PoolName.MAMBA, host_indices=pools[PoolName.MAMBA].alloc(1), keys=[names[page]])
        store.batch_set_v2([state], HiCacheStorageExtraInfo(names[:page]))
    wish = PoolTransfer(PoolName.MAMBA, keys=names[-1:], hit_policy=PoolHitPolicy.TRAILING_PAGES)
    found = store.batch_exists_v2(names, [wish], HiCacheStorageExtraInfo([]))
    other = backend(address, {PoolName.KV: mha("page_first"), PoolName.MAMBA: mamba()}, ranks=2, rank=1)
    said = {"found": found.kv_hit_pages, "boundaries": found.restorable_prefix_pages,
            "other_rank": other.batch_exists(names, None)}  # fmt: skip
    for each in (store, other):
        each.close()
    return said


def promises(address: str) -> dict[str, Any]:
    """What was told is held until it is fetched, or for a while; and no more than the budget."""
    pool = mha("page_first")
    store = backend(address, {PoolName.KV: pool}, handover_ms=60_000)
    names = hashes(6, "promises")
    indices, _ = wanted(pool, 6)
    store.batch_set_v1(names, indices, HiCacheStorageExtraInfo([]))
    kept = store._store().promised
    said: dict[str, Any] = {"before": len(kept)}
    store.batch_exists(names, None)
    said["told"] = len(kept)
    cut = 4 * PAGE
    store.batch_get_v1(names[:4], indices[:cut], None)
    said["partly"] = len(kept)
    store.batch_get_v1(names[4:], indices[cut:], None)
    said["fetched"] = len(kept)
    store.close()
    store = backend(address, {PoolName.KV: pool}, handover_ms=300)
    kept = store._store().promised
    said["found"] = store.batch_exists(names, None)
    end = time.monotonic() + 10
    while len(kept) and time.monotonic() < end:
        time.sleep(0.05)
    said["lapsed"] = len(kept)
    store.close()
    small = backend(address, {PoolName.KV: pool}, promise_bytes_max=1 << 20, handover_ms=60_000)
    page = sum(small._store().groups["kv"].pages.layer_bytes)
    said["affordable"] = [small.batch_exists(names, None), (1 << 20) // page]
    small._store()._budget.take(small._store()._budget._left - page)
    said["crowded"] = small.batch_exists(names, None)
    small.close()
    return said


def main() -> None:
    address = sys.argv[1]
    said: dict[str, Any] = {}
    with host_memory_budget_scope(1 << 30):
        for layout in ("layer_first", "page_first", "page_first_direct", "page_head"):
            said[f"mha {layout}"] = round_trip(address, layout[:12] + layout[-4:], mha(layout))
        for layout in ("layer_first", "page_first", "page_first_direct"):
            said[f"mla {layout}"] = round_trip(address, layout[:12] + layout[-4:], mla(layout), mla_model=True)
        for case in (copying, unselectable, sidecars, agreeing, promises):
            said[case.__name__] = case(address)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
