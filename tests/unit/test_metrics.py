"""Each number that native code counts is told under its own name, and what is told can be read as it says."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kvstore.node.kv_publisher import KvEventCounts
from kvstore.observe.metrics import ClusterSample, NamespaceLabels, NodeCollector, Source, TierSample
from tests.architecture.test_dashboard import counts
from transfer.paths import Path, PathCounts

NAMESPACES = {1: NamespaceLabels("aaa", "acme", "m"), 2: NamespaceLabels("bbb", "acme", "m")}
TIER_STATS = (
    *("payload_bytes_sealed", "holds", "pinned_bytes", "index_bytes", "slabs_moved", "quarantined"),
    *("slots_reserved", "slots_sealed", "slots_retired"),
    *("evicted_clean", "evicted_dirty", "lapsed_reservations", "lapsed_leases"),
)


def told(counted: dict[str, Any], *samples: TierSample, families_told_max: int = 10) -> dict[tuple[str, ...], float]:
    """By name and labels, through the text that a scraper reads; nothing is told twice."""
    source = Source(
        counters=lambda: counted,
        tiers=lambda: samples,
        denials=lambda: {("grpc", False): 3, ("grpc", True): 4},
        namespace=NAMESPACES.get,
        family=lambda family: f"f{family % 100}",
        transfers=lambda: {path: PathCounts(*range(i, i + 50, 10)) for i, path in enumerate(Path, 1)},
        cluster=lambda: ClusterSample(
            {"alive": 3, "suspect": 0, "dead": 1}, 50, 6, 2, discovery_away=True, stood_still=False
        ),
        kv_events=lambda: KvEventCounts(batches=61, stored=62, removed=63, anew=64, replays=65, left_out=66),
        info={"node": "n", "version": "0"},
        families_told_max=families_told_max,
    )
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(source))
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            name = (sample.name, *sorted(sample.labels.values()))
            assert name not in found, f"{name} is told twice"
            found[name] = sample.value
    return found


def family(number: int, ns: int, asked: int, hits: tuple[int, int, int]) -> dict[str, Any]:
    return {"family": number, "ns": ns, "asked": asked, "by_tier": [0, *hits], "error": 0}


def test_the_families_asked_for_most_are_told_once_each() -> None:
    counted = counts()
    counted["families"] = [
        family(1, 1, 5, (1, 2, 1)),
        family(2, 1, 50, (0, 0, 7)),
        family(102, 2, 60, (3, 0, 0)),  # the same label in another namespace of the tenant: the larger one is told
        family(3, 1, 20, (20, 0, 0)),
        family(4, 9, 30, (0, 0, 0)),  # of a namespace that nobody knows any more
    ]
    found = told(counted)
    asked = {name[1:]: value for name, value in found.items() if name[0] == "kvstore_family_blocks_asked_total"}
    assert asked == {("acme", "f2"): 60, ("", "f4"): 30, ("acme", "f3"): 20, ("acme", "f1"): 5}
    hits = {name[1:]: value for name, value in found.items() if name[0] == "kvstore_family_blocks_hit_total"}
    assert hits == {("acme", "f2"): 3, ("", "f4"): 0, ("acme", "f3"): 20, ("acme", "f1"): 4}
    few = told(counted, families_told_max=3)
    assert sorted(name[2] for name in few if name[0] == "kvstore_family_blocks_asked_total") == ["f2", "f4"]


def test_namespaces_have_numbers_of_their_own() -> None:
    counted = counts()
    row = {"asked": 9, "failed": 2, "stored": 5, "by_tier": [0, 3, 2, 1]}
    other = {"asked": 90, "failed": 20, "stored": 50, "by_tier": [0, 30, 20, 10]}
    counted["namespaces"] = {1: row, 2: other, 7: row}  # of 7 nobody knows any more
    found = told(counted)
    for labels, times in ((("aaa", "acme", "m"), 1), (("acme", "bbb", "m"), 10)):
        for what, value in (("asked", 9), ("failed", 2), ("stored", 5)):
            assert found[f"kvstore_namespace_blocks_{what}_total", *labels] == value * times
        for tier, value in (("memory", 3), ("file", 2), ("object", 1)):
            assert found["kvstore_namespace_blocks_hit_total", *sorted((*labels, tier))] == value * times
    assert len([name for name in found if name[0] == "kvstore_namespace_blocks_asked_total"]) == 2


def test_a_tier_tells_each_of_its_numbers() -> None:
    stats = {name: 100 + i for i, name in enumerate(TIER_STATS)}
    found = told(counts(), TierSample(2, 77, stats))
    expected = {
        ("capacity_bytes", "file"): 77,
        ("used_bytes", "file"): stats["payload_bytes_sealed"],
        ("slots", "file", "reserved"): stats["slots_reserved"],
        ("slots", "file", "sealed"): stats["slots_sealed"],
        ("slots", "file", "retired"): stats["slots_retired"],
        ("holds", "file"): stats["holds"],
        ("pinned_bytes", "file"): stats["pinned_bytes"],
        ("index_bytes", "file"): stats["index_bytes"],
        ("evictions_total", "file", "yes"): stats["evicted_clean"],
        ("evictions_total", "file", "no"): stats["evicted_dirty"],
        ("lapses_total", "file", "reservation"): stats["lapsed_reservations"],
        ("lapses_total", "file", "lease"): stats["lapsed_leases"],
        ("slabs_moved_total", "file"): stats["slabs_moved"],
        ("slots_quarantined_total", "file"): stats["quarantined"],
    }
    for (name, *labels), value in expected.items():
        assert found[f"kvstore_tier_{name}", *sorted(labels)] == value, name


def test_what_disks_and_buckets_did_not_take_is_told() -> None:
    shared = dict.fromkeys(TIER_STATS, 0)
    files = {"file_write_failures": 5, "file_checkpoint_failures": 6}
    counters = ("probes", "probes_dropped", "errors", "not_asked", "circuit_opened", "write_failures", "sweeps")
    objects = {f"object_{name}": 10 + i for i, name in enumerate((*counters, "blocks_passed_over"))}
    events = {f"object_packs_{name}": 20 + i for i, name in enumerate(("written", "read", "deleted", "damaged"))}
    others = {"object_bytes_written": 30, "object_bytes_read": 31, "object_unreachable": 1, "blocks_known": 33}
    found = told(counts(), TierSample(2, 77, shared | files), TierSample(3, 0, shared | objects | events | others))
    for name, value in (files | objects).items():
        assert found[f"kvstore_{name}_total",] == value, name
    for name, value in events.items():
        assert found["kvstore_object_packs_total", name.removeprefix("object_packs_")] == value
    assert found["kvstore_object_packs_total", "there_already"] == 0
    assert (found["kvstore_object_bytes_total", "written"], found["kvstore_object_bytes_total", "read"]) == (30, 31)
    assert (found["kvstore_object_unreachable",], found["kvstore_object_blocks_known",]) == (1, 33)
    without = told(counts(), TierSample(1, 77, shared))
    assert {without[f"kvstore_{name}_total",] for name in (files | objects)} == {0}


def test_times_are_seconds_in_growing_buckets() -> None:
    counted = counts()
    path = counted["paths"]["get_mapped"]
    path["counts"] = list(range(1, len(path["counts"]) + 1))
    path["sum_ns"], path["bytes"] = 2_500_000_000, 4096
    found = told(counted)
    bounds = [*map(repr, counted["bounds_s"]), "+Inf"]
    buckets = [found["kvstore_path_seconds_bucket", *sorted((bound, "get_mapped"))] for bound in bounds]
    total = sum(path["counts"])
    assert buckets == [sum(path["counts"][: i + 1]) for i in range(len(bounds))] and buckets[-1] == total
    assert found["kvstore_path_seconds_count", "get_mapped"] == total
    assert found["kvstore_path_seconds_sum", "get_mapped"] == 2.5
    assert found["kvstore_path_bytes_total", "get_mapped"] == 4096


def test_the_unknown_and_the_forbidden_are_told_apart() -> None:
    found = told(counts())
    assert found["kvstore_calls_denied_total", "grpc", "unknown"] == 3
    assert found["kvstore_calls_denied_total", "forbidden", "grpc"] == 4


def test_each_path_to_peers_has_numbers_of_its_own() -> None:
    found = told(counts())
    for i, path in enumerate(("process", "host", "rdma", "tcp"), 1):
        assert found["kvstore_transfer_endpoints", path] == i
        assert found["kvstore_transfer_connects_total", path] == i + 10
        assert found["kvstore_transfer_refusals_total", path] == i + 20
        assert found["kvstore_transfer_bytes_total", *sorted((path, "read"))] == i + 30
        assert found["kvstore_transfer_bytes_total", *sorted((path, "written"))] == i + 40


def test_what_routers_are_told_is_counted() -> None:
    found = told(counts())
    names = ("batches", "stored", "removed", "anew", "replays", "left_out")
    assert [found[f"kvstore_kv_events_{name}_total",] for name in names] == [61, 62, 63, 64, 65, 66]
