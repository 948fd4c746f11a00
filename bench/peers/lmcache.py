"""LMCache's engine in one process over its LocalCPU backend, with a connector that copies from and to host memory.

torch copies with one thread: with more it does worse on few cores. Retrieving includes hashing the tokens; lookups are
of hashes that are there already.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

os.environ.setdefault("LMCACHE_LOG_LEVEL", "WARNING")  # it reads it when it is imported
os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")

import numpy as np
import torch
from lmcache.utils import mock_up_broadcast_fn, mock_up_broadcast_object_fn
from lmcache.v1.cache_engine import LMCacheEngine, LMCacheEngineBuilder
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.gpu_connector import GPUConnectorInterface
from lmcache.v1.memory_management import MemoryObj
from lmcache.v1.metadata import LMCacheMetadata

from bench.peers import work
from bench.peers.serve import Works, gib_per_s, median_us, serve

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
TOKENS = 16  # a chunk
HEADS = 8


class HostConnector(GPUConnectorInterface):
    """Chunk i of a call lies at place i of `host`: a tensor of bytes."""

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes = block_bytes

    def _place(self, host: torch.Tensor, start: int) -> torch.Tensor:
        at = start // TOKENS * self.block_bytes
        return host[at : at + self.block_bytes]

    def from_gpu(self, memory_obj: MemoryObj, start: int, _end: int, *, host: torch.Tensor) -> None:
        memory_obj.tensor.view(-1).view(torch.uint8).copy_(self._place(host, start))

    def to_gpu(self, memory_obj: MemoryObj, start: int, _end: int, *, host: torch.Tensor) -> None:
        self._place(host, start).copy_(memory_obj.tensor.view(-1).view(torch.uint8))

    def batched_from_gpu(
        self, memory_objs: Sequence[MemoryObj], starts: Sequence[int], ends: Sequence[int], *, host: torch.Tensor
    ) -> None:
        for memory_obj, start, end in zip(memory_objs, starts, ends, strict=True):
            self.from_gpu(memory_obj, start, end, host=host)

    def batched_to_gpu(
        self, memory_objs: Sequence[MemoryObj], starts: Sequence[int], ends: Sequence[int], *, host: torch.Tensor
    ) -> None:
        for memory_obj, start, end in zip(memory_objs, starts, ends, strict=True):
            self.to_gpu(memory_obj, start, end, host=host)

    def get_shape(self, num_tokens: int) -> torch.Size:
        return torch.Size([2, 1, num_tokens, self.block_bytes // TOKENS // 4])


def engine_of(block_bytes: int, pool_bytes: int) -> LMCacheEngine:
    """Blocks of one layer of TOKENS tokens in bfloat16."""
    config = LMCacheEngineConfig.from_defaults(
        chunk_size=TOKENS, local_cpu=True, max_local_cpu_size=pool_bytes / GIB, lmcache_instance_id=str(block_bytes)
    )
    metadata = LMCacheMetadata(
        model_name="bench",
        world_size=1,
        local_world_size=1,
        worker_id=0,
        local_worker_id=0,
        kv_dtype=torch.bfloat16,
        kv_shape=(1, 2, TOKENS, HEADS, block_bytes // TOKENS // HEADS // 4),
        chunk_size=TOKENS,
    )
    engine = LMCacheEngineBuilder.get_or_create(
        str(block_bytes),
        config,
        metadata,
        HostConnector(block_bytes),
        mock_up_broadcast_fn,
        mock_up_broadcast_object_fn,
    )
    engine.post_init()
    return engine


class Blocks:
    """Prompts of `batch` blocks of one size that the engine holds."""

    def __init__(self, source: torch.Tensor, target: torch.Tensor, block_bytes: int, batch: int) -> None:
        self.engine = engine_of(block_bytes, 2 * work.HELD_BYTES)
        self.source, self.target = source, target
        self.batch, self.span = batch, block_bytes * batch
        self.random = np.random.default_rng(1)
        self.places = work.HELD_BYTES // self.span
        self.fresh = self.places
        for place in range(self.places):
            self.engine.store(self.prompt(place), host=self.piece(source, place))

    def prompt(self, number: int) -> torch.Tensor:
        count = self.batch * TOKENS
        return torch.arange(number * count, (number + 1) * count)

    def piece(self, buffer: torch.Tensor, place: int) -> torch.Tensor:
        return buffer[place * self.span : (place + 1) * self.span]

    def get(self) -> float:
        number, place = (int(n) for n in self.random.integers(self.places, size=2))
        tokens, into = self.prompt(number), self.piece(self.target, place)
        rate = gib_per_s(self.span, lambda: self.engine.retrieve(tokens, host=into))
        if not torch.equal(into, self.piece(self.source, number)):
            raise RuntimeError("the bytes that came are not those that went")
        return rate

    def put(self) -> float:
        self.fresh += 1
        tokens, host = self.prompt(self.fresh), self.piece(self.source, int(self.random.integers(self.places)))
        rate = gib_per_s(self.span, lambda: self.engine.store(tokens, host=host))
        if self.engine.lookup(tokens) != len(tokens):
            raise RuntimeError("what was put is not held")
        self.engine.clear(tokens)  # off the clock: nothing that gets are drawn from is evicted
        return rate


class Lookups:
    """HELD_KEYS small chunks, in prompts of LOOKUP_KEYS."""

    def __init__(self) -> None:
        self.engine = engine_of(4 * KIB, work.HELD_KEYS * 5 * KIB)
        self.random = np.random.default_rng(2)
        self.hashes: list[list[object]] = []
        host = torch.zeros(work.LOOKUP_KEYS * 4 * KIB, dtype=torch.uint8)
        count = work.LOOKUP_KEYS * TOKENS
        for number in range(work.HELD_KEYS // work.LOOKUP_KEYS):
            tokens = torch.arange(number * count, (number + 1) * count)
            self.engine.store(tokens, host=host)
            self.hashes.append([made[2] for made in self.engine.token_database.process_tokens(tokens, make_key=False)])
        self.offsets = [TOKENS] * work.LOOKUP_KEYS

    def lookup(self) -> float:
        def look() -> None:
            hashes = self.hashes[int(self.random.integers(len(self.hashes)))]
            if self.engine.lookup(hashes=hashes, offsets=self.offsets) != work.LOOKUP_KEYS * TOKENS:
                raise RuntimeError("a held prompt was not found")

        return median_us(look)


@contextmanager
def peer() -> Iterator[Works]:
    torch.set_num_threads(1)
    source = torch.from_numpy(np.random.default_rng(1).integers(0, 256, work.HELD_BYTES, dtype=np.uint8))
    target = torch.zeros_like(source)
    large = Blocks(source, target, 2 * MIB, work.BATCH_2MIB)
    small = Blocks(source, target, 64 * KIB, work.BATCH_64KIB)
    yield {
        work.GET_2MIB: large.get,
        work.PUT_2MIB: large.put,
        work.GET_64KIB: small.get,
        work.PUT_64KIB: small.put,
        work.LOOKUP: Lookups().lookup,
    }


if __name__ == "__main__":
    serve(peer)
