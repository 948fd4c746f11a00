"""What a node tells Prometheus. Counters live in native code; this reads them when it is asked and keeps nothing.

Rules
- Hit rate over any window is a ratio of two counters: blocks or tokens hit over blocks or tokens asked, counted once a
  get. Lookups are counted apart, and blocks that were there but could not be read are neither hits nor plain misses.
- Labels are bounded: tiers and outcomes by their kind, namespaces by `namespaces_max`, families by `families_told_max`.
- Names and meanings are listed in docs/metrics.md, which a test compares with what is told here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kvstore.observe.kv_event_metrics import KvEventSample, kv_event_metrics
from transfer.paths import Path, PathCounts

TIERS: Final = {1: "memory", 2: "file", 3: "object"}
FILE: Final = 2
OBJECT: Final = 3
PATHS: Final = (
    "get_mapped",
    "get_transferred",
    "get_grpc",
    "put_mapped",
    "put_transferred",
    "put_grpc",
    "hold_memory",
    "hold_parked",
)
PUT_OUTCOMES: Final = ("granted", "held", "pending", "full", "too_large", "lapsed")

Counts = Mapping[str, Any]  # of native code, by the names of native/core/counters.hpp


@dataclass(frozen=True, slots=True)
class NamespaceLabels:
    namespace: str  # the first 12 hex digits of its digest
    tenant: str
    model: str


@dataclass(frozen=True, slots=True)
class TierSample:
    """One tier: its capacity, and the counters of its table or its object store, by name."""

    tier: int
    capacity_bytes: int
    stats: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ClusterSample:
    """The nodes that this one knows of, itself among them, by state; what it has asked them; whether discovery is
    away; whether this node stood still and is not believed again yet. Then its part of the directory: claims that it
    keeps and their memory, and what LocatorCounts says. far: what clients of this node got from others.
    """

    nodes: Mapping[str, int]
    pings: int
    pings_failed: int
    deaths: int
    discovery_away: bool
    stood_still: bool
    claims: int = 0
    claims_bytes: int = 0
    told: int = 0
    resyncs: int = 0
    lookups: int = 0
    asked: int = 0
    hedged: int = 0
    unanswered: int = 0
    answered: int = 0
    far: FarSample | None = None


class FarSample(Protocol):
    """As kvstore.node.far.FarCounts."""

    @property
    def leases(self) -> int: ...
    @property
    def asked(self) -> int: ...
    @property
    def passed_over(self) -> int: ...
    @property
    def corrupt(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def replicas(self) -> int: ...
    @property
    def busy(self) -> int: ...
    @property
    def wanted(self) -> int: ...
    @property
    def unwanted(self) -> int: ...
    @property
    def blocks(self) -> Mapping[int, int]: ...


@dataclass(frozen=True, slots=True)
class Source:
    """Where a collector reads. Called on the metrics thread; each call takes the core's mutex for microseconds."""

    counters: Callable[[], Counts]
    tiers: Callable[[], Sequence[TierSample]]
    denials: Callable[[], Mapping[tuple[str, bool], int]]  # by door, and whether it knew who that was
    namespace: Callable[[int], NamespaceLabels | None]
    family: Callable[[int], str]
    transfers: Callable[[], Mapping[Path, PathCounts]]
    cluster: Callable[[], ClusterSample]
    kv_events: Callable[[], KvEventSample]
    info: Mapping[str, str]
    families_told_max: int


