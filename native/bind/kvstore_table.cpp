// SlotTable and Policy as Python classes: for models, exams, benchmarks and simulators. A node reaches its tables through
// NodeCore instead.
//
// Rules
// - A table keeps a mutex of its own; calls on many keys give the GIL back. The buffer given as meta is held.
// - Tickets are slot | tenancy << 32; keys are (n, 32) uint8 arrays; statuses and outcomes are the numbers of the enums.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>

#include "core/policy.hpp"
#include "core/slot_table.hpp"
#include "kvstore_slots.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore {
namespace {

using namespace bind;
using Ids = nb::ndarray<const std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using WordRows = nb::ndarray<const std::uint64_t, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;

Hint hint_of(int priority, bool end, std::uint32_t expected_return_ms, std::uint32_t return_touches,
             std::uint32_t position) {
  Hint hint;
  hint.priority = static_cast<std::int8_t>(std::clamp(priority, -127, 127));
  hint.end = end;
  hint.expected_return_ms = expected_return_ms;
  hint.return_touches = return_touches;
  hint.position = position;
  return hint;
}

class Table {
 public:
  Table(std::uint64_t bytes, std::uint64_t slab_bytes, std::uint32_t header_bytes, std::string policy,
        std::uint64_t hash_seed, nb::object meta) {
    const TableConfig config{bytes, slab_bytes, header_bytes, std::move(policy), hash_seed};
    if (!meta.is_none()) meta_ = std::make_unique<Buffer>(meta, "meta", Buffer::Access::kWrite);
    table_ = std::make_unique<SlotTable>(config, meta_ ? meta_->data() : nullptr, meta_ ? meta_->size() : 0);
    table_->on_evict([this](const SlotInfo& info) { evicted_.push_back(word_of(info.ticket)); });
  }

  // Runs with the mutex, and without the GIL where it is worth the while.
  template <class Use>
  auto with(std::size_t keys, Use&& use) {
    const MaybeRelease released(keys > 64);
    const std::lock_guard lock(mutex_);
    return use(*table_);
  }
  std::vector<std::uint64_t> take_evicted() {
    const std::lock_guard lock(mutex_);
    return std::exchange(evicted_, {});
  }

