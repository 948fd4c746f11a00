// Python surface of NodeCore. Every call gives the GIL back and takes the core's mutex. `now` and durations: nanoseconds, monotonic.
//
//   TableConfig(bytes, slab_bytes=64 MiB, header_bytes=0, policy="leaf_lru")
//   class NodeCore:
//     def __init__(self, memory: TableConfig, file: TableConfig | None, *, meta: int, meta_bytes: int, incarnation: int,
//                  window_bytes=, reserve_lapse_ns=, lease_max_ns=, keys_per_call_max=, holds_per_owner_max=, namespaces_max=,
//                  parked_max=, families_max=, events_max=, pinned_bytes_max=0, answer_bytes_max=, free_share=0.25)
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
//     fetch(token, owner, ns, shard, keys, kind, following, hint, now, deadline, lease)
//     completion_fd; take_completions() -> list[FetchDone]         # token status hold lease window_full tickets offsets parts_ready tiers checksums
//     fetched(ns, hint, blocks_asked, blocks_by_tier, blocks_failed, path, bytes, elapsed_ns); report_corrupt(owner, ticket)
//     owner_gone(owner); tick(now); next_deadline() -> int | None
//     work_fd; take_work(max) -> list[Work]                        # kind ns shard wanted_now keys (n,32) ticket position; kinds: PROMOTE WRITE_BEHIND CORRUPT PROBE
//     promoted(ns, shard, keys, now)
//     info(tier, tickets) -> SlotRows; scan(tier, after: int, max) -> (SlotRows, next: int)     # -1: the end
//         # SlotRows: tickets u64, keys (n,32), parents (n,32), ns u32, shards u16, states u8, clean bool, offsets u64, bytes u64, holds u32,
//         #           checksum_counts u32, checksums u64 (concatenated), metas list[bytes], positions u32, wanted bool
//     retire(tier, tickets, corrupt=False) -> int; retire_keys(ns, keys) -> int   # the latter on both tiers
//     encode_headers(tier, tickets, checksums, pages: writable buffer of 4096 bytes a ticket)
//     dirty_victims(tier, bytes) -> tickets u64; mark_clean(tier, tickets); mark_dirty(tier, tickets)
//     restore(rows: bytes) -> int; drain_changes(max) -> (rows: bytes, freed: u64 array)        # file tier
//     quarantine_left() -> bool; stats(tier) -> dict[str, int]; check_integrity(tier)
//     failed_read(ns, tier, blocks); moved(from_tier, to_tier, blocks); demotions_dropped(blocks)   # counters told by the mover
//     events_since(sequence, max) -> (list[Event], gap: bool); event_sequence
//         # Event: sequence kind ns shard tier key parent meta; kinds: STORED REMOVED CLEARED
//     counters() -> dict                                           # native/core/counters.hpp says what is in it
#include <sys/eventfd.h>
#include <unistd.h>

#include <mutex>
#include <stdexcept>

