"""Our connector in the place of the connectors that upstream's tests bring along.

A test says what its connector promises ("99 blocks of this prompt"), what arrives and when, and what does not arrive;
then it looks at what the scheduler made of that. Here the blocks that a test promises are put into a real store, so
that it is our connector that finds, holds and promises them, loads them (its worker's half runs beside the scheduler),
and says that they arrived or did not. What a test says is only when news comes, and what goes wrong.
"""

from __future__ import annotations

import copy
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.v1.outputs import KVConnectorOutput

from engine_adapters.vllm.connector import KVStoreConnector
from engine_adapters.vllm.meta import StepMeta
from kvstore import Extents
from kvstore.client.sync import Namespace
from kvstore.errors import Rejected

__all__ = ["Mismatch", "StoreUnderTest", "play", "settle"]

WAIT_MAX_S = 20.0
BLOCK_BYTES = 4096
ADDRESS = os.environ["KVSTORE_UPSTREAM_ADDRESS"]
_NUMBERS = itertools.count()
saving = True  # what the running test wants; see cases.py


class Mismatch(AssertionError):
    """Our connector did otherwise than the test's connector does."""


def until(done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT_MAX_S
    while not done():
        if time.monotonic() > end:
            raise Mismatch(f"not in {WAIT_MAX_S:.0f} s: {what}")
        time.sleep(0.001)


class Spy:
    """A method that a test may count, or tell what to answer; then it tells us what must be in the store."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self._real, self.call_count = real, 0

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.call_count += 1
        return self._real(*given, **named)


class Asked(Spy):
    """get_num_new_matched_tokens. `side_effect`, of a test: what it wants promised, a function or a list."""

    def __init__(self, real: Callable[..., Any], told: Callable[[Any], None]) -> None:
        super().__init__(real)
        self._told, self.effect = told, None

    @property
    def side_effect(self) -> Any:
        return self.effect

    @side_effect.setter
    def side_effect(self, effect: Any) -> None:
        self._told(effect)

    def wanted(self, request: Any, computed: int) -> tuple[int, bool] | None:
        if self.effect is None:
            return None
        return self.effect(request, computed) if callable(self.effect) else self.effect.pop(0)


class StoreUnderTest(KVStoreConnector):
    """With a worker's half in the same process. Each has a namespace of its own: tests share no blocks."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        given = vllm_config.kv_transfer_config.kv_connector_extra_config
        self.asked = Asked(self._ask, self.supports_scenario)
        if "matched_tokens" in given:  # upstream's MockKVConnector
            promise = (given["matched_tokens"], given["is_async"])
            self.asked.effect = _deferred(promise, given.get("num_defers_before_matching", 0))
        self._given = (vllm_config, role, kv_cache_config)
        self._number = next(_NUMBERS)
        self._build("async" if given.get("is_async", True) else "layerwise")
        self.get_num_new_matched_tokens = self.asked
        for name in ("request_finished", "take_events", "get_loaded_kv_cache_group_ids"):
            setattr(self, name, Spy(getattr(super(), name)))

    def _build(self, load: str) -> None:
        """The connector as a user has it."""
        vllm_config, role, kv_cache_config = self._given
        config = copy.copy(vllm_config)
        config.kv_transfer_config = copy.copy(vllm_config.kv_transfer_config)
        config.kv_transfer_config.kv_connector_extra_config = {
            "address": ADDRESS,
            "revision": f"{os.getpid()}-{self._number}-{load}",
            "load": load,
            "save": "all" if saving else "none",
        }
        self._load_how = load
        self._unplayed: list[StepMeta] = []
        self._arrived: set[str] = set()
        self._loaded: set[str] = set()
        super().__init__(config, role, kv_cache_config)
        self._half = None
        if self._scheduler is not None:
            self._half = KVStoreConnector(config, KVConnectorRole.WORKER, kv_cache_config)
            self._half.register_kv_caches(_caches(kv_cache_config))
            self._scheduler.heard(self._half.build_connector_worker_meta())
            until(self._opened, "the namespace opened")
        self._over = threading.Event()
        self._over.set()
        if self._scheduler is not None and self._scheduler._link is not None:
            self._slow_searches()

    def _opened(self) -> bool:
        link = self._scheduler._link
        return (link is not None and link.opened is not None) or not self._scheduler._loads

    def bind_kv_cache_manager(self, manager: Any) -> None:
        self._manager = manager
        super().bind_kv_cache_manager(manager)

    # ---- what a test's connector has

    def supports_scenario(self, effect: Any) -> None:
        """A test has said what it wants promised."""
        if callable(effect):
            named = dict(zip(effect.__code__.co_freevars, effect.__closure__ or (), strict=True))
            later = named["async_load"].cell_contents if "async_load" in named else self._load_how == "async"
        else:
            effect = list(effect)
            later = next((answer[1] for answer in effect if answer[0]), True)
        load = "async" if later else "layerwise"
        if load != self._load_how:
            self.shutdown()
            manager = getattr(self, "_manager", None)
            self._build(load)
            if manager is not None:
                self.bind_kv_cache_manager(manager)
        self.asked.effect = effect

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "get_num_new_matched_tokens" and isinstance(value, Mock):
            self.supports_scenario(value.side_effect)
        else:
            object.__setattr__(self, name, value)

    def _ask(self, request: Any, computed: int) -> tuple[int | None, bool]:
        wanted = self.asked.wanted(request, computed)
        if request.skip_reading_prefix_cache:
            wanted = (0, False)
        if wanted is not None and wanted[0] is None:
            return self._searching(request, computed)
        self._over.set()
        if wanted is not None and wanted[0]:
            self._fill(request, computed, wanted[0])
        elif wanted is None and (request.kv_transfer_params or {}).get("do_remote_prefill"):
            self._fill(request, computed, request.num_tokens)  # somebody has computed this prompt
        answer: tuple[int | None, bool] = (None, False)

        def asked() -> bool:
            nonlocal answer
            answer = super(StoreUnderTest, self).get_num_new_matched_tokens(request, computed)
            return answer[0] is not None

        until(asked, "an answer of the store")
        if wanted is not None and answer[0] != self._promised(request, computed, wanted[0]):
            raise Mismatch(f"promises {answer[0]} tokens after {computed}; the test's connector promises {wanted[0]}")
        if answer[0]:
            self._loaded.add(request.request_id)
        return answer

    def _promised(self, request: Any, computed: int, tokens: int) -> int:
        """What ours must promise for it: of a whole prompt all but the block of its last token, which is computed."""
        if not tokens or computed + tokens < request.num_tokens:
            return tokens
        size = self._scheduler._geometry.block_tokens
        return (request.num_tokens - 1) // size * size - computed

    def _searching(self, request: Any, computed: int) -> tuple[int | None, bool]:
        """The test's connector does not know yet: nor does ours, while its node takes its time."""
        if self._over.is_set():
            self._scheduler._drop(self._scheduler._track(request))
            self._over.clear()
        answer = super().get_num_new_matched_tokens(request, computed)
        if answer[0] is not None:
            raise Mismatch(f"promises {answer[0]} tokens while its search is under way")
        return answer

    def _slow_searches(self) -> None:
        """Searches end when the test's connector would know."""
        link, over = self._scheduler._link, self._over
        namespace = link.namespace

        def late() -> Any:
            over.wait(WAIT_MAX_S)
            return namespace()

        link.namespace = late

    def _fill(self, request: Any, computed: int, tokens: int) -> None:
        """Puts into the store what the test wants found there."""
        scheduler = self._scheduler
        if scheduler is None or scheduler._link is None:
            return
        size = scheduler._geometry.block_tokens
        end = min((computed + tokens) // size, request.num_tokens // size)
        tracked = scheduler._track(request)
        keys = tracked.chain.keys(scheduler._link)[:end]
        worker = self._half._worker
        namespace = worker._link.namespace()
        for group, pieces in enumerate(worker._pieces):
            blocks = np.arange(1, keys.shape[0] * pieces.ratio + 1, dtype=np.int64)
            table = pieces.table(blocks)
            namespace.put(keys, Extents(pieces.buffers, table), shard=worker._shards[group])
        scheduler._drop(tracked)  # what was looked for before it was there

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> Any:
        if isinstance(self.request_finished, Spy):
            self.request_finished.call_count += 1
        return super().request_finished_all_groups(request, block_ids)

    def build_connector_meta(self, scheduler_output: Any) -> StepMeta:
        meta = super().build_connector_meta(scheduler_output)
        self._unplayed.append(meta)
        cached = scheduler_output.scheduled_cached_reqs
        # What upstream's mock puts into its own, for tests that count it.
        meta.requests = [new.req_id for new in scheduler_output.scheduled_new_reqs]
        meta.requests += [one for one in cached.req_ids if one in cached.resumed_req_ids]
        return meta

    def shutdown(self) -> None:
        self._over.set()
        super().shutdown()
        if self._half is not None:
            self._half.shutdown()

    # ---- the worker's part of a step

    def step(self, said: KVConnectorOutput) -> KVConnectorOutput:
        """Runs what was asked of the worker; `said` by the test, and what our connector says instead."""
        if self._half is None:
            return said
        loads = self._play(set(said.invalid_block_ids or ()), set(said.failed_recving or ()))
        results = self._half.get_transfer_results(set())
        self._arrived |= results.finished_recving or set()
        wanted = set(said.finished_recving or ())
        missing = (wanted & self._loaded) - self._arrived
        if missing:
            raise Mismatch(f"the test says that {missing} arrived; our worker does not")
        bad = self._half.get_block_ids_with_load_errors()
        if not set(said.invalid_block_ids or ()) <= bad and loads:
            raise Mismatch(f"the test says that {said.invalid_block_ids} did not arrive; our worker says {bad}")
        self._arrived -= wanted
        self._loaded -= wanted
        return replace(
            said,
            finished_recving=wanted or None,
            invalid_block_ids=bad or set(said.invalid_block_ids or ()),
            failed_recving=results.failed_recving or set(),
            kv_connector_worker_meta=self._half.build_connector_worker_meta(),
        )

    def _play(self, broken: set[int], failed: set[str]) -> int:
        """What a model runner calls in each step that was scheduled; returns when its loads and saves are over."""
        metas, self._unplayed = self._unplayed, []
        half, worker = self._half, self._half._worker
        for meta in metas:
            with _broken(meta.loads, broken, failed):
                half.bind_connector_metadata(meta)
                half.start_load_kv(None)
                for name in worker._caches:
                    half.wait_for_layer_load(name)
                half.wait_for_save()
                half.clear_connector_metadata()
                _over(worker, {save.job for save in meta.saves}, {load.request for load in meta.loads})
        return sum(len(meta.loads) for meta in metas)


def _over(worker: Any, saves: set[int], loads: set[str]) -> None:
    until(lambda: saves <= set(worker._said.saved), "saves")
    until(lambda: loads <= set(worker._said.loaded), "loads")


def _deferred(promise: tuple[int, bool], times: int) -> Callable[[Any, int], tuple[int | None, bool]]:
    """As upstream's mock: so often it does not know yet, for each request."""
    left: dict[str, int] = {}

    def promised(request: Any, _: int) -> tuple[int | None, bool]:
        now = left.setdefault(request.request_id, times)
        left[request.request_id] = now - 1
        return (None, False) if now > 0 else promise

    return promised


def _caches(config: Any) -> dict[str, torch.Tensor]:
    """What a model runner would have. Upstream's test blocks have some bytes, fewer than a store takes: made wider."""
    made = {}
    for group in config.kv_cache_groups:
        spec = group.kv_cache_spec
        if not hasattr(spec, "num_kv_heads"):
            continue
        rows = spec.num_kv_heads * spec.block_size
        width = max(2 * spec.head_size, -(-BLOCK_BYTES // (rows * spec.dtype.itemsize)))
        for name in group.layer_names:
            made[name] = torch.zeros((config.num_blocks, spec.num_kv_heads, spec.block_size, width), dtype=spec.dtype)
    return made


@contextmanager
def _broken(loads: list[Any], blocks: set[int], requests: set[str]) -> Iterator[None]:
    """Loads of these blocks of the engine come short there; loads of these requests are refused."""
    real = Namespace.get
    short = {}
    for load in loads:
        bad = [index for index, block in enumerate(load.ids[0]) if block in blocks]
        if bad:
            short[load.keys.tobytes()] = bad[0]
        elif load.request in requests:
            short[load.keys.tobytes()] = -1

    def get(self: Any, chain: Any, *given: Any, **named: Any) -> Any:
        at = short.get(chain.tobytes())
        if at == -1:
            raise Rejected("as the test says")
        answer = real(self, chain, *given, **named)
        return answer if at is None else replace(answer, blocks=min(at, answer.blocks))

    Namespace.get = get
    try:
        yield
    finally:
        Namespace.get = real


def play(connector: Any, output: Any) -> Any:
    """A model runner's output, with what our worker says in the place of what the test says."""
    if not isinstance(connector, StoreUnderTest):
        return output
    said = connector.step(output.kv_connector_output or KVConnectorOutput())
    told = copy.copy(output)
    told.kv_connector_output = said
    return told


def settle(scheduler: Any, empty: Any) -> None:
    """An engine steps until its connector has nothing left to push."""
    connector = scheduler.connector
    if not isinstance(connector, StoreUnderTest):
        return
    end = time.monotonic() + WAIT_MAX_S
    while connector.has_pending_push_work() and time.monotonic() < end:
        scheduler.update_from_output(scheduler.schedule(), empty)