 private:
  std::unique_ptr<Buffer> meta_;
  std::unique_ptr<SlotTable> table_;  // ends before its memory
  std::mutex mutex_;
  std::vector<std::uint64_t> evicted_;
};

void add_namespace(Table& self, NsId ns, const nb::bytes& digest, const std::vector<std::vector<std::uint32_t>>& shards) {
  NamespaceSpec spec;
  spec.digest = key_of(digest, "digest");
  for (const auto& parts : shards) {
    std::uint64_t sum = 0;
    for (const std::uint32_t part : parts) sum += part;
    spec.shards.push_back({sum, parts});
  }
  self.with(0, [&](SlotTable& t) { t.add_namespace(ns, spec); });
}

ReservedOut reserve(Table& self, OwnerId owner, NsId ns, std::uint16_t shard, const KeysIn& keys,
                  const std::optional<nb::bytes>& parent, const std::vector<nb::bytes>& metas, bool in_place, Nanos now,
                  Nanos lapse_after, int priority, bool end, std::uint32_t expected_return_ms, std::uint32_t position, bool from_below) {
  std::vector<std::span<const std::uint8_t>> meta;
  for (const nb::bytes& one : metas) meta.emplace_back(static_cast<const std::uint8_t*>(one.data()), one.size());
  const Key parent_key = parent ? key_of(*parent, "parent") : Key{};
  Hint hint = hint_of(priority, end, expected_return_ms, 0, position);
  hint.from_below = from_below;
  std::vector<Reserved> out(keys.shape(0));
  self.with(out.size(), [&](SlotTable& t) {
    t.reserve(owner, ns, shard, keys_of(keys), parent ? &parent_key : nullptr, meta, hint, in_place, now, lapse_after, out);
  });
  return arrays_of(out);
}

ArrayOut<std::uint8_t> seal(Table& self, OwnerId owner, const WordsIn& tickets, const WordRows& checksums) {
  if (checksums.shape(0) != tickets.shape(0)) throw std::invalid_argument("checksums must have a row for each ticket");
  std::vector<std::uint8_t> outcomes(tickets.shape(0));
  const std::size_t parts = checksums.shape(1);
  self.with(outcomes.size(), [&](SlotTable& t) {
    for (std::size_t i = 0; i < outcomes.size(); ++i) {
      outcomes[i] = static_cast<std::uint8_t>(
          t.seal(owner, ticket_of(tickets.data()[i]), {checksums.data() + i * parts, parts}));
    }
  });
  return array_of(std::move(outcomes));
}

ArrayOut<std::uint32_t> find(Table& self, NsId ns, std::uint16_t shard, const KeysIn& keys) {
  std::vector<std::uint32_t> slots(keys.shape(0));
  static_assert(sizeof(Found) == sizeof(std::uint32_t));
  self.with(slots.size(), [&](SlotTable& t) {
    t.find(ns, shard, keys_of(keys), {reinterpret_cast<Found*>(slots.data()), slots.size()});
  });
  return array_of(std::move(slots));
}

ArrayOut<std::uint32_t> longest_each(Table& self, NsId ns, std::uint16_t shard, const KeysIn& keys, std::size_t per_chain) {
  if (per_chain == 0 || keys.shape(0) % per_chain != 0) throw std::invalid_argument("keys must be chains of per_chain each");
  std::vector<std::uint32_t> runs(keys.shape(0) / per_chain);
  self.with(keys.shape(0), [&](SlotTable& t) {
    for (std::size_t i = 0; i < runs.size(); ++i) {
      runs[i] = static_cast<std::uint32_t>(t.longest(ns, shard, keys_of(keys).subspan(i * per_chain, per_chain)));
    }
  });
  return array_of(std::move(runs));
}

using HoldOut = decltype(std::tuple_cat(std::tuple<HoldId>(), HeldOut()));
HoldOut held(HoldId hold, const std::vector<Held>& run) { return std::tuple_cat(std::tuple(hold), arrays_of(run)); }

HoldOut hold(Table& self, OwnerId owner, NsId ns, std::uint16_t shard, const KeysIn& keys, std::uint8_t kind,
               bool following, Nanos now, Nanos lapse_after, int priority, bool end, std::uint32_t expected_return_ms,
               std::uint64_t open_max) {
  if (kind > static_cast<std::uint8_t>(HoldKind::kPin)) throw std::invalid_argument("kind must be 0, 1 or 2");
  const Hint hint = hint_of(priority, end, expected_return_ms, 0, 0);
  std::vector<Held> run;
  const HoldId id = self.with(keys.shape(0), [&](SlotTable& t) {
    return t.hold(owner, ns, shard, keys_of(keys), static_cast<HoldKind>(kind), following, hint, now, lapse_after, run,
                  open_max);
  });
  return held(id, run);
}

HoldOut hold_slots(Table& self, OwnerId owner, const WordsIn& tickets) {
  const std::vector<Ticket> wanted = tickets_of(tickets);
  std::vector<Held> run;
  const HoldId id = self.with(wanted.size(), [&](SlotTable& t) { return t.hold_slots(owner, wanted, run); });
  return held(id, run);
}

nb::object info(Table& self, SlotId slot) {
  return self.with(0, [&](SlotTable& t) -> nb::object {
    const SlotInfo info = t.info(slot);
    if (info.state == SlotState::kFree) return nb::none();
    nb::dict out;
    out["key"] = bytes_of(info.key);
    out["parent"] = bytes_of(info.parent);
    out["ns"] = info.ns;
    out["shard"] = info.shard;
    out["position"] = info.position;
    out["state"] = static_cast<int>(info.state);
    out["clean"] = info.clean;
    out["ticket"] = word_of(info.ticket);
    out["offset"] = info.offset;
    out["bytes"] = info.bytes;
    out["holds"] = info.holds;
    out["parts_ready"] = info.parts_ready;
    out["checksums"] = nb::cast(std::vector<std::uint64_t>(info.checksums.begin(), info.checksums.end()));
    out["meta"] = nb::bytes(info.meta.data(), info.meta.size());
    return out;
  });
}

ArrayOut<std::uint64_t> sealed(Table& self) {
  std::vector<std::uint64_t> tickets;
  self.with(1000, [&](SlotTable& t) {
    t.for_each_sealed([&](const SlotInfo& info) { tickets.push_back(word_of(info.ticket)); });
  });
  return array_of(std::move(tickets));
}

nb::dict stats(Table& self) {
  const TableStats s = self.with(0, [](SlotTable& t) { return t.stats(); });
  nb::dict out;
  const auto put = [&out](const char* name, std::uint64_t value) { out[name] = value; };
  put("slots_reserved", s.slots_reserved), put("slots_sealed", s.slots_sealed), put("slots_retired", s.slots_retired);
  put("payload_bytes_sealed", s.payload_bytes_sealed), put("bytes_free", s.bytes_free), put("holds", s.holds);
  put("pinned_bytes", s.pinned_bytes), put("evicted_clean", s.evicted_clean), put("evicted_dirty", s.evicted_dirty);
  put("slabs_moved", s.slabs_moved), put("lapsed_reservations", s.lapsed_reservations);
  put("lapsed_leases", s.lapsed_leases), put("quarantined", s.quarantined), put("aborted", s.aborted);
  put("recovered", s.recovered), put("recovered_rejected", s.recovered_rejected), put("index_bytes", s.index_bytes);
  return out;
}

nb::object record(Table& self, std::uint64_t ticket, const WordsIn& checksums) {
  std::vector<std::uint8_t> row;
  const Outcome outcome = self.with(0, [&](SlotTable& t) {
    return t.record(ticket_of(ticket), {checksums.data(), checksums.shape(0)}, row);
  });
  if (outcome == Outcome::kBadInput) throw std::invalid_argument("checksums: one a part of a reserved slot, none of a sealed");
  if (outcome == Outcome::kStale) return nb::none();
  return nb::bytes(row.data(), row.size());
}

nb::tuple drain_changes(Table& self, std::size_t max) {
  std::vector<std::uint8_t> rows;
  std::vector<std::uint64_t> freed;
  self.with(1000, [&](SlotTable& t) { t.drain_changes(max, rows, freed); });
  return nb::make_tuple(nb::bytes(rows.data(), rows.size()), array_of(std::move(freed)));
}

// ---- a policy alone, for simulators and the exam

class BarePolicy {
 public:
  BarePolicy(const std::string& name, std::size_t ids_max) : policy_(make_policy(name, ids_max)), ids_max_(ids_max) {}
  Policy& get() { return *policy_; }
  std::span<const SlotId> checked(const Ids& ids) const {
    const std::span<const SlotId> out(ids.data(), ids.shape(0));
    for (const SlotId id : out) {
      if (id >= ids_max_) throw std::invalid_argument("ids must be below ids_max");
    }
    return out;
  }

