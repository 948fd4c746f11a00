"""A node's /metrics: which of its parts tells what, and the endpoint that carries it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import kvstore
from kvstore.node.auth import Denied
from kvstore.node.locator import LocatorCounts
from kvstore.observe.http import MetricsServer
from kvstore.observe.metrics import ClusterSample, NamespaceLabels, NodeCollector, Source, TierSample

if TYPE_CHECKING:
    from kvstore.config import Config
    from kvstore.node.auth import Guard
    from kvstore.node.handlers import Handlers, NodeHost
    from kvstore.node.kv_publisher import KvPublisher
    from kvstore.node.tls import Certificates


class Telemetry:
    """From `start` to `stop`. `address`: where it listens; "" without an endpoint."""

    def __init__(
        self,
        config: Config,
        guard: Guard,
        certificates: Certificates,
        host: NodeHost,
        handlers: Handlers,
        kv_events: KvPublisher,
    ) -> None:
        self._config, self._certificates, self._host, self._handlers = config, certificates, host, handlers
        core = host.bridge.core
        source = Source(
            counters=core.counters,
            tiers=self._tiers,
            denials=self._denials,
            namespace=self._namespace,
            family=self._family,
            transfers=lambda: host.transfers.connector.counts,
            cluster=self._cluster,
            kv_events=lambda: kv_events.counts,
            info={"node": host.name, "version": kvstore.__version__},
            families_told_max=config.metrics.families_told_max,
        )
        self._guard = guard
        self._server = MetricsServer(NodeCollector(source), self._authorize, Denied)
        self.address = ""

    def start(self) -> None:
        """Raises Misconfigured where the address cannot be had."""
        if self._config.metrics.address == "none":
            return
        host, _, port = self._config.metrics.address.rpartition(":")
        bare = host.strip("[]")
        bound = self._server.start(bare, int(port), self._certificates.context)
        scheme = "https" if self._config.security.tls else "http"
        self.address = f"{scheme}://{host}:{bound}/metrics"

    def stop(self) -> None:
        self._server.stop()

    def _authorize(self, headers: Mapping[str, str], certificate_names: Iterable[str]) -> None:
        try:
            self._guard.authorize_metrics(headers, certificate_names)
        except Denied as denied:
            self._guard.denied("metrics", denied)
            raise

    def _denials(self) -> dict[tuple[str, bool], int]:
        """The framed door turns most away in native code, before anybody has asked the guard."""
        told = self._guard.denials()
        told["framed", False] += self._host.doors().refused
        return told

    def _cluster(self) -> ClusterSample:
        cluster = self._host.cluster
        counts = cluster.locator.counts if cluster.locator is not None else LocatorCounts()
        return ClusterSample(
            nodes=cluster.states,
            pings=cluster.counts.pings,
            pings_failed=cluster.counts.pings_failed,
            deaths=cluster.counts.deaths,
            discovery_away=cluster.discovery.away_s > 0,
            stood_still=not cluster.fit,
            claims=counts.claims,
            claims_bytes=counts.claims_bytes,
            told=counts.told,
            resyncs=counts.resyncs,
            lookups=counts.lookups,
            asked=counts.asked,
            hedged=counts.hedged,
            unanswered=counts.unanswered,
            answered=counts.answered + self._host.doors().located,
            far=self._host.lender.counts,
        )

    def _tiers(self) -> list[TierSample]:
        return [TierSample(told.tier, told.capacity_bytes, told.stats) for told in self._host.tiers()]

    def _namespace(self, handle: int) -> NamespaceLabels | None:
        opened = self._host.namespaces.by_handle(handle)
        if opened is None:
            return None
        return NamespaceLabels(opened.digest.hex()[:12], opened.tenant, opened.identity.model)

    def _family(self, family: int) -> str:
        return self._handlers.label(family) or f"{family:016x}"