#include "buffers.hpp"
#include "core/slot_header.hpp"
#include "kvstore_core_class.hpp"
#include "kvstore_core_types.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore::bind {
namespace {

using Release = nb::call_guard<nb::gil_scoped_release>;

Tier tier_of(int tier) {
  if (tier != 1 && tier != 2) throw nb::value_error("tier: 1 (memory) or 2 (file)");
  return static_cast<Tier>(tier);
}

void make_core(CoreClass* self, const TableConfig& memory, const std::optional<TableConfig>& file, std::uint64_t meta,
                     std::size_t meta_bytes, std::uint64_t incarnation, std::uint64_t window_bytes, Nanos reserve_lapse_ns,
                     Nanos lease_max_ns, Nanos promote_retry_ns, std::uint32_t keys_per_call_max,
                     std::uint32_t holds_per_owner_max, std::uint32_t namespaces_max, std::uint32_t parked_max,
                     std::uint32_t works_max, std::uint32_t families_max, std::uint32_t events_max,
                     std::uint64_t event_meta_bytes_max, std::uint64_t pinned_bytes_max, std::uint64_t answer_bytes_max,
                     double free_share) {
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
  config.free_share = free_share;
  new (self) CoreClass(config, reinterpret_cast<void*>(meta), meta_bytes, incarnation);
}

void bind_limits(nb::module_& m) {
  nb::class_<TableConfig>(m, "TableConfig", "One tier's table: bytes of its medium, slabs, headers, eviction policy.")
      .def("__init__",
           [](TableConfig* self, std::uint64_t bytes, std::uint64_t slab_bytes, std::uint32_t header_bytes,
              const std::string& policy, std::uint64_t hash_seed) {
             new (self) TableConfig{bytes, slab_bytes, header_bytes, policy, hash_seed};
           },
           "bytes"_a, "slab_bytes"_a = TableConfig{}.slab_bytes, "header_bytes"_a = 0, "policy"_a = "leaf_lru",
           "hash_seed"_a = TableConfig{}.hash_seed)
      .def_ro("bytes", &TableConfig::bytes)
      .def_ro("slab_bytes", &TableConfig::slab_bytes)
      .def_ro("header_bytes", &TableConfig::header_bytes)
      .def_ro("policy", &TableConfig::policy);
  nb::class_<Hint>(m, "Hint", "What a caller tells about the future of the blocks it touches; zero: nothing said.")
      .def("__init__",
           [](Hint* self, std::uint64_t family, std::uint64_t session, std::uint32_t turn, std::uint32_t expected_return_ms,
              int priority, bool end, std::uint32_t position) {
             if (priority < -1 || priority > 1) throw nb::value_error("priority: -1, 0 or 1");
             new (self) Hint{family, session, turn, expected_return_ms, static_cast<std::int8_t>(priority), end, 0, position};
           },
           "family"_a = 0, "session"_a = 0, "turn"_a = 0, "expected_return_ms"_a = 0, "priority"_a = 0, "end"_a = false,
           "position"_a = 0)
      .def_ro("family", &Hint::family)
      .def_ro("session", &Hint::session)
      .def_ro("turn", &Hint::turn)
      .def_ro("expected_return_ms", &Hint::expected_return_ms)
      .def_ro("priority", &Hint::priority)
      .def_ro("end", &Hint::end)
      .def_ro("position", &Hint::position);
  nb::enum_<HoldKind>(m, "HoldKind", nb::is_arithmetic())
      .value("LEASE", HoldKind::kLease).value("VIEW", HoldKind::kView).value("PIN", HoldKind::kPin);
  nb::enum_<NeedKind>(m, "NeedKind", nb::is_arithmetic())
      .value("ALL", NeedKind::kAll).value("LAST", NeedKind::kLast).value("STATE", NeedKind::kState);
  nb::enum_<Tier>(m, "Tier", nb::is_arithmetic())
      .value("NONE", Tier::kNone).value("MEMORY", Tier::kMemory).value("FILE", Tier::kFile).value("OBJECT", Tier::kObject);
  nb::enum_<Outcome>(m, "Outcome", nb::is_arithmetic())
      .value("OK", Outcome::kOk).value("STALE", Outcome::kStale).value("BAD_INPUT", Outcome::kBadInput);
  nb::enum_<ReserveStatus>(m, "ReserveStatus", nb::is_arithmetic())
      .value("GRANTED", ReserveStatus::kGranted).value("HELD", ReserveStatus::kHeld).value("PENDING", ReserveStatus::kPending)
      .value("FULL", ReserveStatus::kFull).value("TOO_LARGE", ReserveStatus::kTooLarge);
  nb::enum_<MovePath>(m, "MovePath", nb::is_arithmetic())
      .value("GET_MAPPED", MovePath::kGetMapped).value("GET_STREAMED", MovePath::kGetStreamed)
      .value("PUT_MAPPED", MovePath::kPutMapped).value("PUT_STREAMED", MovePath::kPutStreamed)
      .value("HOLD_MEMORY", MovePath::kHoldMemory).value("HOLD_PARKED", MovePath::kHoldParked);
  nb::enum_<Work::Kind>(m, "WorkKind", nb::is_arithmetic())
      .value("PROMOTE", Work::Kind::kPromote).value("WRITE_BEHIND", Work::Kind::kWriteBehind).value("CORRUPT", Work::Kind::kCorrupt)
      .value("PROBE", Work::Kind::kProbe);
  nb::enum_<Event::Kind>(m, "EventKind", nb::is_arithmetic())
      .value("STORED", Event::Kind::kStored).value("REMOVED", Event::Kind::kRemoved).value("CLEARED", Event::Kind::kCleared);
  m.attr("META_BYTES_MAX") = kMetaBytesMax;
  // A name for bytes that a property called bytes does not hide from type checkers.
  const nb::handle raw(reinterpret_cast<PyObject*>(&PyBytes_Type));
  m.attr("Raw") = nb::module_::import_("typing").attr("Annotated")[nb::make_tuple(raw, "bytes")];
}

// ---- what is handed out

struct Rows {
  ArrayOut<std::uint64_t> tickets;
  ArrayOut<std::uint8_t> keys, parents;
  ArrayOut<std::uint32_t> ns;
  ArrayOut<std::uint16_t> shards;
  ArrayOut<std::uint8_t> states;
  ArrayOut<bool> clean, wanted;
  ArrayOut<std::uint64_t> offsets, bytes;
  ArrayOut<std::uint32_t> positions, holds, checksum_counts;
  ArrayOut<std::uint64_t> checksums;
  std::vector<nb::bytes> metas;
};

ArrayOut<bool> bools_of(const std::vector<std::uint8_t>& values) {
  auto* kept = new std::vector<std::uint8_t>(values);
  const nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<std::uint8_t>*>(p); });
  return ArrayOut<bool>(reinterpret_cast<bool*>(kept->data()), {kept->size()}, owner);
}