class NodeCollector(Collector):
    """Register it with a registry of the node's own."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is read at registration

    def collect(self) -> Iterator[Metric]:
        counts = self._source.counters()
        yield _gauge("kvstore_node_info", "What this node is; the value is 1.", self._source.info)
        yield from hits(counts)
        yield from by_namespace(counts, self._source.namespace)
        yield from by_family(counts, self._source)
        yield from traffic(counts)
        yield from failures(counts)
        yield denied(self._source.denials())
        yield from paths(counts)
        yield from transfers(self._source.transfers())
        yield from cluster(self._source.cluster())
        yield from kv_event_metrics(self._source.kv_events())
        samples = self._source.tiers()
        yield from tiers(samples)
        yield from files(next((one.stats for one in samples if one.tier == FILE), {}))
        yield from objects(next((one.stats for one in samples if one.tier == OBJECT), {}))


def hits(counts: Counts) -> Iterator[Metric]:
    yield _counter("kvstore_gets", "Gets ended.", counts["gets"])
    yield _counter("kvstore_get_blocks_asked", "Blocks asked for by gets.", counts["asked"])
    yield _by_tier(
        "kvstore_get_blocks_hit", "Blocks that arrived and verified, by the tier they lay on.", counts["by_tier"]
    )
    yield _counter(
        "kvstore_get_blocks_failed",
        "Blocks that were there and did not arrive or verify: not misses.",
        counts["failed"],
    )
    yield _counter("kvstore_get_tokens_asked", "Tokens of the blocks asked for.", counts["tokens_asked"])
    yield _by_tier("kvstore_get_tokens_hit", "Tokens of the blocks that arrived.", counts["tokens_by_tier"])
    yield _counter("kvstore_lookups", "Lookups answered.", counts["lookups"])
    yield _counter("kvstore_lookup_keys", "Keys asked for by lookups.", counts["lookup_keys"])
    yield _counter(
        "kvstore_lookup_keys_found", "Keys before the boundaries that lookups answered.", counts["lookup_found"]
    )


def by_namespace(counts: Counts, labels_of: Callable[[int], NamespaceLabels | None]) -> Iterator[Metric]:
    names = ["namespace", "tenant", "model"]
    asked = CounterMetricFamily("kvstore_namespace_blocks_asked", "Blocks asked for by gets.", labels=names)
    hit = CounterMetricFamily("kvstore_namespace_blocks_hit", "Blocks that arrived.", labels=[*names, "tier"])
    failed = CounterMetricFamily("kvstore_namespace_blocks_failed", "Blocks there that did not arrive.", labels=names)
    stored = CounterMetricFamily("kvstore_namespace_blocks_stored", "Blocks sealed.", labels=names)
    for ns, row in counts["namespaces"].items():
        labels = labels_of(ns)
        if labels is None:
            continue
        values = [labels.namespace, labels.tenant, labels.model]
        asked.add_metric(values, row["asked"])
        failed.add_metric(values, row["failed"])
        stored.add_metric(values, row["stored"])
        for tier, name in TIERS.items():
            hit.add_metric([*values, name], row["by_tier"][tier])
    yield from (asked, hit, failed, stored)


def by_family(counts: Counts, source: Source) -> Iterator[Metric]:
    """The families asked for most; others are in the totals. A family that makes way for another ends its series."""
    names = ["family", "tenant"]
    asked = CounterMetricFamily("kvstore_family_blocks_asked", "Blocks asked for, of the top families.", labels=names)
    hit = CounterMetricFamily("kvstore_family_blocks_hit", "Blocks that arrived, of the top families.", labels=names)
    rows = sorted(counts["families"], key=lambda row: -int(row["asked"]))[: source.families_told_max]
    seen: set[tuple[str, str]] = set()
    for row in rows:
        labels = source.namespace(row["ns"])
        values = (source.family(row["family"]), labels.tenant if labels else "")
        if values in seen:  # the same label in two namespaces of a tenant: the larger one is told
            continue
        seen.add(values)
        asked.add_metric(values, row["asked"])
        hit.add_metric(values, sum(row["by_tier"][1:]))
    yield from (asked, hit)


def traffic(counts: Counts) -> Iterator[Metric]:
    puts = CounterMetricFamily("kvstore_put_keys", "Keys of puts, by what became of them.", labels=["outcome"])
    for outcome in PUT_OUTCOMES:
        puts.add_metric([outcome], counts[f"put_{outcome}"])
    yield puts
    yield _counter("kvstore_blocks_stored", "Blocks sealed in memory.", counts["stored"])
    yield _counter("kvstore_bytes_stored", "Their bytes.", counts["stored_bytes"])
    yield _by_tier("kvstore_blocks_demoted", "Blocks written to a lower tier, by tier.", counts["demoted"])
    yield _by_tier(
        "kvstore_blocks_promoted", "Blocks brought up to memory, by the tier they came from.", counts["promoted"]
    )
    yield _counter(
        "kvstore_demotions_dropped",
        "Blocks evicted before they were in a lower tier that was to have them.",
        counts["demotions_dropped"],
    )
    yield _gauge_value("kvstore_fetches_parked", "Fetches waiting for a promotion now.", counts["parked"])
    yield _counter("kvstore_holds_parked", "Fetches that had to wait for a promotion.", counts["holds_parked"])


def failures(counts: Counts) -> Iterator[Metric]:
    yield _by_tier("kvstore_blocks_corrupt", "Blocks dropped because they did not verify, by tier.", counts["corrupt"])
    yield _by_tier("kvstore_reads_failed", "Blocks a tier had and could not give.", counts["read_failed"])
    yield _counter(
        "kvstore_fetches_late", "Parked fetches answered at their deadline with what there was.", counts["parked_late"]
    )
    refused = CounterMetricFamily("kvstore_calls_refused", "Calls refused, by reason.", labels=["reason"])
    for reason, name in (
        ("limit", "refused_limit"),
        ("input", "refused_input"),
        ("stale_namespace", "stale_namespace"),
    ):
        refused.add_metric([reason], counts[name])
    yield refused
    yield _counter("kvstore_namespaces_cleared", "Namespaces cleared.", counts["cleared"])


def denied(denials: Mapping[tuple[str, bool], int]) -> Metric:
    """unknown: no or a wrong token, certificate or user. forbidden: not this one's tenant, or right."""
    told = CounterMetricFamily(
        "kvstore_calls_denied", "Callers turned away for who they are, by door.", labels=["door", "reason"]
    )
    for (door, known), count in denials.items():
        told.add_metric([door, "forbidden" if known else "unknown"], count)
    return told


