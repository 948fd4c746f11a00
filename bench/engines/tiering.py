"""vLLM's own tiering on a CPU, imported by the engine that is asked to use it.

Its manager, its primary tier in shared memory and its secondary tiers are vLLM's and unchanged; only what copies
between the engine's cache and the primary tier is ours, because vLLM's wants a GPU's streams. It does what those do: a
thread a direction, in order, memcpy of whole pages without the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.gpu_worker import compute_sub_block_ptrs
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

__all__ = ["CpuTieringSpec"]


class CpuWorker(OffloadingWorker):
    """One cache group, one block of the engine a chunk."""

    def __init__(self, caches: CanonicalKVCaches, region: SharedOffloadRegion) -> None:
        assert len(caches.group_data_refs) == 1, "one cache group"
        self._region = region
        self._pages = [tensor.page_size_bytes for tensor in caches.tensors]
        self._engine = [
            tensor.tensor.view(torch.int8).view(-1, page)
            for tensor, page in zip(caches.tensors, self._pages, strict=True)
        ]
        self._host = [region.create_next_worker_view(page) for page in self._pages]
        self._stores, self._loads = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._under_way: dict[int, Future[tuple[int, float]]] = {}

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        return self._submit(self._stores, job_id, (self._engine, src_spec), (self._host, dst_spec))

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        return self._submit(self._loads, job_id, (self._host, src_spec), (self._engine, dst_spec))

    def _submit(self, threads: ThreadPoolExecutor, job: int, source: Any, target: Any) -> bool:
        self._under_way[job] = threads.submit(self._copy, source, target)
        return True

    def _copy(
        self, source: tuple[list[torch.Tensor], Any], target: tuple[list[torch.Tensor], Any]
    ) -> tuple[int, float]:
        begun, moved = time.monotonic(), 0
        (froms, from_spec), (tos, to_spec) = source, target
        count = len(from_spec.block_ids)
        addresses = np.empty((2, count), dtype=np.uint64)
        for source_tensor, target_tensor, page in zip(froms, tos, self._pages, strict=True):
            compute_sub_block_ptrs(from_spec.block_ids, 1, addresses[0], source_tensor)
            compute_sub_block_ptrs(to_spec.block_ids, 1, addresses[1], target_tensor)
            for source_at, target_at in zip(*addresses.tolist(), strict=True):
                ctypes.memmove(target_at, source_at, page)
            moved += count * page
        return moved, time.monotonic() - begun

    def get_finished(self) -> list[TransferResult]:
        results = []
        for job, future in list(self._under_way.items()):
            if future.done():
                moved, took = future.result()
                results.append(TransferResult(job, success=True, transfer_size=moved, transfer_time=took))
                del self._under_way[job]
        return results

    def wait(self, job_ids: set[int]) -> None:
        wait([self._under_way[job] for job in job_ids if job in self._under_way])

    def shutdown(self) -> None:
        for threads in (self._stores, self._loads):
            threads.shutdown()
        self._host.clear()
        self._region.cleanup()


class CpuTieringSpec(TieringOffloadingSpec):
    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        if self._worker is None:
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=0,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = CpuWorker(kv_caches, region)
        return self._worker