  void added(const Ids& ids, const Ids& parents, const WordsIn& ghosts, int priority, bool end, std::uint32_t return_touches) {
    const auto wanted = checked(ids);
    if (parents.shape(0) != wanted.size() || ghosts.shape(0) != wanted.size()) {
      throw std::invalid_argument("ids, parents and ghosts must be as many of each");
    }
    const Hint hint = hint_of(priority, end, 0, return_touches, 0);
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      const SlotId parent = parents.data()[i];
      if (parent != kNoSlot && parent >= ids_max_) throw std::invalid_argument("parents must be below ids_max");
      policy_->added(wanted[i], parent, ghosts.data()[i], hint);
    }
  }
  void touched(const Ids& chain, int priority, bool end, std::uint32_t return_touches) {
    policy_->touched(checked(chain), hint_of(priority, end, 0, return_touches, 0));
  }
  void removed(const Ids& ids) {
    for (const SlotId id : checked(ids)) policy_->removed(id);
  }
  ArrayOut<std::uint32_t> victims(std::size_t count, const Ids& refused) {
    std::vector<SlotId> no(refused.data(), refused.data() + refused.shape(0)), out(std::min(count, policy_->size()));
    std::sort(no.begin(), no.end());
    out.resize(policy_->victims(out, [&no](SlotId id) { return !std::binary_search(no.begin(), no.end(), id); }));
    return array_of(std::move(out));
  }
  void released(const Ids& ids) {
    for (const SlotId id : checked(ids)) policy_->released(id);
  }