def paths(counts: Counts) -> Iterator[Metric]:
    """Whole gets and puts as their clients saw them, and holds as the node did, by the path taken."""
    seconds = HistogramMetricFamily(
        "kvstore_path_seconds", "How long gets, puts and holds took, by path.", labels=["path"]
    )
    moved = CounterMetricFamily("kvstore_path_bytes", "Bytes moved, by path.", labels=["path"])
    bounds = [*map(repr, counts["bounds_s"]), "+Inf"]
    for name in PATHS:
        histogram = counts["paths"][name]
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip(bounds, histogram["counts"], strict=True):
            total += count
            buckets.append((bound, total))
        seconds.add_metric([name], buckets, histogram["sum_ns"] / 1e9)
        moved.add_metric([name], histogram["bytes"])
    yield from (seconds, moved)


def transfers(counts: Mapping[Path, PathCounts]) -> Iterator[Metric]:
    """The connections that this node has made to its peers. A way that should have worked and did not is a refusal:
    bytes then go by a slower one.
    """
    moved = CounterMetricFamily(
        "kvstore_transfer_bytes", "Bytes moved to and from peers, by path.", labels=["path", "direction"]
    )
    endpoints = GaugeMetricFamily("kvstore_transfer_endpoints", "Connections to peers now, by path.", labels=["path"])
    connects = CounterMetricFamily("kvstore_transfer_connects", "Connections made to peers, by path.", labels=["path"])
    refusals = CounterMetricFamily(
        "kvstore_transfer_refusals", "Paths that both sides have and that failed to connect.", labels=["path"]
    )
    for path, one in counts.items():
        moved.add_metric([path.value, "read"], one.bytes_read)
        moved.add_metric([path.value, "written"], one.bytes_written)
        moved.add_metric([path.value, "served"], one.bytes_served)
        endpoints.add_metric([path.value], one.endpoints)
        connects.add_metric([path.value], one.connects)
        refusals.add_metric([path.value], one.refusals)
    yield from (moved, endpoints, connects, refusals)


