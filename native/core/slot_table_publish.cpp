// Reserving, publishing parts, sealing, aborting. Rules: slot_table.hpp, slot_table_impl.hpp.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "base/checksum.hpp"
#include "slot_table_impl.hpp"

namespace kvstore {
namespace {

// Holds what a reserve() must not evict to make room for itself: the part of the chain that is here already. Ended when
// the call is.
class CallHolds {
 public:
  explicit CallHolds(std::vector<SlotId>& slots, const std::function<void(SlotId)>& release)
      : slots_(slots), release_(release) {}
  ~CallHolds() {
    for (const SlotId slot : slots_) release_(slot);
  }
  CallHolds(const CallHolds&) = delete;
  CallHolds& operator=(const CallHolds&) = delete;

 private:
  std::vector<SlotId>& slots_;
  const std::function<void(SlotId)>& release_;
};

}  // namespace

SlotTable::Impl::Request SlotTable::Impl::request(OwnerId owner, NsId ns, std::uint16_t shard, const Hint& hint,
                                                  bool in_place, Nanos deadline) const {
  const std::uint16_t row = row_of(ns);
  if (row == kNoRow) throw std::invalid_argument("ns is not open in this table");
  if (shard >= rows[row].shards.size()) throw std::invalid_argument("shard is not one of the namespace's");
  const ShardSpec& spec = rows[row].shards[shard];
  return {.owner = owner,
          .row = row,
          .shard = shard,
          .bytes = static_cast<std::uint32_t>(spec.bytes),
          .parts = static_cast<std::uint32_t>(spec.part_bytes.size()),
          .units = slabs.cell_units(spec.bytes),
          .in_place = in_place,
          .deadline = deadline,
          .hint = hint,
          .victims = {},
          .last_resorts = {},
          .ancestors = {}};
}

void SlotTable::reserve(OwnerId owner, NsId ns, std::uint16_t shard, std::span<const Key> keys, const Key* parent,
                        std::span<const std::span<const std::uint8_t>> meta, const Hint& hint, bool in_place,
                        Nanos now, Nanos lapse_after, std::span<Reserved> out) {
  Impl& t = *impl_;
  if (out.size() != keys.size()) throw std::invalid_argument("out must be as long as keys");
  if (!meta.empty() && meta.size() != keys.size()) throw std::invalid_argument("meta must be empty or as long as keys");
  for (const auto& one : meta) {
    if (one.size() > kMetaBytesMax) throw std::invalid_argument("meta must be at most 1024 bytes a block");
  }
  Impl::Request request = t.request(owner, ns, shard, t.in_touches(hint, now), in_place, now + lapse_after);

  // What is here already is touched as one batch, and kept until this call ends.
  std::vector<SlotId> at(keys.size(), kNoSlot), here, kept;
  SlotId above = request.above = parent != nullptr ? t.lookup(request.row, shard, *parent) : kNoSlot;
  const auto keep = [&](SlotId slot) {
    if (!t.can_hold(slot, HoldKind::kLease)) return;
    t.hold_one(slot, HoldKind::kLease);
    kept.push_back(slot);
  };
  t.find_each(request.row, shard, keys, [&](std::size_t i, SlotId slot) {
    at[i] = slot;
    if (slot != kNoSlot && t.entries[slot].state() == SlotState::kSealed) here.push_back(slot);
    return true;
  });
  if (above != kNoSlot && t.entries[above].state() == SlotState::kSealed) keep(above);
  for (const SlotId slot : here) {
    t.entries[slot].touch();
    keep(slot);
  }
  t.policy->touched(here, request.hint);
  const std::function<void(SlotId)> let_go = [&t](SlotId slot) { t.release_one(slot, HoldKind::kLease); };
  const CallHolds call_holds(kept, let_go);

  bool full = false, above_is_new = false;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    request.left = keys.size() - i;
    request.position = hint.position + static_cast<std::uint32_t>(std::min<std::size_t>(i, kPositionMax));
    // A key that comes twice in one call is here by its second time.
    const SlotId slot = at[i] != kNoSlot ? at[i] : t.lookup(request.row, shard, keys[i]);
    const Key* parent_key = i > 0 ? &keys[i - 1] : parent;
    if (slot != kNoSlot) {
      const bool sealed = t.entries[slot].state() == SlotState::kSealed;
      out[i] = {sealed ? ReserveStatus::kHeld : ReserveStatus::kPending, {}, 0};
      if (sealed) out[i].ticket = {slot, t.entries[slot].tenancy};
      if (sealed) out[i].offset = t.slabs.offset(slot);
      if (above_is_new) t.policy->added(slot, above, 0, request.hint);  // the hole above it is filled
      above = slot;
      above_is_new = false;
      continue;
    }
    const auto meta_i = meta.empty() ? std::span<const std::uint8_t>{} : meta[i];
    out[i] = full ? Reserved{} : t.grant(request, keys[i], parent_key, above, meta_i);
    full = full || out[i].status == ReserveStatus::kFull;
    above_is_new = out[i].status == ReserveStatus::kGranted;
    above = above_is_new ? out[i].ticket.slot : kNoSlot;
  }
}

