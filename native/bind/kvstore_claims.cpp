// Python surface of the directory's native part. Keys are uint8 arrays of 16 or 32 bytes a row, of which the first 16 count.
//
//   namespace_word(digest: bytes) -> int
//   rendezvous(thing: bytes, nodes: u64 array, width) -> u32 array       # places of the highest, ascending
//   node_word(id: bytes) -> int                                          # what stands for a node in `nodes`
//   homes_of(keys, nodes: u64 array) -> (first i32, second i32)          # places; -1: there is none
//   claim_buckets(keys) -> u8 array; claim_digests(ns_word, keys, shards, tiers) -> u64[64]
//   class ClaimTable: see native/directory/claims.hpp
//     locate(ns_word, keys, holders_max, spread) -> (counts u8, nodes u16, shards u64, tiers u8)
//     name_node(node, id: bytes); answer_until(until_ns, view, holders_max); answer(message: bytes) -> bytes | None  # as the door does
//     apply(node, ns_word, keys, shards, tiers) -> (added, changed, withdrawn, unknown, evicted)
//   NodeCore.held(ns, keys) -> (shards u64, tiers u8); held_in(tier, ns, keys) -> shards u64
//   NodeCore.scan_held(after, max, ns=-1) -> (after, keys, ns u32, shards, tiers)
//   NodeCore.begun_since(sequence, max) -> (sequence, keys, ns u32); begun_sequence
//   NodeCore.watch(ns, shard, keys) -> int (0: too many, or not open); unwatch(watch); watch_fd; take_woken() -> list[(watch, abandoned)]
//   NodeCore.changes_since(sequence, max) -> (sequence, gap, keys, ns u32, cleared u32); namespace_digest(ns); namespaces_end
#include <nanobind/stl/optional.h>

