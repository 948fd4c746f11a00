"""The scheduler's half: what to promise of each prompt, what to load, what to save. Never waits.

    on_new_request       the search begins; what lies on lower tiers is asked up
    matched              None while it goes on; then the tokens that the store *holds* for this request
    allocated            the promise becomes a load, or is given back
    build                this step's loads, and saves of the blocks that it fills; their blocks are pinned
    heard                what workers say: layouts, saves and loads that ended, blocks that did not arrive

Every state is of the engine's one scheduling thread; threads of `Workers` see Findings only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from engine_adapters.base.link import Link
from engine_adapters.base.promises import Budget, Finding, Promise, needed
from engine_adapters.base.workers import Workers
from engine_adapters.vllm.chains import Chain
from engine_adapters.vllm.handover import expected_blocks, told
from engine_adapters.vllm.meta import Load, StepMeta, WorkerMeta
from engine_adapters.vllm.saves import Saves
from engine_adapters.vllm.stats import Stats
from engine_adapters.vllm.tracked import Tracked
from engine_adapters.vllm.trust import Trust
from kvstore.errors import KvStoreError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

    from engine_adapters.base.settings import AdapterSettings
    from engine_adapters.vllm.layout import Geometry
    from kvstore import KVLayout
    from kvstore.layout import Need

__all__ = ["StoreScheduler"]

log = logging.getLogger(__name__)

FINDING_THREADS: Final = 4
FINDINGS_MAX: Final = 4_096
LAYOUT_S_MAX: Final = 5.0  # a request that comes before the workers have said what blocks are waits no longer
CLOSE_S_MAX: Final = 2.0
CLEAR_S_MAX: Final = 5.0
LEASE_MARGIN_S: Final = 1.0


class StoreScheduler:
    def __init__(
        self, settings: AdapterSettings, geometry: Geometry, vllm_config: VllmConfig, *, events: bool = False
    ) -> None:
        self._settings, self._geometry = settings, geometry
        self._world: int = vllm_config.parallel_config.world_size
        self._layerwise = settings.load == "layerwise"
        self._loads = settings.load != "none"
        self._requests: dict[str, Tracked] = {}
        self._link: Link | None = None
        self._budget = Budget(settings.promise_bytes_max)
        self._workers = Workers("find", FINDING_THREADS, FINDINGS_MAX)
        self._layouts: dict[int, KVLayout | None] = {}
        self._needs: tuple[Need, ...] = ()  # of each group, in the engine's order
        self._pending: list[Load] = []
        self._opening = False
        self._idle = StepMeta()  # of a step that loads and saves nothing; never changed, but replaced
        self._trust = Trust()
        self.stats = Stats()
        self.saves = Saves(settings, geometry, self._world, self.stats, events=events)

    # ---- loads

    def bind(self, pool: BlockPool) -> None:
        self.saves.bind(pool)

    def on_new_request(self, request: Request) -> None:
        tracked = self._track(request)
        if self._may_load(tracked):
            self._search(tracked, 0, self._cap(request), eager=True)

    def matched(self, request: Request, computed: int) -> tuple[int | None, bool]:
        """As get_num_new_matched_tokens."""
        tracked = self._requests.get(request.request_id) or self._track(request)
        now, finding = time.monotonic(), tracked.finding
        if finding is not None and not finding.done and computed == 0 and now < tracked.late_at:
            return None, False  # as nearly every first question is answered
        if not self._may_load(tracked):
            return 0, False
        first, cap = computed // self._geometry.block_tokens, self._cap(request)
        if cap <= first:
            self._drop(tracked)
            return 0, False
        if not tracked.asked_at:
            tracked.asked_at, tracked.late_at = now, now + self._settings.lookup_ms / 1e3
        if self._link is None or self._link.opened is None:
            return (None if self._soon(now - tracked.asked_at) else 0), False
        promise = self._promised(tracked, first, cap, now)
        if promise is None or promise.end <= first:
            return None if promise is None else 0, False
        return promise.end * self._geometry.block_tokens - computed, not self._layerwise

    def allocated(self, request: Request, blocks: KVCacheBlocks, tokens: int) -> None:
        """As update_state_after_alloc."""
        tracked = self._requests.get(request.request_id) or self._track(request)
        finding, tracked.finding, tracked.asked_at = tracked.finding, None, 0.0
        if finding is None:
            return
        if tokens == 0:
            # Not chosen, or nothing to load. What was found in the store need not be saved again.
            tracked.has(max(tracked.saved, finding.promise.stored if finding.done else 0))
            self._leave(finding)
            return
        promise = finding.take()
        first = (promise.end * self._geometry.block_tokens - tokens) // self._geometry.block_tokens
        self._pending.append(self._load(tracked, blocks, first, promise.end))
        tracked.promise, tracked.loading, tracked.first = promise, self._world, first
        tracked.has(max(tracked.saved, promise.end))
        self.stats.add("hit_tokens", tokens)

    def hit_sources(self, request: Request) -> list[int]:
        """Blocks of this request's load, by the number of the tier they came from."""
        tracked = self._requests.get(request.request_id)
        if tracked is None or tracked.promise is None:
            return [0] * 4
        tiers = tracked.promise.tiers[tracked.first - tracked.promise.first :].tobytes()
        return [tiers.count(0), tiers.count(1), tiers.count(2), tiers.count(3)]

    # ---- each step

    def build(self, output: SchedulerOutput) -> StepMeta:
        """As build_connector_meta."""
        if not output.num_scheduled_tokens and not self._pending and not self.saves.ended:
            return self._idle  # it only waits
        loads, self._pending = self._pending, []
        if self._link is not None and (self._trust.whole or self._trusted()):
            saves = self.saves.collect(output, self._requests, self._link)
        else:  # what was on its way: its blocks are pinned until a worker has had it
            saves = self.saves.take()
        return StepMeta(loads, saves, self._idle.failures_seen) if loads or saves else self._idle

    def heard(self, said: WorkerMeta) -> None:
        """As update_connector_output."""
        if said.layouts:
            self._learn(said)
        for request_id, block in said.short.items():
            tracked = self._requests.get(request_id)
            if tracked is not None:
                tracked.failed = True
                tracked.has(min(tracked.saved, block))
        for request_id, ranks in said.loaded.items():
            tracked = self._requests.get(request_id)
            if tracked is not None:
                tracked.loading -= ranks
                if tracked.loading <= 0:
                    self._landed(tracked)
        if said.failures:
            self._idle = StepMeta(failures_seen={**self._idle.failures_seen, **said.failures})
        if said.saved:
            self.saves.finished(said.saved, self._requests)

    def finished(self, request: Request, ids: Sequence[Sequence[int]]) -> dict[str, Any] | None:
        """As request_finished_all_groups: parameters for whoever decodes it."""
        tracked = self._requests.pop(request.request_id, None)
        if tracked is None:
            return None
        blocks = 0
        if not tracked.loading and self._link is not None and (self._trust.whole or self._trusted()):
            blocks = self.saves.last(tracked, ids, self._link)
        if tracked.finding is not None:
            self._drop(tracked)
        if tracked.promise is not None:
            self._landed(tracked)
        return told(request, blocks) if request.kv_transfer_params else None

    def clear(self) -> bool:
        """As reset_cache: what the store holds of this model is unreachable, for everybody. Until that worked, and the
        engine's own cache was emptied, nothing is loaded and nothing saved. The one call that waits: it is the
        operator's.
        """
        assert self.saves.pool is not None, "bound before the first step"
        self._trust.end(self.saves.pool)
        for tracked in self._requests.values():
            self._drop(tracked)
            tracked.holed = True  # its blocks may be of the old weights: under new keys they would be a lie
        # Before blocks are known there is nothing to clear by: then it is done before the first of them is asked for.
        return self._link is None or self._clear(self._link)

    def close(self) -> None:
        for tracked in self._requests.values():
            self._drop(tracked)
        self._workers.close(CLOSE_S_MAX)  # what promises hold is given back by then
        if self._link is not None:
            self._link.close()

    # ---- within

    def _trusted(self) -> bool:
        """After a clear, whether all is well again."""
        if self._trust.owed and self._link is not None:
            self._soon(0.0)
        assert self.saves.pool is not None, "bound before the first step"
        return self._trust.regained(self.saves.pool)

    @property
    def _layouts_missing(self) -> bool:
        return len(self._layouts) < self._world

    def _track(self, request: Request) -> Tracked:
        tracked = self._requests.get(request.request_id)
        if tracked is None:
            expect = expected_blocks(request) if request.kv_transfer_params else 0
            tracked = Tracked(request, Chain(request, self._geometry), expect)
            self._requests[request.request_id] = tracked
        return tracked

    def _soon(self, waited_s: float) -> bool:
        """Whether a request that has waited so long should wait for the store to be known and opened."""
        if self._link is None:
            return self._layouts_missing and waited_s < LAYOUT_S_MAX
        if self._link.up and not self._opening:
            self._opening = self._workers.submit(self._open)
        return self._opening and waited_s < self._settings.lookup_ms / 1e3

    def _open(self) -> None:
        try:
            assert self._link is not None
            if self._link.namespace() is not None and self._trust.owed:
                self._clear(self._link)
        finally:
            self._opening = False

    def _clear(self, link: Link) -> bool:
        """Waits, in any thread."""
        asked, namespace = self._trust.asked, link.namespace()
        if namespace is None:
            return False
        try:
            namespace.clear(deadline_s=CLEAR_S_MAX)
        except KvStoreError as error:
            link.failed(error)
            return False
        self._trust.cleared(asked)
        return True

    def _may_load(self, tracked: Tracked) -> bool:
        skips: bool = tracked.request.skip_reading_prefix_cache
        return self._loads and not skips and not tracked.failed and (self._trust.whole or self._trusted())

    def _cap(self, request: Request) -> int:
        """Blocks that may come from elsewhere: one token at least is left to compute, as of a local hit."""
        geometry = self._geometry
        cap: int = min((request.num_tokens - 1) // geometry.block_tokens, len(request.block_hashes) // geometry.hashes)
        return cap

    def _promised(self, tracked: Tracked, first: int, cap: int, now: float) -> Promise | None:
        """What is held for it from block `first` on; None: ask again."""
        late = now > tracked.late_at
        finding = tracked.finding
        if finding is None:
            return None if not late and self._search(tracked, first, cap) else Promise(first, first)
        if not finding.done:
            if late:
                self.stats.add("lookups_late", 1)
                self._drop(tracked)
                return Promise(first, first)
            return None
        promise = finding.promise
        held = promise.end > first
        expires = held and promise.expires_s - now < self._settings.load_ms / 1e3 + LEASE_MARGIN_S
        if (held and promise.first > first) or expires or finding.again or (finding.crowded and not late):
            return self._anew(tracked, first, cap)
        if promise.end < min(tracked.expect, cap) and now - tracked.asked_at < self._settings.handover_ms / 1e3:
            return self._anew(tracked, first, cap)
        return promise

    def _anew(self, tracked: Tracked, first: int, cap: int) -> Promise | None:
        self._drop(tracked)
        return None if self._search(tracked, first, cap) else Promise(first, first)

    def _search(self, tracked: Tracked, first: int, cap: int, *, eager: bool = False) -> bool:
        link = self._link
        if link is None or cap <= first or not link.up:
            return False
        if link.opened is None:
            self._soon(0.0)
            return False
        until = time.monotonic() + self._settings.lookup_ms / 1e3
        finding = Finding(link, self._budget, tracked.chain.naming(cap), first, until, eager=eager)
        if not self._workers.submit(finding.run):
            return False
        self.stats.add("lookups", 1)
        tracked.finding = finding
        return True

    def _drop(self, tracked: Tracked) -> None:
        finding, tracked.finding = tracked.finding, None
        if finding is not None:
            self._leave(finding)

    def _landed(self, tracked: Tracked) -> None:
        promise, tracked.promise = tracked.promise, None
        tracked.loading = 0
        if promise is not None and not self._workers.submit(promise.close):
            promise.close()

    def _leave(self, finding: Finding) -> None:
        """Giving back is telling the node: not from this thread."""
        if finding.holds and not self._workers.submit(finding.leave):
            finding.leave()

    def _load(self, tracked: Tracked, blocks: KVCacheBlocks, first: int, end: int) -> Load:
        digest, keys = tracked.chain.made
        if keys.shape[0] < end:  # the namespace was cleared while the search made them: what was promised is gone
            keys = np.zeros((end, 32), np.uint8)
        ids, at = [], []
        every = blocks.get_block_ids()
        for need, group, ratio in zip(self._needs, self._geometry.groups, self._geometry.ratios, strict=True):
            begin = needed(need, first, end)
            at.append(begin)
            ids.append(every[group][begin * ratio : end * ratio])
        return Load(
            tracked.request.request_id,
            first,
            end,
            keys[first:end],
            tuple(at),
            tuple(ids),
            layerwise=self._layerwise,
            session=getattr(tracked.request, "session_id", None) or "",
            digest=digest,
        )

    def _learn(self, said: WorkerMeta) -> None:
        """What blocks are, from the workers: of all ranks the same, or the store is not used."""
        if not self._layouts_missing:
            return
        self._layouts.update(said.layouts)
        if self._layouts_missing:
            return
        layouts = list(self._layouts.values())
        layout = layouts[0]
        if layout is None or any(other != layout for other in layouts):
            why = "; ".join(sorted(set(said.reasons.values()))) or "its ranks describe different caches"
            log.warning("the store is not used: %s", why)
            self._loads = False
            return
        self._link = Link(self._settings, layout)
        self._needs = layout.needs(0)
        self.saves.know(layout)
        self._soon(0.0)