Reserved SlotTable::Impl::grant(Request& request, const Key& key, const Key* parent, SlotId parent_slot,
                                std::span<const std::uint8_t> meta) {
  if (!slabs.fits(request.units)) return {ReserveStatus::kTooLarge, {}, 0};
  const SlotId slot = make_room(request);
  if (slot == kNoSlot) return {};
  const std::uint32_t shape =
      Entry::make_shape(request.parts, static_cast<std::uint32_t>(meta.size()), request.shard);
  const auto tail_units = request.parts + static_cast<std::uint32_t>((meta.size() + 7) / 8);
  const std::uint32_t tail = take_tail(request, tail_units);
  if (tail == TailPool::kNone) {
    slabs.give(slot);
    return {};
  }
  Entry& e = entries[slot];
  if (++e.tenancy == 0) e.tenancy = 1;
  e.row = request.row;
  e.views = 0;
  e.shape = shape;
  e.bytes = request.bytes;
  e.tail = tail;
  e.key = key;
  parents[slot] = parent != nullptr ? *parent : Key{};
  if (!meta.empty()) {
    tails.data(tail)[tail_units - 1] = 0;  // padding is part of what is checksummed
    std::memcpy(tails.data(tail) + request.parts, meta.data(), meta.size());
  }
  const std::uint64_t writer =
      writers.add(request.owner, request.deadline,
                  {.slot = slot, .tenancy = e.tenancy, .parts_ready = 0, .in_place = request.in_place, .lapsed = false});
  e.set_check(Writers::place_of(writer), request.position);
  const Hint& hint = request.hint;
  const bool wanted = !hint.end && (hint.priority > 0 || hint.expected_return_ms > 0 || hint.turn > 1);
  e.store_control((e.control & kLogged) | kWriter | kRanked | (wanted ? kWanted : 0u) | static_cast<std::uint32_t>(SlotState::kReserved));

  const std::uint64_t name = hash(request.row, request.shard, key);
  index.insert(tag(name), slot);
  policy->added(slot, parent_slot, name, request.hint);
  slabs.add_busy(slot);
  ++rows[request.row].slots;
  ++counts.slots_reserved;
  return {ReserveStatus::kGranted, {slot, e.tenancy}, slabs.offset(slot)};
}

std::uint64_t SlotTable::Impl::writer_of(OwnerId owner, Ticket ticket) {
  if (!names(ticket) || !entries[ticket.slot].has(kWriter)) return 0;
  const std::uint64_t id = writers.id_at(entries[ticket.slot].writer());
  return writers.find(id)->owner == owner ? id : 0;
}

Outcome SlotTable::publish_part(OwnerId owner, Ticket ticket, std::uint32_t part, std::uint64_t checksum) {
  Impl& t = *impl_;
  const std::uint64_t writer = t.writer_of(owner, ticket);
  if (writer == 0 || t.entries[ticket.slot].state() != SlotState::kReserved) return Outcome::kStale;
  WriterBody& body = t.writers.find(writer)->body;
  Entry& e = t.entries[ticket.slot];
  if (part != body.parts_ready || part >= e.parts()) return Outcome::kBadInput;
  t.tails.data(e.tail)[part] = checksum;  // recorded first, then held by followers
  ++body.parts_ready;
  t.tell(ticket.slot, Progress::kPart, body.parts_ready);
  return Outcome::kOk;
}

Outcome SlotTable::seal(OwnerId owner, Ticket ticket, std::span<const std::uint64_t> checksums) {
  Impl& t = *impl_;
  const std::uint64_t writer = t.writer_of(owner, ticket);
  if (writer == 0 || t.entries[ticket.slot].state() != SlotState::kReserved) return Outcome::kStale;
  Entry& e = t.entries[ticket.slot];
  const std::uint32_t ready = t.writers.find(writer)->body.parts_ready;
  std::uint64_t* tail = t.tails.data(e.tail);
  if (checksums.size() == e.parts() && std::equal(tail, tail + ready, checksums.begin())) {
    checksums = checksums.subspan(ready);  // all were given again, and agree with what was published
  }
  if (checksums.size() != e.parts() - ready) return Outcome::kBadInput;
  std::copy(checksums.begin(), checksums.end(), tail + ready);
  t.writers.remove(writer);
  e.set_check(t.entry_checksum(ticket.slot), e.position());
  e.set_state(SlotState::kSealed, e.control & (kRanked | kAside | kWanted));
  --t.counts.slots_reserved;
  ++t.counts.slots_sealed;
  t.counts.payload_bytes_sealed += e.bytes;
  t.log_change(ticket.slot);
  t.tell(ticket.slot, Progress::kSealed, e.parts());
  if (e.holds() == 0) {
    t.slabs.drop_busy(ticket.slot);
    t.offer_again(ticket.slot);
  }
  return Outcome::kOk;
}

Outcome SlotTable::abort(OwnerId owner, Ticket ticket) {
  Impl& t = *impl_;
  const std::uint64_t writer = t.writer_of(owner, ticket);
  if (writer == 0) return Outcome::kStale;
  const bool in_time = t.entries[ticket.slot].state() == SlotState::kReserved;
  if (in_time) ++t.counts.aborted;
  t.end_writer(writer);
  return in_time ? Outcome::kOk : Outcome::kStale;
}

std::uint64_t SlotTable::Impl::entry_checksum(SlotId slot) const {
  const Entry& e = entries[slot];
  std::uint8_t buffer[28 + 3 * sizeof(Key) + TailPool::kUnitsMax * TailPool::kUnitBytes];
  const std::uint32_t words[7] = {slot, e.tenancy, e.shape, e.bytes, e.tail, e.row, e.position()};
  std::uint8_t* at = buffer;
  const auto append = [&at](const void* data, std::size_t bytes) {
    std::memcpy(at, data, bytes);
    at += bytes;
  };
  append(words, sizeof words);
  append(&rows[e.row].digest, sizeof(Key));
  append(&e.key, sizeof(Key));
  append(&parents[slot], sizeof(Key));
  append(tails.data(e.tail), e.tail_units() * TailPool::kUnitBytes);
  return xxh3(buffer, static_cast<std::size_t>(at - buffer)) & kCheckMask;
}

}  // namespace kvstore