 private:
  std::unique_ptr<Policy> policy_;
  std::size_t ids_max_;
};

void bind_policy(nb::module_& m) {
  nb::class_<BarePolicy>(m, "Policy", "An eviction order alone. Ids are dense numbers below ids_max; a parent of 2**32-1 is none.")
      .def(nb::init<const std::string&, std::size_t>(), "name"_a, "ids_max"_a)
      .def("added", &BarePolicy::added, "ids"_a, "parents"_a, "ghosts"_a, "priority"_a = 0, "end"_a = false,
           "return_touches"_a = 0, "As recent as the last touched(). One that is there already is given its parent anew.")
      .def("touched", &BarePolicy::touched, "chain"_a, "priority"_a = 0, "end"_a = false, "return_touches"_a = 0,
           "One batch, in chain order; an empty one starts a batch for what is added next.")
      .def("removed", &BarePolicy::removed, "ids"_a)
      .def("victims", &BarePolicy::victims, "count"_a, "refused"_a,
           "Up to count ids in the order they should go, none of them refused. Refused ones that were met are set aside "
           "until released().")
      .def("released", &BarePolicy::released, "ids"_a)
      .def("check_integrity", [](BarePolicy& self) { self.get().check_integrity(); })
      .def_prop_ro("name", [](BarePolicy& self) { return std::string(self.get().name()); })
      .def_prop_ro("parameters", [](BarePolicy& self) { return self.get().parameters(); })
      .def_prop_ro("memory_bytes", [](BarePolicy& self) { return self.get().memory_bytes(); })
      .def("__len__", [](BarePolicy& self) { return self.get().size(); });
}

