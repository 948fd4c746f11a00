// A node's counters as plain data, for the collector of metrics and for administration.
//
//   counters() -> {
//     name: int,                                   # every counter of CoreCounters by its name
//     "by_tier", "tokens_by_tier", "corrupt", "read_failed", "demoted", "promoted": (none, memory, file, object)
//     "namespaces": {ns: {"open", "tenant", "block_tokens", "digest", "gets", "asked", "by_tier", "failed", "lookups", "lookup_keys",
//                         "lookup_found", "stored", "stored_bytes"}},
//     "families": [{"family", "ns", "gets", "asked", "by_tier", "failed", "error"}],
//     "paths": {"get_mapped" | "get_transferred" | "get_grpc" | "put_mapped" | "put_transferred" | "put_grpc" | "hold_memory" |
//               "hold_parked":
//               {"counts": [int], "sum_ns": int, "bytes": int}},
//     "bounds_s": [float] }                        # upper bounds of the counts but the last, which has none
#include <nanobind/stl/string.h>

#include "kvstore_core_class.hpp"

namespace nb = nanobind;

namespace kvstore::bind {
namespace {

template <class Array>
nb::tuple four(const Array& values) {
  return nb::make_tuple(values[0], values[1], values[2], values[3]);
}

void put_blocks(nb::dict& row, const BlockCounts& blocks) {
  row["gets"] = blocks.gets;
  row["asked"] = blocks.asked;
  row["by_tier"] = four(blocks.by_tier);
  row["failed"] = blocks.failed;
}

nb::dict namespaces_of(const CountersCopy& copy) {
  nb::dict rows;
  for (std::size_t i = 0; i < copy.ns.size(); ++i) {
    const NamespaceCounts& counts = copy.namespaces[i];
    nb::dict row;
    put_blocks(row, counts.blocks);
    row["open"] = counts.open;
    row["tenant"] = counts.tenant;
    row["block_tokens"] = counts.block_tokens;
    row["digest"] = nb::bytes(counts.digest.bytes.data(), counts.digest.bytes.size());
    row["lookups"] = counts.lookups;
    row["lookup_keys"] = counts.lookup_keys;
    row["lookup_found"] = counts.lookup_found;
    row["stored"] = counts.stored;
    row["stored_bytes"] = counts.stored_bytes;
    rows[nb::int_(copy.ns[i])] = row;
  }
  return rows;
}

nb::list families_of(const CountersCopy& copy) {
  nb::list rows;
  for (const FamilyCounts& counts : copy.families) {
    nb::dict row;
    row["family"] = counts.family;
    row["ns"] = counts.ns;
    put_blocks(row, counts.blocks);
    row["error"] = counts.error;
    rows.append(row);
  }
  return rows;
}

nb::dict paths_of(const CoreCounters& totals) {
  static constexpr const char* kNames[kMovePaths] = {"get_mapped", "get_transferred", "get_grpc", "put_mapped", "put_transferred", "put_grpc",
                                                      "hold_memory", "hold_parked"};
  nb::dict paths;
  for (std::size_t i = 0; i < kMovePaths; ++i) {
    const Histogram& histogram = totals.paths[i];
    nb::dict row;
    nb::list counts;
    for (const std::uint64_t count : histogram.counts) counts.append(count);
    row["counts"] = counts;
    row["sum_ns"] = histogram.sum_ns;
    row["bytes"] = histogram.bytes;
    paths[kNames[i]] = row;
  }
  return paths;
}

nb::dict counters(CoreClass& self) {
  CountersCopy copy;
  {
    nb::gil_scoped_release release;
    copy = self.core.counters();
  }
  const CoreCounters& t = copy.totals;
  nb::dict all;
  put_blocks(all, t.blocks);
  const std::pair<const char*, std::uint64_t> rows[] = {
      {"tokens_asked", t.tokens_asked}, {"lookups", t.lookups}, {"lookup_keys", t.lookup_keys}, {"lookup_found", t.lookup_found},
      {"puts", t.puts}, {"put_keys", t.put_keys}, {"put_granted", t.put_granted}, {"put_held", t.put_held},
      {"put_pending", t.put_pending}, {"put_full", t.put_full}, {"put_too_large", t.put_too_large}, {"put_lapsed", t.put_lapsed},
      {"stored", t.stored}, {"stored_bytes", t.stored_bytes}, {"holds_parked", t.holds_parked}, {"parked_late", t.parked_late},
      {"parked_refused", t.parked_refused}, {"promotions_asked", t.promotions_asked}, {"promotions_ended", t.promotions_ended},
      {"work_dropped", t.work_dropped}, {"corrupt_reported", t.corrupt_reported}, {"refused_limit", t.refused_limit},
      {"refused_input", t.refused_input}, {"stale_namespace", t.stale_namespace}, {"cleared", t.cleared},
      {"demotions_dropped", t.demotions_dropped}, {"parked", copy.parked}, {"works", copy.works},
      {"namespaces_open", copy.namespaces_open}};
  for (const auto& [name, value] : rows) all[name] = value;
  all["tokens_by_tier"] = four(t.tokens_by_tier);
  all["corrupt"] = four(t.corrupt);
  all["read_failed"] = four(t.read_failed);
  all["demoted"] = four(t.demoted);
  all["promoted"] = four(t.promoted);
  all["namespaces"] = namespaces_of(copy);
  all["families"] = families_of(copy);
  all["paths"] = paths_of(t);
  nb::list bounds;
  for (std::size_t i = 0; i + 1 < Histogram::kBuckets; ++i) bounds.append(static_cast<double>(1ull << i) * 1e-6);
  all["bounds_s"] = bounds;
  return all;
}

}  // namespace

void bind_counters(nb::class_<CoreClass>& core) {
  core.def("counters", &counters, nb::sig("def counters(self) -> dict[str, typing.Any]"));
}

}  // namespace kvstore::bind
