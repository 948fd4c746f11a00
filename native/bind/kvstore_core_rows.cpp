#include "kvstore_core_rows.hpp"

namespace kvstore::bind {

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

WorkOut work_of(Work&& work) {
  return {static_cast<int>(work.kind), work.ns, work.shard, work.wanted_now, array_of(std::move(work.keys)),
          bytes_of(work.tiers), word_of(work.ticket), work.position};
}

EventOut event_of(const Event& event) {
  return {event.sequence, static_cast<int>(event.kind), event.ns, event.shard, static_cast<int>(event.tier),
          bytes_of(event.key), bytes_of(event.parent), bytes_of(event.meta)};
}

DoneOut done_of(std::uint64_t token, FetchAnswer&& answer) {
  auto [tickets, offsets, ready] = arrays_of(answer.slots);
  return {token, static_cast<int>(answer.status), answer.field, answer.limit, answer.hold, answer.lease, answer.window_full,
          std::move(tickets), std::move(offsets), std::move(ready), bytes_of(answer.tiers),
          array_of(std::move(answer.checksums))};
}

// Arrays have an owner of their own: a getter hands out the array, not a view into the row object.
constexpr auto kOwned = nb::rv_policy::reference;

void bind_core_rows(nb::module_& m) {
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

}  // namespace kvstore::bind