void bind_verbs(nb::class_<Table>& table) {
  table
      .def("add_namespace", &add_namespace, "ns"_a, "digest"_a, "shards"_a, "shards: the parts' bytes of each.")
      .def("drop_namespace", [](Table& s, NsId ns) { return s.with(1000, [&](SlotTable& t) { return t.drop_namespace(ns); }); }, "ns"_a)
      .def("reserve", &reserve, "owner"_a, "ns"_a, "shard"_a, "keys"_a, "parent"_a = nb::none(),
           "metas"_a = std::vector<nb::bytes>{}, "in_place"_a = false, "now"_a = 0, "lapse_after"_a = 30'000'000'000,
           "priority"_a = 0, "end"_a = false, "expected_return_ms"_a = 0, "position"_a = 0, "from_below"_a = false,
           nb::sig("def reserve(self, owner: int, ns: int, shard: int, keys: NDArray[numpy.uint8], parent: bytes | None = None, "
                   "metas: Sequence[bytes] = [], in_place: bool = False, now: int = 0, lapse_after: int = 30000000000, "
                   "priority: int = 0, end: bool = False, expected_return_ms: int = 0, position: int = 0, from_below: bool = False) -> "
                   "tuple[NDArray[numpy.uint8], NDArray[numpy.uint64], NDArray[numpy.uint64]]"),
           "Statuses (0 granted, 1 held, 2 pending, 3 full, 4 too large), tickets, payload offsets.")
      .def("publish_part",
           [](Table& s, OwnerId owner, std::uint64_t ticket, std::uint32_t part, std::uint64_t checksum) {
             return static_cast<int>(s.with(0, [&](SlotTable& t) { return t.publish_part(owner, ticket_of(ticket), part, checksum); }));
           },
           "owner"_a, "ticket"_a, "part"_a, "checksum"_a)
      .def("seal", &seal, "owner"_a, "tickets"_a, "checksums"_a, "An outcome a ticket: 0 ok, 1 stale, 2 bad input.")
      .def("abort",
           [](Table& s, OwnerId owner, std::uint64_t ticket) {
             return static_cast<int>(s.with(0, [&](SlotTable& t) { return t.abort(owner, ticket_of(ticket)); }));
           },
           "owner"_a, "ticket"_a)
      .def("hold", &hold, "owner"_a, "ns"_a, "shard"_a, "keys"_a, "kind"_a = 0, "following"_a = false, "now"_a = 0,
           "lapse_after"_a = 60'000'000'000, "priority"_a = 0, "end"_a = false, "expected_return_ms"_a = 0, "open_max"_a = 0,
           nb::sig("def hold(self, owner: int, ns: int, shard: int, keys: NDArray[numpy.uint8], kind: int = 0, "
                   "following: bool = False, now: int = 0, lapse_after: int = 60000000000, priority: int = 0, "
                   "end: bool = False, expected_return_ms: int = 0, open_max: int = 0) -> "
                   "tuple[int, NDArray[numpy.uint64], NDArray[numpy.uint64], NDArray[numpy.uint32]]"),
           "The hold (0: nothing is here), and tickets, payload offsets and parts ready of the run.")
      .def("hold_slots", &hold_slots, "owner"_a, "tickets"_a,
           nb::sig("def hold_slots(self, owner: int, tickets: NDArray[numpy.uint64]) -> "
                   "tuple[int, NDArray[numpy.uint64], NDArray[numpy.uint64], NDArray[numpy.uint32]]"))
      .def("release", [](Table& s, OwnerId owner, HoldId hold) { return static_cast<int>(s.with(0, [&](SlotTable& t) { return t.release(owner, hold); })); }, "owner"_a, "hold"_a)
      .def("owner_gone", [](Table& s, OwnerId owner) { s.with(0, [&](SlotTable& t) { t.owner_gone(owner); }); }, "owner"_a)
      .def("expire", [](Table& s, Nanos now) { s.with(0, [&](SlotTable& t) { t.expire(now); }); }, "now"_a)
      .def("next_expiry", [](Table& s) { return s.with(0, [](SlotTable& t) { return t.next_expiry(); }); })
      .def("holds_of", [](Table& s, OwnerId owner) { return s.with(0, [&](SlotTable& t) { return t.holds_of(owner); }); }, "owner"_a)
      .def("retire", [](Table& s, SlotId slot) { return static_cast<int>(s.with(0, [&](SlotTable& t) { return t.retire(slot); })); }, "slot"_a)
      .def("retire_keys", [](Table& s, NsId ns, const KeysIn& keys) { return s.with(keys.shape(0), [&](SlotTable& t) { return t.retire_keys(ns, keys_of(keys)); }); }, "ns"_a, "keys"_a);
}