Rows rows_of(SlotRows&& rows) {
  Rows out{array_of(rows.tickets), array_of(std::move(rows.keys)), array_of(std::move(rows.parents)),
           array_of(std::move(rows.ns)), array_of(std::move(rows.shards)), array_of(std::move(rows.states)),
           bools_of(rows.clean), bools_of(rows.wanted), array_of(std::move(rows.offsets)), array_of(std::move(rows.bytes)),
           array_of(std::move(rows.positions)), array_of(std::move(rows.holds)), array_of(std::move(rows.checksum_counts)),
           array_of(std::move(rows.checksums)), {}};
  for (const auto& meta : rows.metas) out.metas.push_back(bytes_of(meta));
  return out;
}

struct WorkOut {
  int kind;
  NsId ns;
  std::uint16_t shard;
  bool wanted_now;
  ArrayOut<std::uint8_t> keys;
  nb::bytes tiers;
  std::uint64_t ticket;
  std::uint32_t position;
};

struct EventOut {
  std::uint64_t sequence;
  int kind;
  NsId ns;
  std::uint16_t shard;
  int tier;
  nb::bytes key, parent, meta;
};

struct DoneOut {
  std::uint64_t token;
  int status;
  std::string field;
  std::uint64_t limit, hold;
  Nanos lease;
  bool window_full;
  ArrayOut<std::uint64_t> tickets, offsets;
  ArrayOut<std::uint32_t> parts_ready;
  nb::bytes tiers;
  ArrayOut<std::uint64_t> checksums;
};

nb::bytes key_bytes(const Key& key) { return nb::bytes(key.bytes.data(), key.bytes.size()); }

// Arrays have an owner of their own: a getter hands out the array, not a view into the row object.
constexpr auto kOwned = nb::rv_policy::reference;