#include "kvstore_claims.hpp"
#include "kvstore_core_class.hpp"
#include "kvstore_core_types.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore::bind {
namespace {

using RowsIn = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using BytesIn = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

KeyRows rows_of(const RowsIn& keys) {
  if (keys.shape(1) != 16 && keys.shape(1) != 32) throw nb::value_error("keys: 16 or 32 bytes each");
  return {keys.data(), keys.shape(0), keys.shape(1)};
}

std::span<const std::uint8_t> long_enough(const nb::bytes& bytes, const char* name) {
  if (bytes.size() < 16) throw nb::value_error((std::string(name) + ": at least 16 bytes").c_str());
  return span_of(bytes);
}

ClaimRows claims_of(std::uint32_t ns, const RowsIn& keys, const WordsIn& shards, const BytesIn& tiers) {
  if (shards.shape(0) != keys.shape(0) || tiers.shape(0) != keys.shape(0)) throw nb::value_error("shards, tiers: one a key");
  for (std::size_t i = 0; i < tiers.shape(0); ++i)
    if (shards.data()[i] != 0 && (tiers.data()[i] < 1 || tiers.data()[i] > NodeCore::kPublishing)) throw nb::value_error("tiers: 1 to 4 where there are shards");
  return {ns, rows_of(keys), words_of(shards), {tiers.data(), tiers.shape(0)}};
}

NodeNumber checked(const ClaimTable& table, std::uint32_t node) {
  if (!table.known(node)) throw nb::value_error("node: no such number");
  return static_cast<NodeNumber>(node);
}

ClaimsDesk::NodeId id_of(const nb::bytes& id) {
  ClaimsDesk::NodeId out;
  if (id.size() != out.size()) throw nb::value_error("id: 16 bytes");
  std::memcpy(out.data(), id.c_str(), out.size());
  return out;
}

void bind_functions(nb::module_& m) {
  m.def("namespace_word", [](const nb::bytes& digest) { return namespace_word(long_enough(digest, "digest")); }, "digest"_a);
  m.def("node_word", [](const nb::bytes& id) { return name_hash(long_enough(id, "id")); }, "id"_a);
  m.def("rendezvous", [](const nb::bytes& thing, const WordsIn& nodes, std::size_t width) {
    return array_of(highest(name_hash(long_enough(thing, "thing")), words_of(nodes), width));
  }, "thing"_a, "nodes"_a, "width"_a);
  m.def("homes_of", [](const RowsIn& keys, const WordsIn& nodes) {
    const KeyRows rows = rows_of(keys);
    std::vector<std::int32_t> first(rows.count), second(rows.count);
    {
      const MaybeRelease release(rows.count * nodes.shape(0) > 4'096);
      homes_of(rows, words_of(nodes), first, second);
    }
    return std::tuple(array_of(std::move(first)), array_of(std::move(second)));
  }, "keys"_a, "nodes"_a);
  m.def("claim_buckets", [](const RowsIn& keys) {
    const KeyRows rows = rows_of(keys);
    std::vector<std::uint8_t> out(rows.count);
    for (std::size_t i = 0; i < rows.count; ++i) out[i] = static_cast<std::uint8_t>(bucket_of(rows[i]));
    return array_of(std::move(out));
  }, "keys"_a);
  m.def("claim_digests", [](std::uint32_t ns, const RowsIn& keys, const WordsIn& shards, const BytesIn& tiers) {
    Digests digests{};
    fold_digests(claims_of(ns, keys, shards, tiers), digests);
    return array_of(std::vector<std::uint64_t>(digests.begin(), digests.end()));
  }, "ns_word"_a, "keys"_a, "shards"_a, "tiers"_a);
}

void bind_table(nb::module_& m) {
  nb::class_<Claims>(m, "ClaimTable", "What nodes say that they hold. See native/directory/claims.hpp, claims_desk.hpp.")
      .def("__init__", [](Claims* self, std::uint32_t claims_max, std::uint64_t hash_seed) {
             new (self) Claims{std::make_shared<ClaimsDesk>(ClaimConfig{claims_max, hash_seed})};
           }, "claims_max"_a = ClaimConfig{}.claims_max, "hash_seed"_a = ClaimConfig{}.hash_seed)
      .def("add_node", [](Claims& self) { return self.with([](ClaimTable& table) { return table.add_node(); }); })
      .def("name_node", [](Claims& self, std::uint32_t node, const nb::bytes& id) {
             const NodeNumber number = self.with([&](ClaimTable& table) { return checked(table, node); });
             self.desk->name(number, id_of(id));
           }, "node"_a, "id"_a)
      .def("answer_until", [](Claims& self, std::int64_t until, std::uint64_t view, std::uint32_t holders_max) {
             self.desk->answer_until(until, view, holders_max);
           }, "until"_a, "view"_a, "holders_max"_a)
      .def("answer", [](Claims& self, const nb::bytes& message) -> std::optional<nb::bytes> {
             std::vector<std::uint8_t> out;
             if (!self.desk->answer(span_of(message), out)) return std::nullopt;
             return bytes_of(out);
           }, "message"_a)
      .def("drop_node", [](Claims& self, std::uint32_t node) {
             return self.with([&](ClaimTable& table) { return table.drop_node(checked(table, node)); });
           }, "node"_a)
      .def("set_named", [](Claims& self, std::uint32_t node, bool named) {
             self.with([&](ClaimTable& table) { table.set_named(checked(table, node), named); });
           }, "node"_a, "named"_a)
      .def("apply", [](Claims& self, std::uint32_t node, std::uint32_t ns, const RowsIn& keys, const WordsIn& shards, const BytesIn& tiers) {
             const ClaimRows rows = claims_of(ns, keys, shards, tiers);
             const Applied done = self.with([&](ClaimTable& table) { return table.apply(checked(table, node), rows); });
             return std::tuple(done.added, done.changed, done.withdrawn, done.unknown, done.evicted);
           }, "node"_a, "ns_word"_a, "keys"_a, "shards"_a, "tiers"_a)
      .def("drop_namespace", [](Claims& self, std::uint32_t node, std::uint32_t ns) {
             return self.with([&](ClaimTable& table) { return table.drop_namespace(checked(table, node), ns); });
           }, "node"_a, "ns_word"_a)
      .def("begin", [](Claims& self, std::uint32_t node, std::uint64_t buckets) {
             self.with([&](ClaimTable& table) { table.begin(checked(table, node), buckets); });
           }, "node"_a, "buckets"_a)
      .def("end", [](Claims& self, std::uint32_t node, std::uint64_t buckets) {
             return self.with([&](ClaimTable& table) { return table.end(checked(table, node), buckets); });
           }, "node"_a, "buckets"_a)
      .def("locate", [](Claims& self, std::uint32_t ns, const RowsIn& keys, std::uint32_t holders_max, std::uint32_t spread) {
             Located out;
             const KeyRows rows = rows_of(keys);
             self.with([&](ClaimTable& table) { table.locate(ns, rows, holders_max, spread, out); });
             return std::tuple(array_of(std::move(out.counts)), array_of(std::move(out.nodes)), array_of(std::move(out.shards)),
                               array_of(std::move(out.tiers)));
           }, "ns_word"_a, "keys"_a, "holders_max"_a, "spread"_a)
      .def("digests", [](Claims& self, std::uint32_t node) {
             const Digests digests = self.with([&](ClaimTable& table) { return table.digests(checked(table, node)); });
             return array_of(std::vector<std::uint64_t>(digests.begin(), digests.end()));
           }, "node"_a)
      .def("claims_of", [](Claims& self, std::uint32_t node) {
             return self.with([&](ClaimTable& table) { return table.claims_of(checked(table, node)); });
           }, "node"_a)
      .def("evicted_of", [](Claims& self, std::uint32_t node) {
             return self.with([&](ClaimTable& table) { return table.evicted_of(checked(table, node)); });
           }, "node"_a)
      .def("__len__", [](Claims& self) { return self.with([](ClaimTable& table) { return table.size(); }); })
      .def_prop_ro("claims_max", [](Claims& self) { return self.with([](ClaimTable& table) { return table.claims_max(); }); })
      .def_prop_ro("memory_bytes", [](Claims& self) { return self.with([](ClaimTable& table) { return table.memory_bytes(); }); })
      .def("check_integrity", [](Claims& self) { self.with([](ClaimTable& table) { table.check_integrity(); }); });
}

}  // namespace

void bind_claims(nb::module_& m) {
  bind_functions(m);
  bind_table(m);
}

void bind_held(nb::class_<CoreClass>& core) {
  core.def("held", [](CoreClass& self, NsId ns, const KeysIn& keys) {
            std::vector<std::uint64_t> shards(keys.shape(0));
            std::vector<std::uint8_t> tiers(keys.shape(0));
            {
              nb::gil_scoped_release release;
              self.core.held(ns, keys_of(keys), shards, tiers);
            }
            return std::tuple(array_of(std::move(shards)), array_of(std::move(tiers)));
          }, "ns"_a, "keys"_a)
      .def("held_in", [](CoreClass& self, int tier, NsId ns, const KeysIn& keys) {
            if (tier != 1 && tier != 2) throw nb::value_error("tier: 1 or 2");
            std::vector<std::uint64_t> shards(keys.shape(0));
            {
              nb::gil_scoped_release release;
              self.core.held_in(static_cast<Tier>(tier), ns, keys_of(keys), shards);
            }
            return array_of(std::move(shards));
          }, "tier"_a, "ns"_a, "keys"_a)
      .def("scan_held", [](CoreClass& self, std::uint64_t after, std::size_t max, std::int64_t ns) {
            HeldKeys out;
            {
              nb::gil_scoped_release release;
              after = self.core.scan_held(after, max, ns < 0 ? kNoNamespace : static_cast<NsId>(ns), out);
            }
            return std::tuple(after, array_of(std::move(out.keys)), array_of(std::move(out.ns)), array_of(std::move(out.shards)),
                              array_of(std::move(out.tiers)));
          }, "after"_a, "max"_a, "ns"_a = -1)
      .def("changes_since", [](CoreClass& self, std::uint64_t sequence, std::size_t max) {
            Changes out;
            {
              nb::gil_scoped_release release;
              out = self.core.changes_since(sequence, max);
            }
            return std::tuple(out.sequence, out.gap, array_of(std::move(out.keys)), array_of(std::move(out.ns)), array_of(std::move(out.cleared)));
          }, "sequence"_a, "max"_a)
      .def("begun_since", [](CoreClass& self, std::uint64_t sequence, std::size_t max) {
            Changes out;
            {
              nb::gil_scoped_release release;
              out = self.core.begun_since(sequence, max);
            }
            return std::tuple(out.sequence, array_of(std::move(out.keys)), array_of(std::move(out.ns)));
          }, "sequence"_a, "max"_a)
      .def_prop_ro("begun_sequence", [](CoreClass& self) { return self.core.begun_sequence(); })
      .def("watch", [](CoreClass& self, NsId ns, std::uint16_t shard, const KeysIn& keys) {
            nb::gil_scoped_release release;
            return self.core.watch(ns, shard, keys_of(keys));
          }, "ns"_a, "shard"_a, "keys"_a)
      .def("unwatch", [](CoreClass& self, std::uint64_t watch) { self.core.unwatch(watch); }, "watch"_a)
      .def_prop_ro("watch_fd", [](CoreClass& self) { return self.core.watch_fd(); })
      .def("take_woken", [](CoreClass& self) {
            std::vector<std::pair<std::uint64_t, bool>> out;
            for (const Woken& one : self.core.take_woken()) out.emplace_back(one.watch, one.abandoned);
            return out;
          })
      .def("namespace_digest", [](CoreClass& self, NsId ns) -> std::optional<nb::bytes> {
            const std::optional<Key> digest = self.core.namespace_digest(ns);
            if (!digest) return std::nullopt;
            return bytes_of(*digest);
          }, "ns"_a)
      .def_prop_ro("namespaces_end", [](CoreClass& self) { return self.core.namespaces_end(); });
}

}  // namespace kvstore::bind
