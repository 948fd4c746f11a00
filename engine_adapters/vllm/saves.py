"""Which blocks go to the store, and what keeps them from being overwritten on their way.

A save reads the engine's blocks after the step that filled them, while the engine goes on. So each block of it holds
one more reference in the engine's pool until every rank has said that the save is over: a request that ends or is
preempted meanwhile gives its blocks back, and nobody else gets them.

Rules
- A block is saved once all of its tokens are computed and known: with draft tokens or steps that run ahead, the
  engine's hashes are the measure.
- At most `save_share_max` of the engine's blocks are pinned. What finds no room is saved with a later step of its
  request, or not at all: a save that is dropped is a later miss.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from engine_adapters.vllm.events import Note, note_of
from engine_adapters.vllm.meta import Save

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.sched.output import SchedulerOutput

    from engine_adapters.base.link import Link
    from engine_adapters.base.settings import AdapterSettings
    from engine_adapters.vllm.layout import Geometry
    from engine_adapters.vllm.scheduler import Tracked
    from engine_adapters.vllm.stats import Stats

__all__ = ["Saves"]

SOON_S: Final = 0.1  # so long an engine that has no room waits for a save, before it preempts a request
NULL_BLOCK: Final = 0  # the engine's number for "not in memory any more"


@dataclass(slots=True)
class _Pinned:
    blocks: list[int]
    ranks: int  # yet to say that they are done
    request: str
    first: int
    count: int
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
    _pinned: dict[int, _Pinned] = field(default_factory=dict)
    _pinned_blocks: int = 0
    _late: list[Save] = field(default_factory=list)
    _next: int = 1

    @property
    def pending(self) -> bool:
        """Whether the engine must go on stepping: what workers say comes with a step."""
        return bool(self._pinned or self._late)

    @property
    def pinned(self) -> bool:
        """Whether blocks will be given back by themselves, and soon."""
        oldest = next(iter(self._pinned.values()), None)
        return oldest is not None and time.monotonic() < oldest.until_s

    def collect(self, output: SchedulerOutput, tracked: Mapping[str, Tracked], link: Link) -> list[Save]:
        """The saves of a step: every block that is full when it is over."""
        saves, self._late = self._late, []
        if not output.num_scheduled_tokens:  # a step that only waits, as while a load is under way
            return saves
        if self.settings.save == "none" or not link.up:
            return saves
        state = getattr(output, "kv_connector_block_state", None)
        for request_id, computed in _computed(output):
            found = tracked.get(request_id)
            if found is None or found.holed:
                continue
            end = self._end(found, computed + output.num_scheduled_tokens.get(request_id, 0))
            if end <= found.saved or state is None:
                continue
            ids = state.get_block_ids(request_id)
            save = self._save(found, end, ids, link) if ids is not None else None
            if save is not None:
                saves.append(save)
        return saves

    def last(self, tracked: Tracked, ids: Sequence[Sequence[int]], link: Link) -> int:
        """A request ends: what of it is not on its way yet goes with the next step. Returns the blocks of it that are
        in the store or on their way there.
        """
        if self.settings.save == "none":
            return tracked.saved
        end = self._end(tracked, tracked.request.num_computed_tokens)
        if end > tracked.saved and link.up and not tracked.holed:
            save = self._save(tracked, end, ids, link)
            if save is not None:
                self._late.append(save)
        return tracked.saved

    def finished(self, saved: Mapping[int, Sequence[int]], tracked: Mapping[str, Tracked]) -> None:
        """Jobs that ranks are done with, and how many blocks of each are in the store. Behind a block that is not,
        nothing of its request is of use.
        """
        for job, counts in saved.items():
            pinned = self._pinned.get(job)
            if pinned is None:
                continue
            pinned.ranks -= len(counts)
            pinned.least = min(pinned.least, *counts)
            if pinned.ranks <= 0:
                del self._pinned[job]
                self._unpin(pinned.blocks)
                self._learn(pinned, tracked.get(pinned.request))

    def _learn(self, pinned: _Pinned, tracked: Tracked | None) -> None:
        if pinned.note is not None and pinned.least > 0:
            self.notes.append(pinned.note.cut(pinned.least))
        if tracked is None or pinned.least >= pinned.count:
            return
        if pinned.least < 0:  # not tried, or the store was away: with a later step
            tracked.saved = min(tracked.saved, pinned.first)
        else:
            tracked.holed = True

    def _end(self, tracked: Tracked, computed: int) -> int:
        end = min(computed // self.geometry.block_tokens, tracked.chain.blocks)
        if self.settings.save == "prompt":
            end = min(end, tracked.request.num_prompt_tokens // self.geometry.block_tokens)
        return end

    def _save(self, tracked: Tracked, end: int, ids: Sequence[Sequence[int]], link: Link) -> Save | None:
        first, keys = tracked.saved, tracked.chain.keys(link)
        if keys is None:
            return None
        held, numbers, pins = [], [], []
        for group, ratio in zip(self.geometry.groups, self.geometry.ratios, strict=True):
            listed = list(ids[group][first * ratio : end * ratio])
            if len(listed) != (end - first) * ratio:
                return None  # the engine's table is shorter than what it computed: nothing that we know
            rows, there = np.array(listed, dtype=np.int64), np.ones(end - first, dtype=np.bool_)
            if NULL_BLOCK in listed:
                there = (rows.reshape(-1, ratio) != NULL_BLOCK).all(axis=1)
                rows = rows.reshape(-1, ratio)[there].reshape(-1)
                listed = rows.tolist()
            held.append(there)
            numbers.append(rows)
            pins += listed
        if not self._pin(pins):
            self.stats.add("saves_deferred", 1)
            return None
        job, self._next = self._next, self._next + 1
        save = Save(
            job,
            tracked.request.request_id,
            first,
            keys[first:end],
            keys[first - 1].tobytes() if first else b"",
            tuple(held),
            tuple(numbers),
            session=getattr(tracked.request, "session_id", None) or "",
            digest=tracked.chain.digest,
        )
        note = note_of(tracked.request, tracked.chain, first, end, self.geometry.block_tokens) if self.events else None
        self._pinned[job] = _Pinned(
            pins, self.world, save.request, first, end - first, end - first, time.monotonic() + SOON_S, note
        )
        tracked.saved = end
        return save

    def _pin(self, blocks: list[int]) -> bool:
        assert self.pool is not None, "bound before the first step"
        most = max(1, int(self.pool.num_gpu_blocks * self.settings.save_share_max))
        if self._pinned_blocks + len(blocks) > most and self._pinned_blocks:
            return False
        self.pool.touch([self.pool.blocks[block] for block in blocks])
        self._pinned_blocks += len(blocks)
        return True

    def _unpin(self, blocks: list[int]) -> None:
        assert self.pool is not None
        self._pinned_blocks -= len(blocks)
        # Last ones first: a prompt's beginning is what others share.
        self.pool.free_blocks(self.pool.blocks[block] for block in reversed(blocks))


def _computed(output: SchedulerOutput) -> Iterator[tuple[str, int]]:
    """Each request of a step, and how many of its tokens were computed before it."""
    for new in output.scheduled_new_reqs:
        yield new.req_id, new.num_computed_tokens
    cached = output.scheduled_cached_reqs
    yield from zip(cached.req_ids, cached.num_computed_tokens, strict=True)
