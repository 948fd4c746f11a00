// Python surface of NodeCore. Every call gives the GIL back and takes the core's mutex. `now` and durations: nanoseconds, monotonic.
//
//   TableConfig(bytes, slab_bytes=64 MiB, header_bytes=0, policy="leaf_lru")
//   class NodeCore:
//     def __init__(self, memory: TableConfig, file: TableConfig | None, *, meta: int, meta_bytes: int, incarnation: int,
//                  window_bytes=, reserve_lapse_ns=, lease_max_ns=, keys_per_call_max=, holds_per_owner_max=, namespaces_max=,
//                  parked_max=, families_max=, events_max=, pinned_bytes_max=0, held_bytes_max=0, answer_bytes_max=, free_share=0.25)
//         # `meta`: address of a mapping that outlives the core. meta all zero: a fresh start; else recovered.
//         # ValueError: it belongs to another format or geometry (then zero it: truncate to 0 and extend)
//     @staticmethod meta_bytes(memory: TableConfig) -> int         # how long the meta mapping must be
//     @staticmethod meta_usable(memory, meta: int, meta_bytes: int) -> bool   # zero, or of the same format and geometry
//     incarnation: int; former_incarnation: int (0: none); recovered: int
//     former_clients() -> list[tuple[int, int]]                    # (pid, start time) of those that may still touch the segment
//     new_owner() -> int                                           # an actor inside the node
//     open_namespace(digest: bytes, tenant: int, block_tokens: int, shards: list[list[int]]) -> int      # -1: namespaces_max
//     drop_namespace(ns) -> bool
//     set_object_tier(blocks_max), object_...                      # kvstore_objects.cpp
//   tier: 1 memory, 2 file. Tickets are slot | tenancy << 32. Arrays in and out are numpy, C-contiguous.
//     lookup(ns, keys, needs) -> (status, blocks, tiers: bytes, fetch_ns)
//     find(tier, ns, shard, keys) -> bool array
//     reserve(tier, owner, ns, shard, keys, parent: bytes, metas: list[bytes], hint, in_place, now) -> (status, statuses u8, tickets u64, offsets u64)
//     publish_part(owner, ticket, part, checksum) -> int
//     seal(tier, owner, tickets, checksums, now) -> outcomes u8; abort(tier, owner, tickets)
//     hold(tier, owner, ns, shard, keys) -> (hold, SlotRows)       # the mover's, kView, does not touch the policy: the run from keys[0]
//     hold_slots(tier, owner, tickets) -> (hold, SlotRows); release(tier, owner, hold) -> int
//     fetch(token, owner, ns, shard, keys, kind, following, hint, now, deadline, lease, held_open=False)
//     completion_fd; take_completions() -> list[FetchDone]         # token status hold lease window_full tickets offsets parts_ready tiers checksums
//     fetched(ns, hint, blocks_asked, blocks_by_tier, blocks_failed, path, bytes, elapsed_ns); report_corrupt(owner, ticket)
//     put_took(path, bytes, elapsed_ns)
//     owner_gone(owner); tick(now); next_deadline() -> int | None
//     work_fd; take_work(max) -> list[Work]                        # kind ns shard wanted_now keys (n,32) ticket position; kinds: PROMOTE WRITE_BEHIND CORRUPT PROBE
//     promoted(ns, shard, keys, now)
//     info(tier, tickets) -> SlotRows; scan(tier, after: int, max) -> (SlotRows, next: int)     # -1: the end
//         # SlotRows: tickets u64, keys (n,32), parents (n,32), ns u32, shards u16, states u8, clean bool, offsets u64, bytes u64, holds u32,
//         #           checksum_counts u32, checksums u64 (concatenated), metas list[bytes], positions u32, wanted bool
//     retire(tier, tickets, corrupt=False) -> int; retire_keys(ns, keys) -> int   # the latter on both tiers
//     encode_headers(tier, tickets, checksums, pages: writable buffer of 4096 bytes a ticket)
//     dirty_victims(tier, bytes, which=Dirty.ALL) -> tickets u64; which: ALL FRESH LOST, as slot_table.hpp says
//     mark_clean(tier, tickets), mark_lost, mark_dirty, mark_passed; recheck_clean(packs_below) -> int
//     restore(rows: bytes, epochs=0) -> int; file_epochs() -> int; drain_changes(max) -> (rows: bytes, freed: u64 array)        # file tier
//     quarantine_left() -> bool; stats(tier) -> dict[str, int]; check_integrity(tier)
//     failed_read(ns, tier, blocks); moved(from_tier, to_tier, blocks)   # counters told by the mover
//     events_since(sequence, max) -> (list[Event], gap: bool); event_sequence
//         # Event: sequence kind ns shard tier key parent meta; kinds: STORED REMOVED CLEARED
//     held(ns, keys), scan_held(...), changes_since(...)           # for the directory: kvstore_claims.cpp
//     counters() -> dict                                           # native/core/counters.hpp says what is in it
#include "buffers.hpp"
#include "core/slot_header.hpp"
#include "kvstore_core_class.hpp"
#include "kvstore_core_rows.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore::bind {
namespace {

void make_core(CoreClass* self, const TableConfig& memory, const std::optional<TableConfig>& file, std::uint64_t meta,
                     std::size_t meta_bytes, std::uint64_t incarnation, std::uint64_t window_bytes, Nanos reserve_lapse_ns,
                     Nanos lease_max_ns, Nanos promote_retry_ns, std::uint32_t keys_per_call_max,
                     std::uint32_t holds_per_owner_max, std::uint32_t namespaces_max, std::uint32_t parked_max,
                     std::uint32_t works_max, std::uint32_t families_max, std::uint32_t events_max,
                     std::uint64_t event_meta_bytes_max, std::uint64_t pinned_bytes_max, std::uint64_t held_bytes_max,
                     std::uint64_t answer_bytes_max, double free_share) {
  CoreConfig config;
  config.memory = memory;
  config.file = file;
  config.window_bytes = window_bytes;
  config.answer_bytes_max = answer_bytes_max;
  config.reserve_lapse = reserve_lapse_ns;
  config.lease_max = lease_max_ns;
  config.promote_retry = promote_retry_ns;
  config.keys_per_call_max = keys_per_call_max;
  config.holds_per_owner_max = holds_per_owner_max;
  config.namespaces_max = namespaces_max;
  config.parked_max = parked_max;
  config.works_max = works_max;
  config.families_max = families_max;
  config.events_max = events_max;
  config.event_meta_bytes_max = event_meta_bytes_max;
  config.pinned_bytes_max = pinned_bytes_max;
  config.held_bytes_max = held_bytes_max;
  config.free_share = free_share;
  new (self) CoreClass(config, reinterpret_cast<void*>(meta), meta_bytes, incarnation);
}

std::vector<WorkOut> take_work(CoreClass& self, std::size_t max) {
  std::vector<Work> works;
  {
    nb::gil_scoped_release release;
    works = self.core.take_work(max);
  }
  std::vector<WorkOut> out;
  for (Work& work : works) out.push_back(work_of(std::move(work)));
  return out;
}

template <void (SlotTable::*mark)(Ticket)>
void marks(CoreClass& self, int tier, const WordsIn& words) {
  const auto tickets = tickets_of(words);
  const auto all = [&](SlotTable& table) { for (const Ticket one : tickets) (table.*mark)(one); };
  tier_of(tier) == Tier::kFile ? void(self.core.with_file(all)) : self.core.with_memory(all);
}

void bind_mover(nb::class_<CoreClass>& core) {
  core.def_prop_ro("work_fd", [](CoreClass& self) { return self.core.work_fd(); })
      .def("take_work", &take_work, "max"_a)
      .def("promoted", [](CoreClass& self, NsId ns, std::uint16_t shard, const KeysIn& keys, Nanos now) {
             nb::gil_scoped_release release;
             self.core.promoted(ns, shard, keys_of(keys), now);
           }, "ns"_a, "shard"_a, "keys"_a, "now"_a)
      .def("info", [](CoreClass& self, int tier, const WordsIn& tickets) {
             SlotRows rows;
             self.core.info(tier_of(tier), tickets_of(tickets), rows);
             return rows_of(std::move(rows));
           }, "tier"_a, "tickets"_a)
      .def("scan", [](CoreClass& self, int tier, std::int64_t after, std::size_t max) {
             SlotRows rows;
             const SlotId next = self.core.scan(tier_of(tier), after < 0 ? 0 : static_cast<SlotId>(after), max, rows);
             return std::tuple(rows_of(std::move(rows)), next == kNoSlot ? std::int64_t{-1} : std::int64_t{next});
           }, "tier"_a, "after"_a, "max"_a)
      .def("retire", [](CoreClass& self, int tier, const WordsIn& tickets, bool corrupt) {
             return self.core.retire(tier_of(tier), tickets_of(tickets), corrupt);
           }, "tier"_a, "tickets"_a, "corrupt"_a = false)
      .def("retire_keys", [](CoreClass& self, NsId ns, const KeysIn& keys) {
             nb::gil_scoped_release release;
             return self.core.retire_keys(ns, keys_of(keys));
           }, "ns"_a, "keys"_a)
      .def("dirty_victims", [](CoreClass& self, int tier, std::uint64_t bytes, Dirty which) {
             std::vector<Ticket> tickets;
             const Tier where = tier_of(tier);
             {
               nb::gil_scoped_release release;
               const auto ask = [&](SlotTable& table) { table.dirty_victims(bytes, tickets, which); };
               where == Tier::kFile ? void(self.core.with_file(ask)) : self.core.with_memory(ask);
             }
             return array_of(tickets);
           }, "tier"_a, "bytes"_a, "which"_a = Dirty::kAll)
      .def("mark_clean", marks<&SlotTable::mark_clean>, "tier"_a, "tickets"_a)
      .def("mark_lost", marks<&SlotTable::mark_lost>, "tier"_a, "tickets"_a)
      .def("mark_dirty", marks<&SlotTable::mark_dirty>, "tier"_a, "tickets"_a)
      .def("mark_passed", marks<&SlotTable::mark_passed>, "tier"_a, "tickets"_a)
      .def("recheck_clean", [](CoreClass& self, bool packs_below) { return self.core.recheck_clean(packs_below); }, "packs_below"_a, Release())
      .def("encode_headers", [](CoreClass& self, int tier, const WordsIn& tickets,
                                const nb::ndarray<const std::uint64_t, nb::c_contig, nb::device::cpu>& checksums, nb::handle pages) {
             const Buffer buffer(pages, "pages", Buffer::Access::kWrite);
             const Outcome outcome = self.core.headers(tier_of(tier), tickets_of(tickets), {checksums.data(), checksums.size()},
                                                       {reinterpret_cast<std::uint8_t*>(buffer.data()), buffer.size()});
             if (outcome == Outcome::kBadInput) throw nb::value_error("encode_headers: one page of 4096 bytes a ticket, and the checksums of every part");
             return outcome == Outcome::kOk;
           }, "tier"_a, "tickets"_a, "checksums"_a, "pages"_a)
      .def("restore", [](CoreClass& self, const nb::bytes& rows, std::uint32_t epochs) {
             std::size_t count = 0;
             const auto span = span_of(rows);
             nb::gil_scoped_release release;
             self.core.with_file([&](SlotTable& table) { count = table.restore(span, epochs); });
             return count;
           }, "rows"_a, "epochs"_a = 0)
      .def("file_epochs", [](CoreClass& self) {
             std::uint32_t epochs = 0;
             nb::gil_scoped_release release;
             self.core.with_file([&](SlotTable& table) { epochs = table.epochs(); });
             return epochs;
           })
      .def("drain_changes", [](CoreClass& self, std::size_t max) {
             std::vector<std::uint8_t> rows;
             std::vector<std::uint64_t> freed;
             {
               nb::gil_scoped_release release;
               self.core.with_file([&](SlotTable& table) { table.drain_changes(max, rows, freed); });
             }
             return std::tuple(bytes_of(rows), array_of(std::move(freed)));
           }, "max"_a);
}

nb::dict stats_of(const TableStats& s) {
  nb::dict d;
  const std::pair<const char*, std::uint64_t> rows[] = {
      {"slots_reserved", s.slots_reserved}, {"slots_sealed", s.slots_sealed}, {"slots_retired", s.slots_retired},
      {"payload_bytes_sealed", s.payload_bytes_sealed}, {"bytes_free", s.bytes_free}, {"holds", s.holds},
      {"pinned_bytes", s.pinned_bytes}, {"evicted_clean", s.evicted_clean}, {"evicted_dirty", s.evicted_dirty},
      {"slabs_moved", s.slabs_moved}, {"lapsed_reservations", s.lapsed_reservations}, {"lapsed_leases", s.lapsed_leases},
      {"quarantined", s.quarantined}, {"aborted", s.aborted}, {"recovered", s.recovered},
      {"recovered_rejected", s.recovered_rejected}, {"index_bytes", s.index_bytes}};
  for (const auto& [name, value] : rows) d[name] = value;
  return d;
}

void bind_administration(nb::class_<CoreClass>& core) {
  core.def("stats", [](CoreClass& self, int tier) {
            TableStats stats;
            const auto read = [&](SlotTable& table) { stats = table.stats(); };
            if (tier_of(tier) == Tier::kMemory) self.core.with_memory(read);
            else if (!self.core.with_file(read)) throw nb::value_error("tier: there is no file tier");
            return stats_of(stats);
          }, "tier"_a, nb::sig("def stats(self, tier: int) -> dict[str, int]"))
      .def("check_integrity", [](CoreClass& self, int tier) {
            const auto check = [](SlotTable& table) { table.check_integrity(); };
            tier_of(tier) == Tier::kFile ? void(self.core.with_file(check)) : self.core.with_memory(check);
          }, "tier"_a, Release())
      .def("quarantine_left", [](CoreClass& self) { return self.core.quarantine_left(); })
      .def("former_clients", [](CoreClass& self) {
            std::vector<std::pair<std::uint32_t, std::uint64_t>> out;
            for (const ClientEntry& client : self.core.former_clients()) out.emplace_back(client.pid, client.start);
            return out;
          })
      .def("failed_read", [](CoreClass& self, NsId, int tier, std::uint64_t blocks) {
            if (tier < 1 || tier > 3) throw nb::value_error("tier: 1, 2 or 3");
            self.core.count_failed_reads(static_cast<Tier>(tier), blocks);
          }, "ns"_a, "tier"_a, "blocks"_a)
      .def("moved", [](CoreClass& self, int from, int to, std::uint64_t blocks) {
            if (from < 1 || from > 3 || to < 1 || to > 3) throw nb::value_error("tier: 1, 2 or 3");
            self.core.count_moved(static_cast<Tier>(from), static_cast<Tier>(to), blocks);
          }, "from_tier"_a, "to_tier"_a, "blocks"_a)
      .def("events_since", [](CoreClass& self, std::uint64_t sequence, std::size_t max) {
            bool gap = false;
            std::vector<EventOut> out;
            for (const Event& e : self.core.events_since(sequence, max, gap)) out.push_back(event_of(e));
            return std::make_pair(std::move(out), gap);
          }, "sequence"_a, "max"_a)
      .def_prop_ro("event_sequence", [](CoreClass& self) { return self.core.event_sequence(); });
}

}  // namespace