void bind_rows(nb::module_& m) {
  auto rows = nb::class_<Rows>(m, "SlotRows", "Slots as arrays, one row a slot; checksums are concatenated.");
  rows.def_ro("tickets", &Rows::tickets, kOwned).def_ro("keys", &Rows::keys, kOwned).def_ro("parents", &Rows::parents, kOwned).def_ro("ns", &Rows::ns, kOwned)
      .def_ro("shards", &Rows::shards, kOwned).def_ro("states", &Rows::states, kOwned).def_ro("clean", &Rows::clean, kOwned)
      .def_ro("wanted", &Rows::wanted, kOwned).def_ro("offsets", &Rows::offsets, kOwned).def_ro("bytes", &Rows::bytes, kOwned)
      .def_ro("positions", &Rows::positions, kOwned).def_ro("holds", &Rows::holds, kOwned).def_ro("checksum_counts", &Rows::checksum_counts, kOwned)
      .def_ro("checksums", &Rows::checksums, kOwned).def_ro("metas", &Rows::metas, nb::for_getter(nb::sig("def metas(self, /) -> list[Raw]")));
  nb::class_<WorkOut>(m, "Work", "What the mover is asked to do.")
      .def_ro("kind", &WorkOut::kind).def_ro("ns", &WorkOut::ns).def_ro("shard", &WorkOut::shard)
      .def_ro("wanted_now", &WorkOut::wanted_now).def_ro("keys", &WorkOut::keys, kOwned).def_ro("tiers", &WorkOut::tiers)
      .def_ro("ticket", &WorkOut::ticket).def_ro("position", &WorkOut::position);
  nb::class_<EventOut>(m, "Event", "What was stored or removed; sequence numbers have no gaps.")
      .def_ro("sequence", &EventOut::sequence).def_ro("kind", &EventOut::kind).def_ro("ns", &EventOut::ns)
      .def_ro("shard", &EventOut::shard).def_ro("tier", &EventOut::tier).def_ro("key", &EventOut::key)
      .def_ro("parent", &EventOut::parent).def_ro("meta", &EventOut::meta);
  nb::class_<DoneOut>(m, "FetchDone", "How a fetch ended: the run that is held, in chain order.")
      .def_ro("token", &DoneOut::token).def_ro("status", &DoneOut::status).def_ro("field", &DoneOut::field)
      .def_ro("limit", &DoneOut::limit).def_ro("hold", &DoneOut::hold).def_ro("lease", &DoneOut::lease)
      .def_ro("window_full", &DoneOut::window_full).def_ro("tickets", &DoneOut::tickets, kOwned).def_ro("offsets", &DoneOut::offsets, kOwned)
      .def_ro("parts_ready", &DoneOut::parts_ready, kOwned).def_ro("tiers", &DoneOut::tiers).def_ro("checksums", &DoneOut::checksums, kOwned);
}

DoneOut done_of(std::uint64_t token, FetchAnswer&& answer) {
  std::vector<std::uint64_t> tickets, offsets;
  std::vector<std::uint32_t> ready;
  for (const Held& slot : answer.slots) {
    tickets.push_back(word_of(slot.ticket));
    offsets.push_back(slot.offset);
    ready.push_back(slot.parts_ready);
  }
  return {token, static_cast<int>(answer.status), answer.field, answer.limit, answer.hold, answer.lease, answer.window_full,
          array_of(std::move(tickets)), array_of(std::move(offsets)), array_of(std::move(ready)), bytes_of(answer.tiers),
          array_of(std::move(answer.checksums))};
}

std::vector<DoneOut> take_completions(CoreClass& self) {
  std::vector<DoneOut> out;
  for (auto& [token, answer] : self.completions->take()) out.push_back(done_of(token, std::move(answer)));
  return out;
}

std::vector<WorkOut> take_work(CoreClass& self, std::size_t max) {
  std::vector<Work> works;
  {
    nb::gil_scoped_release release;
    works = self.core.take_work(max);
  }
  std::vector<WorkOut> out;
  for (Work& work : works)
    out.push_back({static_cast<int>(work.kind), work.ns, work.shard, work.wanted_now, array_of(std::move(work.keys)),
                   bytes_of(work.tiers), word_of(work.ticket), work.position});
  return out;
}

// ---- verbs

std::tuple<int, std::uint32_t, nb::bytes, Nanos> lookup(CoreClass& self, NsId ns, const KeysIn& keys, const std::vector<NeedTuple>& tuples) {
  const std::vector<Need> needs = needs_of(tuples);
  LookupAnswer answer;
  FetchStatus status{};
  {
    nb::gil_scoped_release release;
    status = self.core.lookup(ns, keys_of(keys), needs, answer);
  }
  return {static_cast<int>(status), answer.blocks, bytes_of(answer.tiers), answer.estimate};
}

