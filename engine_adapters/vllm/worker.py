"""A worker's half: blocks between this rank's cache and the store, by threads of its own.

Rules
- Nothing here raises into the engine because of the store. A load that fails is told by block (one cache group) or by
  request (several), and the engine computes instead.
- A layer-wise load that failed leaves blocks that the running step reads all the same: the engine throws that step
  away once it hears of it. Until it has, nothing is saved, or the store would be given what was computed from them.
- What a save reads was written before it: by the step it was submitted in (on a device: once its stream got there).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import torch

from engine_adapters.base.link import Link
from engine_adapters.base.pieces import Pieces
from engine_adapters.base.workers import Workers
from engine_adapters.vllm.events import metas_of_note
from engine_adapters.vllm.layerwise import Layerwise
from engine_adapters.vllm.layout import Unsupported, describe
from engine_adapters.vllm.meta import Load, Save, StepMeta, WorkerMeta
from engine_adapters.vllm.stats import Stats
from kvstore import Ended, Extents, Got, Hints, Namespace, Stored
from kvstore.errors import KvStoreError
from kvstore.layout import KVLayout

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from engine_adapters.base.settings import AdapterSettings

__all__ = ["StoreWorker"]

log = logging.getLogger(__name__)

QUEUED_MAX: Final = 65_536  # the scheduler's budget and pins bound them first
CLOSE_S_MAX: Final = 5.0
TELL_LAYOUT: Final = 8  # steps in which the layout is told, in case one is lost
UNTRIED: Final = -1  # of a save: nothing of it was refused, it may be tried again


class StoreWorker:
    def __init__(self, settings: AdapterSettings, vllm_config: VllmConfig, config: KVCacheConfig) -> None:
        self._settings, self._vllm, self._config = settings, vllm_config, config
        self._rank = 0
        self._caches: Mapping[str, torch.Tensor] = {}
        self._link: Link | None = None
        self._layout: KVLayout | None = None
        self._why = ""
        self._pieces: list[Pieces] = []
        self._shards: list[int] = []
        self._groups: list[int] = []  # as the engine numbers them
        self._writes: list[bool] = []  # whether this rank has a shard of its own of the group
        self._told = 0
        self._loaders = Workers("load", settings.load_threads, QUEUED_MAX)
        self._savers = Workers("save", 1, QUEUED_MAX)  # one: a prompt's blocks arrive in order
        self._lock = threading.Lock()
        self._said = WorkerMeta()
        self._finished: set[str] = set()
        self._failed: set[str] = set()
        self._bad_blocks: set[int] = set()
        self._failures = 0  # layer-wise
        self._layerwise: Layerwise | None = None
        self.stats = Stats()

    def register(self, caches: Mapping[str, torch.Tensor]) -> None:
        self._caches = caches
        self._know()

    def start_loads(self, meta: StepMeta) -> None:
        """As start_load_kv."""
        now = [load for load in meta.loads if load.layerwise]
        for load in meta.loads:
            if not load.layerwise and not self._loaders.submit(lambda load=load: self._load(load)):  # type: ignore[misc]
                self._ended(load, load.first)
        self._layerwise = None
        if now:
            self._layerwise = Layerwise(now, self._part_load, self._layers(), self._settings.load_ms / 1e3)
            self._layerwise.start(self._loaders)

    def wait_for_layer(self, name: str) -> None:
        if self._layerwise is not None:
            self._layerwise.wait(name)

    def submit_saves(self, meta: StepMeta) -> None:
        """As wait_for_save: after the step's forward."""
        self._end_layerwise()
        trusted = meta.failures_seen.get(self._rank, 0) >= self._failures
        ready = self._after_forward() if meta.saves else None
        for save in meta.saves:
            if not trusted or not self._savers.submit(lambda save=save: self._save(save, ready)):  # type: ignore[misc]
                self._saved(save, UNTRIED)

    def results(self) -> tuple[set[str], set[str]]:
        """Requests whose loads have ended since the last call, and those of them that must be computed whole."""
        with self._lock:
            finished, self._finished = self._finished, set()
            failed, self._failed = self._failed, set()
        return finished, failed

    def bad_blocks(self) -> set[int]:
        with self._lock:
            bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    def say(self) -> WorkerMeta | None:
        """As build_connector_worker_meta."""
        with self._lock:
            said, self._said = self._said, WorkerMeta()
        if self._told < TELL_LAYOUT and (self._layout is not None or self._why):
            self._told += 1
            said.layouts[self._rank] = self._layout
            if self._why:
                said.reasons[self._rank] = self._why
        if self._failures:
            said.failures[self._rank] = self._failures
        return None if said.empty else said

    def close(self) -> None:
        for workers in (self._loaders, self._savers):
            if not workers.close(CLOSE_S_MAX):
                log.warning("the store still moves bytes of this engine's cache at its end")
        if self._link is not None:
            self._link.close()

    # ---- what blocks are

    def _know(self) -> None:
        """What the caches are: layers have said by now how they pack."""
        try:
            self._layout, self._pieces = describe(self._vllm, self._config, self._caches, self._settings.revision)
        except Unsupported as error:
            self._why = str(error)
            return
        self._rank = self._vllm.parallel_config.rank
        ranks = self._layout.tensor_parallel
        rank = self._rank % ranks
        for group in self._layout.groups:
            shard = self._layout.shard_of(rank, group.name)
            self._shards.append(shard)
            self._groups.append(_number(group.name))
            self._writes.append(_writer(self._layout, shard, group.name) == rank)
        self._link = Link(self._settings, self._layout)
        self._link.client.register(self._pieces[0].buffers)

    def _layers(self) -> list[tuple[str, int, int]]:
        """Every layer's name, group and place in it, in the order in which the model runs them."""
        assert self._layout is not None
        places = {}
        for number, group in enumerate(self._layout.groups):
            names = self._config.kv_cache_groups[_number(group.name)].layer_names
            places.update({name: (number, place) for place, name in enumerate(names)})
        return [(name, *places[name]) for name in self._caches if name in places]

    # ---- loads

    def _load(self, load: Load) -> None:
        arrived = load.first
        try:
            arrived = self._load_groups(load)
        except KvStoreError as error:
            if self._link is not None:
                self._link.failed(error)
        finally:
            self._ended(load, arrived)

    def _load_groups(self, load: Load) -> int:
        """The first block that did not arrive; the last one's successor where all did."""
        begun, moved, arrived = time.monotonic(), 0, load.end
        until = begun + self._settings.load_ms / 1e3
        for group in range(len(self._pieces)):
            blocks, size = self._get(load, group, until)
            moved += size
            arrived = min(arrived, _arrived(load, group, blocks))
        self.stats.add("load_bytes", moved)
        self.stats.add("load_seconds", time.monotonic() - begun)
        return arrived

    def _get(self, load: Load, group: int, until: float) -> tuple[int, int]:
        """Blocks and bytes of one group that arrived."""
        left = until - time.monotonic()
        namespace = self._link.namespace() if self._link is not None else None
        if namespace is None or left <= 0:
            return 0, 0
        at, shard = load.at[group], self._shards[group]
        table = self._pieces[group].table(load.ids[group])
        fetch = partial(
            namespace.get,
            load.keys[at - load.first :],
            Extents(self._pieces[group].buffers, table),
            shard=shard,
            position=at,
            hints=Hints(session=load.session),
            wait_s=left,
            deadline_s=left,
        )
        got = _in_its_namespace(fetch, namespace, load.digest)
        if self._link is not None:
            self._link.worked()
        return got.blocks, got.blocks * namespace.shard_bytes[shard]

    def _part_load(self, load: Load, group: int, layer: int, until: float) -> int:
        """One layer of a load: the first block that did not arrive; the last one's successor where all did."""
        left = until - time.monotonic()
        namespace = self._link.namespace() if self._link is not None else None
        if namespace is None or left <= 0:
            return load.first
        begun = time.monotonic()
        pieces, at = self._pieces[group], load.at[group]
        try:
            got = namespace.get(
                load.keys[at - load.first :],
                Extents(pieces.buffers, pieces.table(load.ids[group], layer, layer + 1)),
                shard=self._shards[group],
                parts=(layer, layer + 1),
                position=at,
                hints=Hints(session=load.session),
                wait_s=left,
                deadline_s=left,
            )
        except KvStoreError as error:
            if self._link is not None:
                self._link.failed(error)
            return load.first
        self.stats.add("load_bytes", got.blocks * pieces.layer_bytes[layer])
        self.stats.add("load_seconds", time.monotonic() - begun)
        return _arrived(load, group, got.blocks)

    def _ended(self, load: Load, arrived: int) -> None:
        """arrived: the first block that did not."""
        whole = arrived >= load.end
        self.stats.add("loads" if whole else "loads_short", 1)
        with self._lock:
            self._said.loaded[load.request] += 1
            if not load.layerwise:
                self._finished.add(load.request)
            if whole:
                return
            self._said.short[load.request] = arrived
            if len(self._pieces) == 1:
                ratio = self._pieces[0].ratio
                self._bad_blocks.update(load.ids[0][(arrived - load.at[0]) * ratio :])
            else:
                self._failed.add(load.request)

    def _end_layerwise(self) -> None:
        """Every layer of every load has arrived, or its blocks are told."""
        layerwise, self._layerwise = self._layerwise, None
        if layerwise is None:
            return
        for load, arrived in layerwise.end():
            if arrived < load.end:
                self._failures += 1
            self._ended(load, arrived)

    # ---- saves

    def _after_forward(self) -> Callable[[], None] | None:
        """To be called by who reads the caches: returns when the step has written them. None: it has."""
        device = next(iter(self._caches.values())).device
        if device.type != "cuda":
            return None
        event = torch.cuda.Event(blocking=True)
        event.record(torch.cuda.current_stream(device))
        wait: Callable[[], None] = event.synchronize
        return wait

    def _save(self, save: Save, ready: Callable[[], None] | None) -> None:
        stored = UNTRIED
        begun = time.monotonic()
        try:
            if ready is not None:
                ready()
            stored = self._put_groups(save)
        except KvStoreError as error:
            if self._link is not None:
                self._link.failed(error)
        finally:
            self.stats.add("save_seconds", time.monotonic() - begun)
            self._saved(save, stored)

    def _put_groups(self, save: Save) -> int:
        """Blocks that are in the store, of the run's beginning."""
        stored: int = save.keys.shape[0]
        for group in range(len(self._pieces)):
            if self._writes[group]:
                stored = min(stored, self._put(save, group))
        return stored

    def _put(self, save: Save, group: int) -> int:
        namespace = self._link.namespace() if self._link is not None else None
        if namespace is None:
            return UNTRIED
        there, pieces = save.held[group], self._pieces[group]
        table = pieces.table(save.ids[group])
        shard = self._shards[group]
        stored: int = save.keys.shape[0]
        metas = metas_of_note(save.note, self._groups[group]) if save.note is not None else None
        row = 0
        for begin, end in ((0, stored),) if there is None else _stretches(there):
            publish = partial(
                namespace.put,
                save.keys[begin:end],
                Extents(pieces.buffers, table[row : row + end - begin]),
                shard=shard,
                parent=save.keys[begin - 1].tobytes() if begin else save.parent or None,
                position=save.first + begin,
                hints=Hints(session=save.session),
                metas=metas[begin:end] if metas is not None else None,
                deadline_s=self._settings.save_ms / 1e3,
            )
            done = _in_its_namespace(publish, namespace, save.digest)
            row += end - begin
            self.stats.add("save_bytes", done.stored * namespace.shard_bytes[shard])
            if done.rejected:
                self.stats.add("saves_dropped", 1)
                stored = min(stored, begin + done.stored + done.held + done.pending)
        if self._link is not None:
            self._link.worked()
        return stored

    def _saved(self, save: Save, stored: int) -> None:
        self.stats.add("saves", 1)
        with self._lock:
            self._said.saved.setdefault(save.job, []).append(stored)


