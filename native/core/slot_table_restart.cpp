// Restart: from meta memory (memory tier), from rows (file tier); and the changes a checkpoint needs.
// Rules: slot_table.hpp, slot_table_impl.hpp; layouts: docs/format/slot.md.
#include <algorithm>
#include <stdexcept>

#include "slot_table_impl.hpp"

namespace kvstore {

// ---- memory tier

std::size_t SlotTable::recover() {
  Impl& t = *impl_;
  if (t.counts.slots_reserved + t.counts.slots_sealed + t.counts.slots_retired > 0) {
    throw std::logic_error("recover: the table is in use");
  }
  t.load_rows();
  t.slabs.reset_for_claims();
  std::vector<SlotId> sealed;
  for (std::uint32_t slab = 0; slab < t.slabs.count(); ++slab) {
    const std::uint32_t units = t.slabs.units_of(slab);
    for (std::uint32_t cell = 0; cell < t.slabs.filled(slab); ++cell) {
      const SlotId slot = t.slabs.first_of(slab) + cell;
      Entry& e = t.entries[slot];
      if (e.control == 0) continue;
      if (!t.recover_one(slot, units)) {
        e.store_control(0);
        ++t.counts.recovered_rejected;
      } else if (e.state() == SlotState::kSealed) {
        sealed.push_back(slot);
      }
    }
  }
  t.slabs.rebuild();
  t.tails.rebuild();
  for (const SlotId slot : t.former) t.slabs.add_busy(slot);
  t.rank(sealed);
  for (std::uint16_t row = 0; row < t.rows.size(); ++row) {
    if (t.rows_by_digest.contains(t.rows[row].digest) && t.rows_by_digest.at(t.rows[row].digest) == row) t.leave_row(row);
  }
  t.counts.recovered += sealed.size();
  t.counts.quarantined += t.former.size();
  return sealed.size();
}

bool SlotTable::Impl::recover_one(SlotId slot, std::uint32_t units) {
  Entry& e = entries[slot];
  const bool viewed = e.views > 0;
  const bool kept = viewed || e.has(kWriter) || e.has(kFormer);
  switch (e.state()) {
    case SlotState::kFree:
      e.store_control(0);
      return true;
    case SlotState::kSealed:
      if (recover_sealed(slot, units)) return true;
      // Damaged, but somebody may be looking at its bytes: nobody else may have them yet.
      if (!viewed || slabs.cell_units(e.bytes) != units || !slabs.claim(slot, units)) return false;
      ++counts.recovered_rejected;
      recover_unsealed(slot);
      return true;
    case SlotState::kReserved:
    case SlotState::kRetired:
      if (e.state() == SlotState::kRetired && !kept) {
        e.store_control(0);
        return true;
      }
      if (slabs.cell_units(e.bytes) != units || !slabs.claim(slot, units)) return false;
      recover_unsealed(slot);
      return true;
  }
  return false;
}

// Bounds before use: an entry is only believed once its checksum holds, and that reads its tail.
bool SlotTable::Impl::seems_sealed(SlotId slot, std::uint32_t units) const {
  const Entry& e = entries[slot];
  if (e.row >= rows.size()) return false;
  const auto row = rows_by_digest.find(rows[e.row].digest);
  if (row == rows_by_digest.end() || row->second != e.row) return false;
  if (e.parts() == 0 || e.parts() > kPartsMax || e.meta_bytes() > kMetaBytesMax || e.tenancy == 0) return false;
  if (e.bytes == 0 || slabs.cell_units(e.bytes) != units) return false;
  if (e.tail > layout.tail_units || e.tail_units() > layout.tail_units - e.tail) return false;
  return e.checksum() == entry_checksum(slot);
}

bool SlotTable::Impl::recover_sealed(SlotId slot, std::uint32_t units) {
  Entry& e = entries[slot];
  if (!seems_sealed(slot, units) || lookup(e.row, e.shard(), e.key) != kNoSlot) return false;
  if (!tails.claim(e.tail, e.tail_units()) || !slabs.claim(slot, units)) return false;
  const bool viewed = e.views > 0;
  std::atomic_ref(e.views).store(viewed ? 1 : 0, std::memory_order_release);
  const std::uint32_t flags = (e.control & (kClean | kWanted)) | (viewed ? kFormer | 0x10000u : 0u);  // held once, by them
  e.store_control(flags | static_cast<std::uint32_t>(SlotState::kSealed));
  if (viewed) former.push_back(slot);
  index.insert(tag(hash(e.row, e.shard(), e.key)), slot);
  ++rows[e.row].slots;
  ++counts.slots_sealed;
  counts.payload_bytes_sealed += e.bytes;
  return true;
}

// Only its place matters now. `control` last: until then a second restart finds what this one found.
void SlotTable::Impl::recover_unsealed(SlotId slot) {
  Entry& e = entries[slot];
  e.shape = 0;  // no tail, no name
  e.row = kNoRow;
  e.store_control(kFormer | static_cast<std::uint32_t>(SlotState::kRetired));
  std::atomic_ref(e.views).store(0, std::memory_order_release);
  ++counts.slots_retired;
  former.push_back(slot);
}

bool SlotTable::quarantine_left() const { return !impl_->former.empty(); }

void SlotTable::former_clients_gone() {
  Impl& t = *impl_;
  const std::vector<SlotId> slots = std::move(t.former);
  t.former.clear();
  for (const SlotId slot : slots) {
    Entry& e = t.entries[slot];
    e.set(kFormer, false);
    if (e.holds() > 0) {
      t.release_one(slot, HoldKind::kView);
    } else {
      t.free_if_unused(slot);
    }
  }
}

// The order of use did not survive; chains did. Parents first, so that the policy knows its leaves.
void SlotTable::Impl::rank(std::span<const SlotId> slots) {
  policy->touched({}, {});
  std::vector<SlotId> chain;
  const auto parent_slot = [this](SlotId slot) {
    const Key& parent = parents[slot];
    return parent == Key{} ? kNoSlot : lookup(entries[slot].row, entries[slot].shard(), parent);
  };
  for (const SlotId start : slots) {
    // Up to what is ranked already, marking the way: opaque keys may name each other in a circle.
    for (SlotId at = start; at != kNoSlot && !entries[at].has(kRanked) && !entries[at].has(kAside); at = parent_slot(at)) {
      chain.push_back(at);
      entries[at].set(kAside, true);
    }
    while (!chain.empty()) {
      const SlotId slot = chain.back();
      chain.pop_back();
      const SlotId parent = parent_slot(slot);
      const bool known = parent != kNoSlot && entries[parent].has(kRanked);
      policy->added(slot, known ? parent : kNoSlot, hash(entries[slot].row, entries[slot].shard(), entries[slot].key), {});
      entries[slot].set(kRanked, true);
      entries[slot].set(kAside, false);
    }
  }
}

// ---- file tier

std::uint32_t SlotTable::epochs() const { return impl_->slabs.epochs(); }

std::size_t SlotTable::restore(std::span<const std::uint8_t> bytes, std::uint32_t epochs) {
  Impl& t = *impl_;
  std::vector<RecordView> views;
  while (!bytes.empty()) {
    const auto view = decode_record(bytes);
    if (!view) {  // nothing says where the next would begin
      ++t.counts.recovered_rejected;
      break;
    }
    views.push_back(*view);
    bytes = bytes.subspan(view->record_bytes);
  }
  // The newest claim on a slab decides what it is; older claims on the same bytes do not fit it any more.
  std::sort(views.begin(), views.end(), [](const RecordView& a, const RecordView& b) { return a.sequence > b.sequence; });
  // Before anything is claimed: rows may be older than what was written on their slab since. Should the headers be all
  // that is left one day, what goes there now must win over both.
  t.slabs.continue_after(epochs);
  if (!views.empty()) t.slabs.continue_after(static_cast<std::uint32_t>(views.front().sequence >> 32));
  std::vector<SlotId> restored;
  std::vector<std::uint64_t> taken, rejected;  // payload offsets
  for (const RecordView& view : views) {
    const bool believed = t.restore_one(view);
    (believed ? taken : rejected).push_back(view.offset);
    if (believed) restored.push_back(t.slabs.slot_at(view.offset, t.slabs.cell_units(view.bytes)));
  }
  t.counts.recovered_rejected += rejected.size();
  std::sort(taken.begin(), taken.end());
  for (const std::uint64_t offset : rejected) {  // or the index would tell of them again, when nothing contradicts them
    if (!std::binary_search(taken.begin(), taken.end(), offset)) t.log_free(offset);
  }
  t.slabs.rebuild();
  std::reverse(restored.begin(), restored.end());  // the older are the colder
  t.rank(restored);
  t.counts.recovered += restored.size();
  return restored.size();
}

bool SlotTable::Impl::restore_one(const RecordView& view) {
  const std::uint32_t units = slabs.cell_units(view.bytes);
  if (!slabs.fits(units)) return false;
  const SlotId slot = slabs.slot_at(view.offset, units);
  if (slot == kNoSlot || entries[slot].state() != SlotState::kFree) return false;
  const std::uint32_t slab = slabs.slab_of(slot);
  if (slabs.used(slab) > 0 && slabs.units_of(slab) != units) return false;
  if (!rows_by_digest.contains(view.ns) && rows_free.empty() && rows.size() >= kNamespaceRowsMax) return false;  // generations long gone
  const std::uint16_t row = take_row(view.ns);
  const bool there = lookup(row, view.shard, view.key) != kNoSlot;
  const std::uint32_t shape = Entry::make_shape(view.parts, static_cast<std::uint32_t>(view.meta.size()), view.shard);
  const auto tail_units = view.parts + static_cast<std::uint32_t>((view.meta.size() + 7) / 8);
  const std::uint32_t tail = there ? TailPool::kNone : tails.take(tail_units);
  if (tail == TailPool::kNone || !slabs.claim(slot, units)) {
    if (tail != TailPool::kNone) tails.give(tail, tail_units);
    leave_row(row);
    return false;
  }
  Entry& e = entries[slot];
  e = {.control = 0, .tenancy = std::max(static_cast<std::uint32_t>(view.sequence), 1u), .row = row, .views = 0, .shape = shape,
       .bytes = static_cast<std::uint32_t>(view.bytes), .tail = tail, .check = 0, .key = view.key};
  e.set_check(0, view.position);
  parents[slot] = view.parent;
  std::uint64_t* words = tails.data(tail);
  words[tail_units - 1] = 0;
  std::copy(view.checksum_bytes.begin(), view.checksum_bytes.end(), reinterpret_cast<std::uint8_t*>(words));
  std::copy(view.meta.begin(), view.meta.end(), reinterpret_cast<std::uint8_t*>(words + view.parts));
  e.set_check(entry_checksum(slot), e.position());
  e.store_control((view.clean ? kClean : 0u) | static_cast<std::uint32_t>(SlotState::kSealed));
  index.insert(tag(hash(row, view.shard, view.key)), slot);
  ++rows[row].slots;
  ++counts.slots_sealed;
  counts.payload_bytes_sealed += e.bytes;
  return true;
}

// ---- changes

void SlotTable::Impl::encode(SlotId slot, std::span<const std::uint64_t> checksums,
                             std::vector<std::uint8_t>& out) const {
  const Entry& e = entries[slot];
  const std::uint64_t* tail = tails.data(e.tail);
  if (checksums.empty()) checksums = {tail, e.parts()};
  const auto* meta = reinterpret_cast<const std::uint8_t*>(tail + e.parts());
  encode_record({.ns = rows[e.row].digest,
                 .key = e.key,
                 .parent = parents[slot],
                 .shard = e.shard(),
                 .position = e.position(),
                 .clean = e.has(kClean),
                 .bytes = e.bytes,
                 .offset = slabs.offset(slot),
                 .sequence = sequence(slot),
                 .checksums = {checksums.begin(), checksums.end()},
                 .meta = {meta, meta + e.meta_bytes()}},
                out);
}

Outcome SlotTable::record(Ticket ticket, std::span<const std::uint64_t> checksums,
                          std::vector<std::uint8_t>& out) const {
  const Impl& t = *impl_;
  if (!t.names(ticket) || !t.listed(t.entries[ticket.slot])) return Outcome::kStale;
  const Entry& e = t.entries[ticket.slot];
  if (e.state() == SlotState::kReserved ? checksums.size() != e.parts() : !checksums.empty()) return Outcome::kBadInput;
  t.encode(ticket.slot, checksums, out);
  return Outcome::kOk;
}

void SlotTable::Impl::log_change(SlotId slot) {
  if (config.header_bytes == 0 || entries[slot].has(kLogged)) return;
  entries[slot].set(kLogged, true);
  changed.push_back(slot);
}

void SlotTable::Impl::log_free(std::uint64_t offset) {
  if (config.header_bytes == 0) return;
  freed.push_back(offset);
  if (freed.size() < freed_compact_at) return;
  // Nobody drains, or slowly: an offset need be said once.
  std::sort(freed.begin(), freed.end());
  freed.erase(std::unique(freed.begin(), freed.end()), freed.end());
  freed_compact_at = std::max<std::size_t>(1024, freed.size() * 2);
}

void SlotTable::drain_changes(std::size_t max, std::vector<std::uint8_t>& sealed_rows,
                              std::vector<std::uint64_t>& freed_offsets) {
  Impl& t = *impl_;
  sealed_rows.clear();
  const std::size_t frees = std::min(max, t.freed.size());
  freed_offsets.assign(t.freed.end() - static_cast<std::ptrdiff_t>(frees), t.freed.end());
  t.freed.resize(t.freed.size() - frees);
  if (!t.freed.empty()) return;  // a row must never come before the free of what lay there
  for (std::size_t left = max - frees; left > 0 && !t.changed.empty();) {
    const SlotId slot = t.changed.back();
    t.changed.pop_back();
    t.entries[slot].set(kLogged, false);
    if (t.entries[slot].state() != SlotState::kSealed) continue;  // not a change: fewer than `max` means that no more are left
    t.encode(slot, {}, sealed_rows);
    --left;
  }
}

}  // namespace kvstore
