"""vLLM's interface (KVConnectorBase_V1), each call handed to the half that it is for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1 import base

from engine_adapters.base.settings import AdapterSettings
from engine_adapters.vllm.events import events_of
from engine_adapters.vllm.layout import Unsupported, geometry_of, group_ids_of
from engine_adapters.vllm.meta import StepMeta, WorkerMeta
from engine_adapters.vllm.scheduler import StoreScheduler
from engine_adapters.vllm.stats import StoreStats, prometheus
from engine_adapters.vllm.worker import StoreWorker

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

__all__ = ["KVStoreConnector"]

log = logging.getLogger(__name__)


class KVStoreConnector(base.KVConnectorBase_V1, base.SupportsHMA):  # type: ignore[misc]
    """See engine_adapters/README.md. Raises Misconfigured for settings that cannot be; whatever else is wrong with the
    model or the store leaves the engine without the store, and says why.
    """

    def __init__(self, vllm_config: VllmConfig, role: base.KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        _register()
        settings = _settings_of(vllm_config, kv_cache_config)
        self._scheduler: StoreScheduler | None = None
        self._worker: StoreWorker | None = None
        try:
            geometry = geometry_of(vllm_config, kv_cache_config)
        except Unsupported as error:
            if role == base.KVConnectorRole.SCHEDULER:
                log.warning("the store is not used: %s", error)
            return
        if role == base.KVConnectorRole.SCHEDULER:
            events = getattr(vllm_config.kv_events_config, "enable_kv_cache_events", False)
            self._scheduler = StoreScheduler(settings, geometry, vllm_config, events=events)
            _warn(vllm_config)
        else:
            self._worker = StoreWorker(settings, vllm_config, kv_cache_config)

    @property
    def requires_kv_delivery(self) -> bool:
        """A save that is lost is a later miss."""
        return False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        return extra_config.get("load") == "layerwise"

    # ---- the scheduler's

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        if self._scheduler is not None:
            self._scheduler.bind(gpu_block_pool)

    def on_new_request(self, request: Request) -> None:
        if self._scheduler is not None:
            self._scheduler.on_new_request(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        if self._scheduler is None:
            return 0, False
        tokens, later = self._scheduler.matched(request, num_computed_tokens)
        return tokens, later and bool(tokens)

    def get_loaded_kv_cache_group_ids(self, request: Request) -> tuple[int, ...]:
        return group_ids_of(self._kv_cache_config)

    def get_external_cache_hit_sources(self, request: Request, num_external_tokens: int) -> dict[Any, int]:
        if self._scheduler is None or num_external_tokens == 0:
            return {}
        return _by_source()(self._scheduler.hit_sources(request), num_external_tokens)

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        if self._scheduler is not None:
            self._scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> StepMeta:
        return self._scheduler.build(scheduler_output) if self._scheduler is not None else StepMeta()

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        said = getattr(connector_output, "kv_connector_worker_meta", None)
        if self._scheduler is not None and type(said) is WorkerMeta:  # of an abstract class isinstance is Python
            self._scheduler.heard(said)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Blocks may be given back at once: those that are still read have references of their own."""
        return False, self._scheduler.finished(request, block_ids) if self._scheduler is not None else None

    def take_events(self) -> Iterable[KVCacheEvent]:
        if self._scheduler is None or not self._scheduler.saves.notes:
            return ()  # every step asks
        notes, self._scheduler.saves.notes = self._scheduler.saves.notes, []
        return events_of(notes)

    def has_pending_push_work(self) -> bool:
        return self._scheduler is not None and bool(self._scheduler.saves.under_way)

    def has_pending_block_frees(self) -> bool:
        return self._scheduler is not None and self._scheduler.saves.pinned

    def reset_cache(self) -> bool | None:
        return self._scheduler.clear() if self._scheduler is not None else None

    # ---- a worker's

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        if self._worker is not None:
            self._worker.register(kv_caches)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        if self._worker is not None:
            self._worker.start_loads(self._step())

    def wait_for_layer_load(self, layer_name: str) -> None:
        if self._worker is not None:
            self._worker.wait_for_layer(layer_name)

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Blocks are saved whole, when their step is over."""

    def wait_for_save(self) -> None:
        if self._worker is not None:
            self._worker.submit_saves(self._step())

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        if self._worker is None:
            return None, None
        return None, self._worker.results()[0] or None

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        finished, failed = self._worker.results() if self._worker is not None else (set(), set())
        return base.KVConnectorTransferResults(finished_recving=finished, failed_recving=failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.bad_blocks() if self._worker is not None else set()

    def build_connector_worker_meta(self) -> WorkerMeta | None:
        return self._worker.say() if self._worker is not None else None

    def get_kv_connector_stats(self) -> StoreStats | None:
        half = self._scheduler or self._worker
        return half.stats.take() if half is not None and half.stats.added else None  # every step asks

    def shutdown(self) -> None:
        half = self._scheduler or self._worker
        if half is not None:
            half.close()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> StoreStats:
        return StoreStats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, *arguments: Any, **named: Any) -> Any:
        _register()  # in the process that logs, where no connector is made
        return prometheus(*arguments, **named)

    def _step(self) -> StepMeta:
        meta = self._get_connector_metadata()
        assert isinstance(meta, StepMeta)
        return meta


@cache
def _by_source() -> Callable[[Sequence[int], int], dict[Any, int]]:
    """Only where it is asked for: releases that do not ask have no words for it."""
    from engine_adapters.vllm.sources import by_source

    return by_source


def _register() -> None:
    """A MultiConnector looks for whose statistics it was given by name alone, and the engine dies of a name that nobody
    has registered.
    """
    name = KVStoreConnector.__name__
    if name not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(name, KVStoreConnector.__module__, name)


def _settings_of(vllm_config: VllmConfig, config: KVCacheConfig) -> AdapterSettings:
    settings = AdapterSettings.of(vllm_config.kv_transfer_config.kv_connector_extra_config)
    if settings.load == "layerwise" and len(group_ids_of(config)) > 1:
        log.warning("load = layerwise: several cache groups, whose failures cannot be told by block; loading async")
        settings = settings.but(load="async")
    ahead = vllm_config.max_concurrent_batches > 1
    if settings.load != "none" and ahead and not vllm_config.kv_transfer_config.is_kv_consumer:
        # The engine gives blocks back while a step may still write to them, and only waits for it where it knows that
        # somebody else writes, too.
        log.warning("kv_role = kv_producer with steps that run ahead: nothing is loaded; choose kv_both to load")
        settings = settings.but(load="none")
    return settings


def _warn(vllm_config: VllmConfig) -> None:
    if vllm_config.kv_transfer_config.kv_load_failure_policy != "recompute":
        log.warning(
            "kv_load_failure_policy = fail: a block that does not arrive ends its request with an error;"
            " set it to recompute, and it is computed"
        )