std::tuple<int, ArrayOut<std::uint8_t>, ArrayOut<std::uint64_t>, ArrayOut<std::uint64_t>> reserve(CoreClass& self, int tier, OwnerId owner, NsId ns, std::uint16_t shard, const KeysIn& keys,
                  const nb::bytes& parent, const std::vector<nb::bytes>& metas, const Hint& hint, bool in_place, Nanos now) {
  const Tier where = tier_of(tier);
  const auto kept = metas_of(metas, keys.shape(0));
  std::optional<Key> before;
  if (parent.size() != 0) before = key_of(parent, "parent");
  std::vector<Reserved> out(keys.shape(0));
  FetchStatus status{};
  {
    nb::gil_scoped_release release;
    std::vector<std::span<const std::uint8_t>> spans(kept.begin(), kept.end());
    status = self.core.reserve(where, owner, ns, shard, keys_of(keys), before ? &*before : nullptr, spans, hint, in_place, now, out);
  }
  std::vector<std::uint8_t> statuses;
  std::vector<std::uint64_t> tickets, offsets;
  for (const Reserved& one : out) {
    statuses.push_back(static_cast<std::uint8_t>(one.status));
    tickets.push_back(word_of(one.ticket));
    offsets.push_back(one.offset);
  }
  return {static_cast<int>(status), array_of(std::move(statuses)), array_of(std::move(tickets)), array_of(std::move(offsets))};
}

ArrayOut<std::uint8_t> seal(CoreClass& self, int tier, OwnerId owner, const WordsIn& tickets, const WordsIn& checksums, Nanos) {
  const Tier where = tier_of(tier);
  std::vector<Outcome> out(tickets.shape(0));
  {
    nb::gil_scoped_release release;
    self.core.seal(where, owner, tickets_of(tickets), words_of(checksums), out, MovePath::kHoldMemory, 0);
  }
  std::vector<std::uint8_t> outcomes;
  for (const Outcome one : out) outcomes.push_back(static_cast<std::uint8_t>(one));
  return array_of(std::move(outcomes));
}

ArrayOut<bool> find(CoreClass& self, int tier, NsId ns, std::uint16_t shard, const KeysIn& keys) {
  const Tier where = tier_of(tier);
  std::vector<std::uint8_t> here(keys.shape(0));
  {
    nb::gil_scoped_release release;
    std::vector<Found> found(keys.shape(0));
    const auto look = [&](SlotTable& table) { table.find(ns, shard, keys_of(keys), found); };
    if (self.core.namespace_spec(ns) && shard < self.core.namespace_spec(ns)->shards.size())
      where == Tier::kFile ? void(self.core.with_file(look)) : self.core.with_memory(look);
    for (std::size_t i = 0; i < found.size(); ++i) here[i] = found[i].slot != kNoSlot;
  }
  return bools_of(here);
}

void fetch(CoreClass& self, std::uint64_t token, OwnerId owner, NsId ns, std::uint16_t shard, const KeysIn& keys, int kind,
           bool following, const Hint& hint, Nanos now, Nanos deadline, Nanos lease) {
  if (kind < 0 || kind > 2) throw nb::value_error("kind: a HoldKind");
  FetchRequest request{owner, ns, shard, static_cast<HoldKind>(kind), following, hint, deadline, lease};
  nb::gil_scoped_release release;
  self.core.fetch(request, keys_of(keys), now,
                  [to = self.completions, token](FetchAnswer&& answer) { to->put(token, std::move(answer)); });
}

template <class Take>
std::tuple<HoldId, Rows> held_rows(Take&& take) {
  SlotRows rows;
  HoldId hold = 0;
  {
    nb::gil_scoped_release release;
    hold = take(rows);
  }
  return {hold, rows_of(std::move(rows))};
}