void bind_core(nb::module_& m) {
  bind_core_config(m);
  bind_core_rows(m);
  const CoreConfig d;
  auto core = nb::class_<CoreClass>(m, "NodeCore", "A node's state and rules; thread-safe. See native/core/node_core.hpp.");
  core.def("__init__", &make_core, "memory"_a, "file"_a.none(), nb::kw_only(), "meta"_a, "meta_bytes"_a, "incarnation"_a,
           "window_bytes"_a = d.window_bytes, "reserve_lapse_ns"_a = d.reserve_lapse, "lease_max_ns"_a = d.lease_max,
           "promote_retry_ns"_a = d.promote_retry, "keys_per_call_max"_a = d.keys_per_call_max,
           "holds_per_owner_max"_a = d.holds_per_owner_max, "namespaces_max"_a = d.namespaces_max,
           "parked_max"_a = d.parked_max, "works_max"_a = d.works_max, "families_max"_a = d.families_max,
           "events_max"_a = d.events_max, "event_meta_bytes_max"_a = d.event_meta_bytes_max,
           "pinned_bytes_max"_a = d.pinned_bytes_max, "held_bytes_max"_a = d.held_bytes_max, "answer_bytes_max"_a = d.answer_bytes_max, "free_share"_a = d.free_share)
      .def_static("meta_bytes", &MetaSegment::bytes, "memory"_a)
      .def_static("meta_usable", [](const TableConfig& memory, std::uint64_t meta, std::size_t meta_bytes) {
            return MetaSegment::inspect(reinterpret_cast<const void*>(meta), meta_bytes, memory) != MetaState::kForeign;
          }, "memory"_a, "meta"_a, "meta_bytes"_a)
      .def_prop_ro("incarnation", [](CoreClass& self) { return self.core.incarnation(); })
      .def_prop_ro("former_incarnation", [](CoreClass& self) { return self.core.former_incarnation(); })
      .def_prop_ro("recovered", [](CoreClass& self) { return self.core.recovered(); })
      .def_prop_ro("window_bytes", [](CoreClass& self) { return self.core.window_bytes(); })
      .def("new_owner", [](CoreClass& self) { return self.core.new_owner(); })
      .def("open_namespace", [](CoreClass& self, const nb::bytes& digest, std::uint32_t tenant, std::uint32_t block_tokens,
                                const std::vector<std::vector<std::uint32_t>>& shards) -> std::int64_t {
            NamespaceSpec spec;
            spec.digest = key_of(digest, "digest");
            spec.tenant = tenant;
            spec.block_tokens = block_tokens;
            for (const auto& parts : shards) {
              ShardSpec shard;
              shard.part_bytes = parts;
              for (const std::uint32_t bytes : parts) shard.bytes += bytes;
              spec.shards.push_back(std::move(shard));
            }
            if (!namespace_is_good(spec)) throw nb::value_error("shards: 1 to 64, each of 1 to 256 parts that add up to 4 KiB to 64 MiB");
            nb::gil_scoped_release release;
            const NsId ns = self.core.open_namespace(spec);
            return ns == kNoNamespace ? -1 : std::int64_t{ns};
          }, "digest"_a, "tenant"_a, "block_tokens"_a, "shards"_a)
      .def("drop_namespace", [](CoreClass& self, NsId ns) { return self.core.drop_namespace(ns); }, Release(), "ns"_a);
  bind_calls(core);
  bind_mover(core);
  bind_administration(core);
  bind_counters(core);
  bind_objects(core);
  bind_held(core);
}

}  // namespace kvstore::bind