def _arrived(load: Load, group: int, blocks: int) -> int:
    """The first block of a load that did not arrive, where `blocks` of this group did."""
    if load.at[group] + blocks >= load.end:
        return load.end
    # Of a group that needs only a window, a hole makes the whole boundary useless.
    return load.first + blocks if load.at[group] == load.first else load.first


T = TypeVar("T", Got, Stored)


def _in_its_namespace(call: Callable[[], T], namespace: Namespace, digest: bytes) -> T:
    """A namespace that was cleared is opened again by the call that finds out, which then ends: what its keys name is
    gone. But the scheduler may have known before us, and made these keys of the new one.
    """
    done = call()
    return call() if done.ended is Ended.CLEARED and namespace.digest == digest else done


def _number(group: str) -> int:
    """The engine's, of a cache group of our layout."""
    return int(group.removeprefix("group"))


def _writer(layout: KVLayout, shard: int, group: str) -> int:
    """The lowest rank that holds this shard: the others' are copies."""
    ranks = range(layout.tensor_parallel)
    return next(rank for rank in ranks if layout.shard_of(rank, group) == shard)


def _stretches(there: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Runs of blocks that are in memory, as (begin, end)."""
    runs: list[tuple[int, int]] = []
    begin = None
    for index, held in enumerate([*there.tolist(), False]):
        if held and begin is None:
            begin = index
        elif not held and begin is not None:
            runs.append((begin, index))
            begin = None
    return runs