void bind_verbs(nb::class_<CoreClass>& core) {
  core.def("lookup", &lookup, "ns"_a, "keys"_a, "needs"_a)
      .def("find", &find, "tier"_a, "ns"_a, "shard"_a, "keys"_a)
      .def("reserve", &reserve, "tier"_a, "owner"_a, "ns"_a, "shard"_a, "keys"_a, "parent"_a, "metas"_a, "hint"_a, "in_place"_a, "now"_a)
      .def("publish_part",
           [](CoreClass& self, OwnerId owner, std::uint64_t ticket, std::uint32_t part, std::uint64_t checksum) {
             return static_cast<int>(self.core.publish_part(owner, ticket_of(ticket), part, checksum));
           }, "owner"_a, "ticket"_a, "part"_a, "checksum"_a)
      .def("seal", &seal, "tier"_a, "owner"_a, "tickets"_a, "checksums"_a, "now"_a)
      .def("abort", [](CoreClass& self, int tier, OwnerId owner, const WordsIn& tickets) {
             self.core.abort(tier_of(tier), owner, tickets_of(tickets));
           }, "tier"_a, "owner"_a, "tickets"_a)
      .def("hold", [](CoreClass& self, int tier, OwnerId owner, NsId ns, std::uint16_t shard, const KeysIn& keys) {
             return held_rows([&, where = tier_of(tier)](SlotRows& rows) {
               return self.core.hold_run(where, owner, ns, shard, keys_of(keys), 0, rows);
             });
           }, "tier"_a, "owner"_a, "ns"_a, "shard"_a, "keys"_a)
      .def("hold_slots", [](CoreClass& self, int tier, OwnerId owner, const WordsIn& tickets) {
             return held_rows([&, where = tier_of(tier)](SlotRows& rows) {
               return self.core.hold_slots(where, owner, tickets_of(tickets), rows);
             });
           }, "tier"_a, "owner"_a, "tickets"_a)
      .def("release", [](CoreClass& self, int tier, OwnerId owner, HoldId hold) {
             return static_cast<int>(self.core.release(tier_of(tier), owner, hold));
           }, "tier"_a, "owner"_a, "hold"_a)
      .def("fetch", &fetch, "token"_a, "owner"_a, "ns"_a, "shard"_a, "keys"_a, "kind"_a, "following"_a, "hint"_a, "now"_a, "deadline"_a, "lease"_a)
      .def_prop_ro("completion_fd", [](CoreClass& self) { return self.completions->event; })
      .def("take_completions", &take_completions)
      .def("fetched", [](CoreClass& self, NsId ns, const Hint& hint, std::uint32_t asked,
                         const std::tuple<std::uint32_t, std::uint32_t, std::uint32_t, std::uint32_t>& by_tier,
                         std::uint32_t failed, int path, std::uint64_t bytes, Nanos elapsed) {
             if (path != 0 && path != 1) throw nb::value_error("path: MovePath.GET_MAPPED or GET_STREAMED");
             const auto [none, memory, file, object] = by_tier;
             self.core.fetched({ns, hint, asked, {none, memory, file, object}, failed, static_cast<MovePath>(path), bytes, elapsed});
           }, "ns"_a, "hint"_a, "blocks_asked"_a, "blocks_by_tier"_a, "blocks_failed"_a, "path"_a, "bytes"_a, "elapsed_ns"_a)
      .def("report_corrupt", [](CoreClass& self, OwnerId owner, std::uint64_t ticket) { self.core.report_corrupt(owner, ticket_of(ticket)); },
           "owner"_a, "ticket"_a)
      .def("owner_gone", [](CoreClass& self, OwnerId owner) { self.core.owner_gone(owner); }, Release(), "owner"_a)
      .def("tick", [](CoreClass& self, Nanos now) { self.core.tick(now); }, Release(), "now"_a)
      .def("next_deadline", [](CoreClass& self) { return self.core.next_deadline(); });
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
      .def("dirty_victims", [](CoreClass& self, int tier, std::uint64_t bytes) {
             std::vector<Ticket> tickets;
             const Tier where = tier_of(tier);
             {
               nb::gil_scoped_release release;
               const auto ask = [&](SlotTable& table) { table.dirty_victims(bytes, tickets); };
               where == Tier::kFile ? void(self.core.with_file(ask)) : self.core.with_memory(ask);
             }
             return array_of(tickets);
           }, "tier"_a, "bytes"_a)
      .def("mark_clean", [](CoreClass& self, int tier, const WordsIn& words) {
             const auto tickets = tickets_of(words);
             const auto mark = [&](SlotTable& table) { for (const Ticket one : tickets) table.mark_clean(one); };
             tier_of(tier) == Tier::kFile ? void(self.core.with_file(mark)) : self.core.with_memory(mark);
           }, "tier"_a, "tickets"_a)
      .def("mark_dirty", [](CoreClass& self, int tier, const WordsIn& words) {
             const auto tickets = tickets_of(words);
             const auto mark = [&](SlotTable& table) { for (const Ticket one : tickets) table.mark_dirty(one); };
             tier_of(tier) == Tier::kFile ? void(self.core.with_file(mark)) : self.core.with_memory(mark);
           }, "tier"_a, "tickets"_a)
      .def("encode_headers", [](CoreClass& self, int tier, const WordsIn& tickets,
                                const nb::ndarray<const std::uint64_t, nb::c_contig, nb::device::cpu>& checksums, nb::handle pages) {
             const Buffer buffer(pages, "pages", Buffer::Access::kWrite);
             const Outcome outcome = self.core.headers(tier_of(tier), tickets_of(tickets), {checksums.data(), checksums.size()},
                                                       {reinterpret_cast<std::uint8_t*>(buffer.data()), buffer.size()});
             if (outcome == Outcome::kBadInput) throw nb::value_error("encode_headers: one page of 4096 bytes a ticket, and the checksums of every part");
             return outcome == Outcome::kOk;
           }, "tier"_a, "tickets"_a, "checksums"_a, "pages"_a)
      .def("restore", [](CoreClass& self, const nb::bytes& rows) {
             std::size_t count = 0;
             const auto span = span_of(rows);
             nb::gil_scoped_release release;
             self.core.with_file([&](SlotTable& table) { count = table.restore(span); });
             return count;
           }, "rows"_a)
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
      .def("demotions_dropped", [](CoreClass& self, std::uint64_t blocks) { self.core.count_demotions_dropped(blocks); }, "blocks"_a)
      .def("events_since", [](CoreClass& self, std::uint64_t sequence, std::size_t max) {
            bool gap = false;
            std::vector<EventOut> out;
            for (const Event& e : self.core.events_since(sequence, max, gap))
              out.push_back({e.sequence, static_cast<int>(e.kind), e.ns, e.shard, static_cast<int>(e.tier), key_bytes(e.key),
                             key_bytes(e.parent), bytes_of(e.meta)});
            return std::make_pair(std::move(out), gap);
          }, "sequence"_a, "max"_a)
      .def_prop_ro("event_sequence", [](CoreClass& self) { return self.core.event_sequence(); });
}

}  // namespace

