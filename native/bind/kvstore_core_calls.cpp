// The calls by which blocks are looked up, published, held and fetched, and how fetches come to their end.
#include <sys/eventfd.h>
#include <unistd.h>

#include <mutex>
#include <stdexcept>

#include "kvstore_core_class.hpp"
#include "kvstore_core_rows.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore::bind {

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

namespace {

std::vector<DoneOut> take_completions(CoreClass& self) {
  std::vector<DoneOut> out;
  for (auto& [token, answer] : self.completions->take()) out.push_back(done_of(token, std::move(answer)));
  return out;
}

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
  return std::tuple_cat(std::tuple(static_cast<int>(status)), arrays_of(out));
}

ArrayOut<std::uint8_t> seal(CoreClass& self, int tier, OwnerId owner, const WordsIn& tickets, const WordsIn& checksums, Nanos, int path,
                            Nanos elapsed) {
  const auto moved = static_cast<MovePath>(path);
  if (moved != MovePath::kHoldMemory && moved != MovePath::kPutTransferred) throw nb::value_error("path: MovePath.PUT_TRANSFERRED, or none");
  const Tier where = tier_of(tier);
  std::vector<Outcome> out(tickets.shape(0));
  {
    nb::gil_scoped_release release;
    self.core.seal(where, owner, tickets_of(tickets), words_of(checksums), out, moved, elapsed);
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

}  // namespace

void bind_calls(nb::class_<CoreClass>& core) {
  core.def("lookup", &lookup, "ns"_a, "keys"_a, "needs"_a)
      .def("find", &find, "tier"_a, "ns"_a, "shard"_a, "keys"_a)
      .def("reserve", &reserve, "tier"_a, "owner"_a, "ns"_a, "shard"_a, "keys"_a, "parent"_a, "metas"_a, "hint"_a, "in_place"_a, "now"_a)
      .def("publish_part",
           [](CoreClass& self, OwnerId owner, std::uint64_t ticket, std::uint32_t part, std::uint64_t checksum) {
             return static_cast<int>(self.core.publish_part(owner, ticket_of(ticket), part, checksum));
           }, "owner"_a, "ticket"_a, "part"_a, "checksum"_a)
      .def("seal", &seal, "tier"_a, "owner"_a, "tickets"_a, "checksums"_a, "now"_a, "path"_a = static_cast<int>(MovePath::kHoldMemory),
           "elapsed_ns"_a = Nanos{0})
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
             if (path < 0 || path > static_cast<int>(MovePath::kGetGrpc)) throw nb::value_error("path: MovePath.GET_MAPPED, GET_TRANSFERRED or GET_GRPC");
             const auto [none, memory, file, object] = by_tier;
             self.core.fetched({ns, hint, asked, {none, memory, file, object}, failed, static_cast<MovePath>(path), bytes, elapsed});
           }, "ns"_a, "hint"_a, "blocks_asked"_a, "blocks_by_tier"_a, "blocks_failed"_a, "path"_a, "bytes"_a, "elapsed_ns"_a)
      .def("put_took", [](CoreClass& self, int path, std::uint64_t bytes, Nanos elapsed) {
             if (path != static_cast<int>(MovePath::kPutGrpc)) throw nb::value_error("path: MovePath.PUT_GRPC");
             self.core.put_took(static_cast<MovePath>(path), bytes, elapsed);
           }, "path"_a, "bytes"_a, "elapsed_ns"_a)
      .def("report_corrupt", [](CoreClass& self, OwnerId owner, std::uint64_t ticket) { self.core.report_corrupt(owner, ticket_of(ticket)); },
           "owner"_a, "ticket"_a)
      .def("owner_gone", [](CoreClass& self, OwnerId owner) { self.core.owner_gone(owner); }, Release(), "owner"_a)
      .def("tick", [](CoreClass& self, Nanos now) { self.core.tick(now); }, Release(), "now"_a)
      .def("next_deadline", [](CoreClass& self) { return self.core.next_deadline(); });
}

}  // namespace kvstore::bind