def cluster(sample: ClusterSample) -> Iterator[Metric]:
    nodes = GaugeMetricFamily(
        "kvstore_cluster_nodes", "Nodes that this one knows of, itself among them, by state.", labels=["state"]
    )
    for state, count in sample.nodes.items():
        nodes.add_metric([state], count)
    yield nodes
    yield _counter("kvstore_cluster_pings", "Pings to other nodes.", sample.pings)
    yield _counter("kvstore_cluster_pings_failed", "Pings that were not answered.", sample.pings_failed)
    yield _counter("kvstore_cluster_deaths", "How often another node was found dead.", sample.deaths)
    yield _gauge_value(
        "kvstore_cluster_discovery_away",
        "1: etcd does not answer; the nodes that are known stay known, none can join.",
        sample.discovery_away,
    )
    yield _gauge_value(
        "kvstore_cluster_stood_still",
        "1: this node stood still, and serves no other until a majority of them answers.",
        sample.stood_still,
    )
    yield _gauge_value("kvstore_directory_claims", "Claims of nodes that this one keeps.", sample.claims)
    yield _gauge_value("kvstore_directory_claims_bytes", "Their memory, index and all.", sample.claims_bytes)
    yield _counter("kvstore_announce_rows", "Keys that homes were told of: came, went, or told again.", sample.told)
    yield _counter("kvstore_announce_resyncs", "How often a home asked to be told everything.", sample.resyncs)
    yield _counter("kvstore_locate_lookups", "Lookups that went beyond this node.", sample.lookups)
    yield _counter("kvstore_locate_messages", "Homes asked by them, this node as its own home too.", sample.asked)
    yield _counter(
        "kvstore_locate_hedges", "Of these to second homes, since the first was slow or gone.", sample.hedged
    )
    yield _counter(
        "kvstore_locate_unanswered",
        "Messages to homes, of lookups and of announcements, without an answer.",
        sample.unanswered,
    )
    yield _counter(
        "kvstore_locate_answered", "What lookups of other nodes asked this one as a home of theirs.", sample.answered
    )
    if sample.far is not None:
        yield from far(sample.far)


def far(sample: FarSample) -> Iterator[Metric]:
    blocks = CounterMetricFamily(
        "kvstore_far_blocks",
        "Blocks that clients of this node read from others and verified, by the other's tier. They are among "
        "kvstore_get_blocks_hit, under the same tier.",
        labels=["tier"],
    )
    for tier, count in sample.blocks.items():
        blocks.add_metric([TIERS[tier]], count)
    yield blocks
    yield _counter("kvstore_far_bytes", "Their bytes.", sample.bytes)
    yield _counter("kvstore_far_leases", "Leases at other nodes handed on to clients.", sample.leases)
    yield _counter("kvstore_far_asked", "Holders asked for them.", sample.asked)
    yield _counter("kvstore_far_passed_over", "Of these, such as failed or had nothing any more.", sample.passed_over)
    yield _counter("kvstore_far_corrupt", "Blocks of other nodes that did not verify.", sample.corrupt)
    yield _counter("kvstore_far_replicas", "Blocks of other nodes copied into this one's memory.", sample.replicas)
    yield _counter("kvstore_far_busy", "Holders that had too many readers, and named others.", sample.busy)
    yield _counter(
        "kvstore_far_wanted",
        "Chains copied into this node's memory since they were got from others again.",
        sample.wanted,
    )
    yield _counter("kvstore_far_unwanted", "Chains that were not: others were under way, or no room.", sample.unwanted)


