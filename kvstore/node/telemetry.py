"""A node's /metrics: which of its parts tells what, and the endpoint that carries it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kvstore
from kvstore.node.auth import Denied
from kvstore.node.tls import server_context
from kvstore.observe.http import MetricsServer
from kvstore.observe.metrics import NamespaceLabels, NodeCollector, Source, TierSample

if TYPE_CHECKING:
    from kvstore.config import Config
    from kvstore.node.auth import Guard
    from kvstore.node.handlers import Handlers, NodeHost


class Telemetry:
    """From `start` to `stop`. `address`: where it listens; "" without an endpoint."""

    def __init__(self, config: Config, guard: Guard, host: NodeHost, handlers: Handlers) -> None:
        self._config, self._host, self._handlers = config, host, handlers
        core = host.bridge.core
        source = Source(
            counters=core.counters,
            tiers=self._tiers,
            namespace=self._namespace,
            family=self._family,
            info={"node": host.name, "version": kvstore.__version__},
            families_told_max=config.metrics.families_told_max,
        )
        self._server = MetricsServer(NodeCollector(source), guard.authorize_metrics, Denied)
        self.address = ""

    def start(self) -> None:
        """Raises Misconfigured where the address cannot be had."""
        if self._config.metrics.address == "none":
            return
        host, _, port = self._config.metrics.address.rpartition(":")
        bare = host.strip("[]")
        bound = self._server.start(bare, int(port), server_context(self._config.security))
        scheme = "https" if self._config.security.tls else "http"
        self.address = f"{scheme}://{host}:{bound}/metrics"

    def stop(self) -> None:
        self._server.stop()

    def _tiers(self) -> list[TierSample]:
        return [TierSample(told.tier, told.capacity_bytes, told.stats) for told in self._host.tiers()]

    def _namespace(self, handle: int) -> NamespaceLabels | None:
        opened = self._host.namespaces.by_handle(handle)
        if opened is None:
            return None
        return NamespaceLabels(opened.digest.hex()[:12], opened.tenant, opened.identity.model)

    def _family(self, family: int) -> str:
        return self._handlers.label(family) or f"{family:016x}"
