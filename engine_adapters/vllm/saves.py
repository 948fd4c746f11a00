"""Which blocks go to the store, and what keeps them from being overwritten on their way.

A save reads the engine's blocks after the step that filled them, while the engine goes on. So each block of it holds
one more reference in the engine's pool until every rank has said that the save is over: a request that ends or is
preempted meanwhile gives its blocks back, and nobody else gets them.

Rules
- A block is saved once all of its tokens are computed and known: with draft tokens or steps that run ahead, the
  engine's hashes are the measure.
- What steps fill is joined: a save costs the engine's thread the same for one block as for ten. It goes when it makes
  JOINED_BYTES, when the prompt is computed and when the request ends. So whoever waits for a prompt waits for no more
  than the last of it to be copied, a next turn finds all, and a preemption costs JOINED_BYTES. Not where a window
  drops blocks as the engine goes on: there every step's go at once.
- At most `save_share_max` of the engine's blocks are pinned. What finds no room is saved with a later step of its
  request, or not at all: a save that is dropped is a later miss.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from engine_adapters.vllm.events import Note, note_of, plain
from engine_adapters.vllm.meta import Save
from kvstore.layout import NeedKind

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.core.sched.output import SchedulerOutput

    from engine_adapters.base.link import Link
    from engine_adapters.base.settings import AdapterSettings
    from engine_adapters.vllm.layout import Geometry
    from engine_adapters.vllm.stats import Stats
    from engine_adapters.vllm.tracked import Tracked
    from kvstore import KVLayout

__all__ = ["Saves"]

SOON_S: Final = 0.1  # so long an engine that has no room waits for a save, before it preempts a request
NULL_BLOCK: Final = 0  # the engine's number for "not in memory any more"
JOINED_BYTES: Final = 32 << 20  # of one rank: ten milliseconds' copying
NEVER: Final = 1 << 62
JOINED_SHARE: Final = 4  # of the blocks that may be pinned a save takes no more than one in so many


@dataclass(slots=True)
class _Pinned:
    save: Save
    blocks: list[KVCacheBlock]
    ranks: int  # yet to say that they are done
    least: int  # blocks that every rank has stored, of those that have said so
    until_s: float  # when it is late
    note: Note | None


@dataclass
class Saves:
    settings: AdapterSettings
    geometry: Geometry
    world: int
    stats: Stats
    events: bool = False
    pool: BlockPool | None = None
    notes: list[Note] = field(default_factory=list)  # for events; emptied by whoever tells them
    _layout: KVLayout | None = None
    _joined: int = 1  # blocks
    _pins_max: int = 1
    under_way: dict[int, _Pinned] = field(default_factory=dict)  # by job; what workers say of it comes with a step
    _pinned_blocks: int = 0
    ended: list[Save] = field(default_factory=list)  # of requests that have ended, to be told with the next step
    _next: int = 1

    def bind(self, pool: BlockPool) -> None:
        self.pool = pool
        self._measure()

    def know(self, layout: KVLayout) -> None:
        """What blocks are, before the first of them is saved."""
        self._layout = layout
        self._measure()

    def _measure(self) -> None:
        """Once both are known, whichever comes first."""
        if self.pool is None or self._layout is None:
            return
        self._pins_max = max(1, int(self.pool.num_gpu_blocks * self.settings.save_share_max))
        if all(need.kind == NeedKind.ALL for need in self._layout.needs(0)):
            size = sum(sum(group.layer_bytes) for group in self._layout.groups)
            share = self._pins_max // JOINED_SHARE // sum(self.geometry.ratios)
            self._joined = max(1, min(JOINED_BYTES // size, share))

    @property
    def pinned(self) -> bool:
        """Whether blocks will be given back by themselves, and soon."""
        oldest = next(iter(self.under_way.values()), None)
        return oldest is not None and time.monotonic() < oldest.until_s

    def take(self) -> list[Save]:
        """What `ended`."""
        saves, self.ended = self.ended, []
        return saves

    def collect(self, output: SchedulerOutput, tracked: Mapping[str, Tracked], link: Link) -> list[Save]:
        """The saves of a step: blocks that are full when it is over."""
        saves, self.ended = self.ended, []
        scheduled = output.num_scheduled_tokens
        if not scheduled or self.settings.save == "none":  # a step that only waits, as while a load is under way
            return saves
        for request_id, computed in _computed(output):
            found = tracked.get(request_id)
            after = computed + scheduled.get(request_id, 0)
            if found is None or after < found.due or found.holed:
                continue
            save = self._filled(found, after, output, link)
            if save is not None:
                saves.append(save)
        return saves

    def last(self, tracked: Tracked, ids: Sequence[Sequence[int]], link: Link) -> int:
        """A request ends: what of it is not on its way yet goes with the next step. Returns the blocks of it that are
        in the store or on their way there.
        """
        if self.settings.save == "none":
            return tracked.saved
        computed: int = tracked.request.num_computed_tokens
        if computed // self.geometry.block_tokens <= tracked.saved or tracked.holed or not link.up:
            return tracked.saved
        end = self._end(tracked, computed)
        if end > tracked.saved:
            save = self._save(tracked, end, ids, link)
            if save is not None:
                self.ended.append(save)
        return tracked.saved

    def finished(self, saved: Mapping[int, Sequence[int]], tracked: Mapping[str, Tracked]) -> None:
        """Jobs that ranks are done with, and how many blocks of each are in the store. Behind a block that is not,
        nothing of its request is of use.
        """
        for job, counts in saved.items():
            pinned = self.under_way.get(job)
            if pinned is None:
                continue
            pinned.ranks -= len(counts)
            pinned.least = min(pinned.least, *counts)
            if pinned.ranks <= 0:
                del self.under_way[job]
                self._unpin(pinned.blocks)
                self._learn(pinned, tracked.get(pinned.save.request))

    def _learn(self, pinned: _Pinned, tracked: Tracked | None) -> None:
        if pinned.note is not None and pinned.least > 0:
            self.notes.append(pinned.note.cut(pinned.least))
        if tracked is None or pinned.least >= pinned.save.keys.shape[0]:
            return
        if pinned.least < 0:  # not tried, or the store was away: with a later step
            tracked.has(min(tracked.saved, pinned.save.first))
        else:
            tracked.holed = True

    def _filled(self, tracked: Tracked, computed: int, output: SchedulerOutput, link: Link) -> Save | None:
        """What is to be saved of a request once so many of its tokens are computed."""
        if not tracked.due:
            tracked.due = self._due(tracked)
            if computed < tracked.due:
                return None
        end = self._end(tracked, computed)
        state = getattr(output, "kv_connector_block_state", None)
        if end <= tracked.saved or state is None or not link.up:
            return None
        ids = state.get_block_ids(tracked.request.request_id)
        return self._save(tracked, end, ids, link) if ids is not None else None

    def _due(self, tracked: Tracked) -> int:
        prompt: int = tracked.request.num_prompt_tokens // self.geometry.block_tokens
        if tracked.saved >= prompt and self.settings.save == "prompt":
            return NEVER
        joined = tracked.saved + self._joined
        return (min(joined, prompt) if tracked.saved < prompt else joined) * self.geometry.block_tokens

    def _end(self, tracked: Tracked, computed: int) -> int:
        end = min(computed // self.geometry.block_tokens, tracked.chain.blocks)
        if self.settings.save == "prompt":
            end = min(end, tracked.request.num_prompt_tokens // self.geometry.block_tokens)
        return end

    def _save(self, tracked: Tracked, end: int, ids: Sequence[Sequence[int]], link: Link) -> Save | None:
        first, keys = tracked.saved, tracked.chain.keys(link)
        if keys is None:
            return None
        held: list[npt.NDArray[np.bool_] | None] = []
        numbers: list[Sequence[int]] = []
        pins: list[int] = []
        for group, ratio in zip(self.geometry.groups, self.geometry.ratios, strict=True):
            listed = ids[group][first * ratio : end * ratio]
            if len(listed) != (end - first) * ratio:
                return None  # the engine's table is shorter than what it computed: nothing that we know
            there = None
            if NULL_BLOCK in listed:
                there, listed = _there(listed, ratio)
            held.append(there)
            numbers.append(listed)
            pins += listed
        blocks = self._pin(pins)
        if blocks is None:
            self.stats.add("saves_deferred", 1)
            return None
        job, self._next = self._next, self._next + 1
        request = tracked.request
        note = note_of(request, tracked.chain, first, end, self.geometry.block_tokens)
        save = Save(
            job,
            request.request_id,
            first,
            keys[first:end],
            keys[first - 1].tobytes() if first else b"",
            tuple(held),
            tuple(numbers),
            session=getattr(request, "session_id", None) or "",
            digest=tracked.chain.made[0],
            note=note if plain(request) else None,
        )
        told = note if self.events else None
        self.under_way[job] = _Pinned(save, blocks, self.world, end - first, time.monotonic() + SOON_S, told)
        tracked.has(end)
        return save

    def _pin(self, numbers: list[int]) -> list[KVCacheBlock] | None:
        assert self.pool is not None, "bound before the first step"
        if self._pinned_blocks + len(numbers) > self._pins_max and self._pinned_blocks:
            return None
        every = self.pool.blocks
        blocks = [every[number] for number in numbers]
        self.pool.touch(blocks)
        self._pinned_blocks += len(blocks)
        return blocks

    def _unpin(self, blocks: list[KVCacheBlock]) -> None:
        assert self.pool is not None
        self._pinned_blocks -= len(blocks)
        # Last ones first: a prompt's beginning is what others share.
        self.pool.free_blocks(reversed(blocks))


def _computed(output: SchedulerOutput) -> Iterator[tuple[str, int]]:
    """Each request of a step, and how many of its tokens were computed before it."""
    for new in output.scheduled_new_reqs:
        yield new.req_id, new.num_computed_tokens
    cached = output.scheduled_cached_reqs
    yield from zip(cached.req_ids, cached.num_computed_tokens, strict=True)


def _there(listed: Sequence[int], ratio: int) -> tuple[npt.NDArray[np.bool_], list[int]]:
    """Which of the store's blocks are in memory whole, and the engine's numbers of those."""
    rows = np.array(listed, dtype=np.int64).reshape(-1, ratio)
    there = (rows != NULL_BLOCK).all(axis=1)
    numbers: list[int] = rows[there].reshape(-1).tolist()
    return there, numbers