Completions::Completions() : event(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (event < 0) throw std::runtime_error("eventfd");
}
Completions::~Completions() { close(event); }

void Completions::put(std::uint64_t token, FetchAnswer&& answer) {
  std::lock_guard lock(mutex);
  done.emplace_back(token, std::move(answer));
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = write(event, &one, sizeof one);
}

std::vector<std::pair<std::uint64_t, FetchAnswer>> Completions::take() {
  std::lock_guard lock(mutex);
  std::uint64_t count = 0;
  [[maybe_unused]] const auto drained = read(event, &count, sizeof count);
  return std::exchange(done, {});
}

void bind_core(nb::module_& m) {
  bind_limits(m);
  bind_rows(m);
  const CoreConfig d;
  auto core = nb::class_<CoreClass>(m, "NodeCore", "A node's state and rules; thread-safe. See native/core/node_core.hpp.");
  core.def("__init__", &make_core, "memory"_a, "file"_a.none(), nb::kw_only(), "meta"_a, "meta_bytes"_a, "incarnation"_a,
           "window_bytes"_a = d.window_bytes, "reserve_lapse_ns"_a = d.reserve_lapse, "lease_max_ns"_a = d.lease_max,
           "promote_retry_ns"_a = d.promote_retry, "keys_per_call_max"_a = d.keys_per_call_max,
           "holds_per_owner_max"_a = d.holds_per_owner_max, "namespaces_max"_a = d.namespaces_max,
           "parked_max"_a = d.parked_max, "works_max"_a = d.works_max, "families_max"_a = d.families_max,
           "events_max"_a = d.events_max, "event_meta_bytes_max"_a = d.event_meta_bytes_max,
           "pinned_bytes_max"_a = d.pinned_bytes_max, "answer_bytes_max"_a = d.answer_bytes_max, "free_share"_a = d.free_share)
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
  bind_verbs(core);
  bind_mover(core);
  bind_administration(core);
  bind_counters(core);
  bind_objects(core);
}

}  // namespace kvstore::bind