void bind_questions(nb::class_<Table>& table) {
  table
      .def("find", &find, "ns"_a, "shard"_a, "keys"_a, "The slot of each key, 2**32-1 where it is not sealed here.")
      .def("longest", [](Table& s, NsId ns, std::uint16_t shard, const KeysIn& keys) { return s.with(keys.shape(0), [&](SlotTable& t) { return t.longest(ns, shard, keys_of(keys)); }); },
           "ns"_a, "shard"_a, "keys"_a, "How many keys are sealed before the first that is not.")
      .def("longest_each", &longest_each, "ns"_a, "shard"_a, "keys"_a, "per_chain"_a,
           "longest() of each of the chains, which lie one after the other.")
      .def("shards_of", [](Table& s, NsId ns, const nb::bytes& key) { return s.with(0, [&](SlotTable& t) { return t.shards_of(ns, key_of(key, "key")); }); }, "ns"_a, "key"_a)
      .def("info", &info, "slot"_a, nb::sig("def info(self, slot: int) -> dict[str, object] | None"))
      .def("sealed", &sealed, "Tickets of all sealed slots of open namespaces.")
      .def("slots_end", [](Table& s) { return s.with(0, [](SlotTable& t) { return t.slots_end(); }); })
      .def("take_evicted", [](Table& s) { return array_of(s.take_evicted()); }, "Tickets evicted since the last call, in order.")
      .def("dirty_victims",
           [](Table& s, std::uint64_t bytes, Dirty which) {
             std::vector<Ticket> out;
             s.with(1000, [&](SlotTable& t) { t.dirty_victims(bytes, out, which); });
             return array_of(out);
           },
           "bytes"_a, "which"_a = Dirty::kAll)
      .def("mark_clean", [](Table& s, std::uint64_t ticket) { s.with(0, [&](SlotTable& t) { t.mark_clean(ticket_of(ticket)); }); }, "ticket"_a)
      .def("mark_lost", [](Table& s, std::uint64_t ticket) { s.with(0, [&](SlotTable& t) { t.mark_lost(ticket_of(ticket)); }); }, "ticket"_a)
      .def("mark_passed", [](Table& s, std::uint64_t ticket) { s.with(0, [&](SlotTable& t) { t.mark_passed(ticket_of(ticket)); }); }, "ticket"_a)
      .def("mark_dirty", [](Table& s, std::uint64_t ticket) { s.with(0, [&](SlotTable& t) { t.mark_dirty(ticket_of(ticket)); }); }, "ticket"_a)
      .def("record", &record, "ticket"_a, "checksums"_a, nb::sig("def record(self, ticket: int, checksums: NDArray[numpy.uint64]) -> bytes | None"),
           "The slot record; of a reserved slot, the one it will have when sealed with these checksums.")
      .def("recover", [](Table& s) { return s.with(1000, [](SlotTable& t) { return t.recover(); }); })
      .def("quarantine_left", [](Table& s) { return s.with(0, [](SlotTable& t) { return t.quarantine_left(); }); })
      .def("former_clients_gone", [](Table& s) { s.with(1000, [](SlotTable& t) { t.former_clients_gone(); }); })
      .def("restore", [](Table& s, const nb::bytes& rows, std::uint32_t epochs) { return s.with(1000, [&](SlotTable& t) { return t.restore({static_cast<const std::uint8_t*>(rows.data()), rows.size()}, epochs); }); }, "rows"_a, "epochs"_a = 0)
      .def("epochs", [](Table& s) { return s.with(0, [](SlotTable& t) { return t.epochs(); }); })
      .def("drain_changes", &drain_changes, "max"_a, nb::sig("def drain_changes(self, max: int) -> tuple[bytes, NDArray[numpy.uint64]]"),
           "Records of slots sealed or marked, and payload offsets freed, since the last call.")
      .def("stats", &stats, nb::sig("def stats(self) -> dict[str, int]"))
      .def("check_integrity", [](Table& s) { s.with(1000, [](SlotTable& t) { t.check_integrity(); }); });
}

}  // namespace

void bind_table(nb::module_& m) {
  nb::enum_<Dirty>(m, "Dirty", nb::is_arithmetic())
      .value("ALL", Dirty::kAll).value("FRESH", Dirty::kFresh).value("LOST", Dirty::kLost);
  nb::class_<Table> table(m, "SlotTable", "One tier's slots: native/core/slot_table.hpp says what each verb promises.");
  const TableConfig defaults;
  table.def(nb::init<std::uint64_t, std::uint64_t, std::uint32_t, std::string, std::uint64_t, nb::object>(), "bytes"_a,
            "slab_bytes"_a = defaults.slab_bytes, "header_bytes"_a = 0, "policy"_a = defaults.policy,
            "hash_seed"_a = defaults.hash_seed, "meta"_a = nb::none());
  table.def_static("meta_bytes", [](std::uint64_t bytes, std::uint64_t slab_bytes, std::uint32_t header_bytes) {
    return SlotTable::meta_bytes({bytes, slab_bytes, header_bytes, "leaf_lru", 0});
  }, "bytes"_a, "slab_bytes"_a, "header_bytes"_a = 0);
  bind_verbs(table);
  bind_questions(table);
  bind_policy(m);
}

}  // namespace kvstore