def tiers(samples: Sequence[TierSample]) -> Iterator[Metric]:
    capacity = GaugeMetricFamily("kvstore_tier_capacity_bytes", "Size of a tier; 0: unbounded.", labels=["tier"])
    used = GaugeMetricFamily("kvstore_tier_used_bytes", "Payload of sealed blocks.", labels=["tier"])
    slots = GaugeMetricFamily("kvstore_tier_slots", "Slots by state.", labels=["tier", "state"])
    held = GaugeMetricFamily("kvstore_tier_holds", "Leases, views and pins in force.", labels=["tier"])
    pinned = GaugeMetricFamily("kvstore_tier_pinned_bytes", "Bytes an operator has pinned.", labels=["tier"])
    index = GaugeMetricFamily("kvstore_tier_index_bytes", "Memory beyond payload.", labels=["tier"])
    evicted = CounterMetricFamily(
        "kvstore_tier_evictions", "Blocks evicted; clean: a lower tier has them.", labels=["tier", "clean"]
    )
    lapsed = CounterMetricFamily("kvstore_tier_lapses", "Reservations and leases that lapsed.", labels=["tier", "what"])
    moved = CounterMetricFamily(
        "kvstore_tier_slabs_moved", "Slabs taken from one size class for another.", labels=["tier"]
    )
    quarantined = CounterMetricFamily(
        "kvstore_tier_slots_quarantined", "Slots kept from reuse until their writer was gone.", labels=["tier"]
    )
    for sample in samples:
        name, stats = TIERS[sample.tier], sample.stats
        capacity.add_metric([name], sample.capacity_bytes)
        used.add_metric([name], stats["payload_bytes_sealed"])
        for state in ("reserved", "sealed", "retired"):
            slots.add_metric([name, state], stats.get(f"slots_{state}", 0))
        held.add_metric([name], stats.get("holds", 0))
        pinned.add_metric([name], stats.get("pinned_bytes", 0))
        index.add_metric([name], stats.get("index_bytes", 0))
        evicted.add_metric([name, "yes"], stats.get("evicted_clean", 0))
        evicted.add_metric([name, "no"], stats.get("evicted_dirty", 0))
        lapsed.add_metric([name, "reservation"], stats.get("lapsed_reservations", 0))
        lapsed.add_metric([name, "lease"], stats.get("lapsed_leases", 0))
        moved.add_metric([name], stats.get("slabs_moved", 0))
        quarantined.add_metric([name], stats.get("quarantined", 0))
    yield from (capacity, used, slots, held, pinned, index, evicted, lapsed, moved, quarantined)


def files(stats: Mapping[str, int]) -> Iterator[Metric]:
    """What the disk under the file tier did not take; all zero without one."""
    for name, text in (
        ("write_failures", "Runs of blocks that the disk did not take."),
        ("checkpoint_failures", "Changes of the index that could not be written: a restart may forget those blocks."),
    ):
        yield _counter(f"kvstore_file_{name}", text, stats.get(f"file_{name}", 0))


def objects(stats: Mapping[str, int]) -> Iterator[Metric]:
    """The object store's requests; all zero without one."""
    packs = CounterMetricFamily("kvstore_object_packs", "Packs, by what became of them.", labels=["event"])
    for event in ("written", "there_already", "read", "deleted", "damaged"):
        packs.add_metric([event], stats.get(f"object_packs_{event}", 0))
    yield packs
    moved = CounterMetricFamily("kvstore_object_bytes", "Bytes to and from the object store.", labels=["direction"])
    for direction in ("written", "read"):
        moved.add_metric([direction], stats.get(f"object_bytes_{direction}", 0))
    yield moved
    for name, text in (
        ("probes", "Packs looked for by name."),
        ("probes_dropped", "Chains not looked for, as too many were."),
        ("errors", "Requests that were not answered, or refused."),
        ("not_asked", "Requests not made, as the store did not answer before."),
        ("circuit_opened", "How often the store was left alone for a while."),
        ("write_failures", "Packs that the store did not take."),
        ("blocks_passed_over", "Blocks of groups that could not be put together."),
        ("sweeps", "Looks at all packs for the limit's sake."),
    ):
        yield _counter(f"kvstore_object_{name}", text, stats.get(f"object_{name}", 0))
    yield _gauge_value(
        "kvstore_object_unreachable", "1: the store does not answer.", stats.get("object_unreachable", 0)
    )
    yield _gauge_value("kvstore_object_blocks_known", "Blocks known to lie in packs.", stats.get("blocks_known", 0))


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)


def _gauge_value(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, labels: Mapping[str, str]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family


def _by_tier(name: str, text: str, values: Sequence[int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=["tier"])
    for tier, label in TIERS.items():
        family.add_metric([label], values[tier])
    return family
