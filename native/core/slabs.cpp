#include "slabs.hpp"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

namespace kvstore {
namespace {

// Meta memory outlives the process: stores must happen in program order.
void store(std::uint32_t& word, std::uint32_t value) noexcept {
  std::atomic_ref<std::uint32_t>(word).store(value, std::memory_order_release);
}

}  // namespace

Slabs::Slabs(const TableConfig& config, SlabRow* rows, Entry* entries)
    : rows_(rows),
      entries_(entries),
      slab_bytes_(config.slab_bytes),
      header_bytes_(config.header_bytes),
      slab_units_(static_cast<std::uint32_t>(config.slab_bytes / kSlotAlign)),
      per_slab_(ids_per_slab(config)),
      slabs_(config.bytes / config.slab_bytes),
      heads_(slab_units_ + 1, 0) {
  for (std::uint32_t slab = count(); slab-- > 0;) {
    if (rows_[slab].cell_units == 0) link(slab);
  }
}

std::uint64_t Slabs::offset(SlotId slot) const noexcept {
  const std::uint32_t slab = slab_of(slot);
  const std::uint64_t cell = slot - first_of(slab);
  return slab * slab_bytes_ + cell * rows_[slab].cell_units * kSlotAlign + header_bytes_;
}

SlotId Slabs::slot_at(std::uint64_t payload_offset, std::uint32_t units) const noexcept {
  if (payload_offset < header_bytes_) return kNoSlot;
  const std::uint64_t offset = payload_offset - header_bytes_;
  const std::uint64_t slab = offset / slab_bytes_, within = offset % slab_bytes_;
  const std::uint64_t cell_bytes = std::uint64_t{units} * kSlotAlign;
  if (slab >= slabs_.size() || within % cell_bytes != 0 || within + cell_bytes > slab_bytes_) return kNoSlot;
  return first_of(static_cast<std::uint32_t>(slab)) + static_cast<SlotId>(within / cell_bytes);
}

void Slabs::link(std::uint32_t slab) {
  std::uint32_t& head = head_for(slab);
  Slab& s = slabs_[slab];
  s.prev = 0;
  s.next = head;
  if (head != 0) slabs_[head - 1].prev = slab + 1;
  head = slab + 1;
  s.linked = true;
}

void Slabs::unlink(std::uint32_t slab) {
  Slab& s = slabs_[slab];
  (s.prev != 0 ? slabs_[s.prev - 1].next : head_for(slab)) = s.next;
  if (s.next != 0) slabs_[s.next - 1].prev = s.prev;
  s.linked = false;
}

SlotId Slabs::take(std::uint32_t units) {
  if (heads_[units] == 0) {
    if (heads_[0] == 0) return kNoSlot;
    const std::uint32_t fresh = heads_[0] - 1;
    unlink(fresh);
    store(rows_[fresh].filled, 0);  // before the size: a slab never shows another size's cells as filled
    store(rows_[fresh].cell_units, units);
    slabs_[fresh].free_head = 0;
    slabs_[fresh].epoch = next_epoch();
    link(fresh);
  }
  const std::uint32_t slab = heads_[units] - 1;
  Slab& s = slabs_[slab];
  SlotId slot = kNoSlot;
  if (s.free_head != 0) {
    slot = s.free_head - 1;
    s.free_head = entries_[slot].tail;
  } else {
    slot = first_of(slab) + rows_[slab].filled;
    store(rows_[slab].filled, rows_[slab].filled + 1);
  }
  ++s.used;
  if (!has_room(slab)) unlink(slab);
  return slot;
}

void Slabs::give(SlotId slot) {
  const std::uint32_t slab = slab_of(slot);
  Slab& s = slabs_[slab];
  entries_[slot].tail = s.free_head;
  s.free_head = slot + 1;
  --s.used;
  if (s.used > 0) {
    if (!s.linked) link(slab);
    return;
  }
  if (s.linked) unlink(slab);
  s.free_head = 0;
  store(rows_[slab].cell_units, 0);
  store(rows_[slab].filled, 0);
  link(slab);
}

std::uint64_t Slabs::bytes_free() const noexcept {
  std::uint64_t bytes = 0;
  for (std::uint32_t slab = 0; slab < count(); ++slab) {
    const std::uint32_t units = rows_[slab].cell_units;
    bytes += units == 0 ? slab_bytes_ : std::uint64_t{cells(slab) - slabs_[slab].used} * units * kSlotAlign;
  }
  return bytes;
}

bool Slabs::row_is_sane(std::uint32_t slab) const noexcept {
  const SlabRow& row = rows_[slab];
  return row.cell_units == 0 ||
         (row.cell_units <= slab_units_ && row.filled <= std::min(slab_units_ / row.cell_units, per_slab_));
}

void Slabs::reset_for_claims() {
  std::fill(slabs_.begin(), slabs_.end(), Slab{});
  std::fill(heads_.begin(), heads_.end(), 0);
  for (std::uint32_t slab = 0; slab < count(); ++slab) {
    if (!row_is_sane(slab)) clear_row(slab);
  }
}

bool Slabs::claim(SlotId slot, std::uint32_t units) {
  const std::uint32_t slab = slab_of(slot), cell = slot - first_of(slab);
  if (!fits(units) || cell >= slab_units_ / units) return false;
  if (rows_[slab].cell_units == 0) {
    rows_[slab] = {units, 0};
    slabs_[slab].epoch = next_epoch();
  }
  if (rows_[slab].cell_units != units) return false;
  rows_[slab].filled = std::max(rows_[slab].filled, cell + 1);
  ++slabs_[slab].used;
  return true;
}

void Slabs::rebuild() {
  std::fill(heads_.begin(), heads_.end(), 0);
  for (std::uint32_t slab = count(); slab-- > 0;) {
    Slab& s = slabs_[slab];
    s.free_head = 0;
    s.linked = false;
    if (s.used == 0) clear_row(slab);
    for (std::uint32_t cell = rows_[slab].filled; cell-- > 0;) {
      const SlotId slot = first_of(slab) + cell;
      if (entries_[slot].state() != SlotState::kFree) continue;
      entries_[slot].tail = s.free_head;
      s.free_head = slot + 1;
    }
    if (s.epoch == 0 && s.used > 0) s.epoch = next_epoch();
    if (s.used == 0 || has_room(slab)) link(slab);
  }
}

void Slabs::check_integrity() const {
  const auto fail = [](const std::string& what) { throw std::logic_error("slabs: " + what); };
  for (std::uint32_t slab = 0; slab < count(); ++slab) {
    const Slab& s = slabs_[slab];
    if (!row_is_sane(slab)) fail("an impossible row");
    const std::uint32_t units = rows_[slab].cell_units;
    if (units == 0) {
      if (s.used != 0 || s.busy != 0 || !s.linked) fail("a free slab that is not");
      continue;
    }
    std::uint32_t taken = 0, busy = 0, free = 0;
    for (std::uint32_t cell = 0; cell < rows_[slab].filled; ++cell) {
      const Entry& entry = entries_[first_of(slab) + cell];
      const SlotState state = entry.state();
      if (state == SlotState::kFree) continue;
      ++taken;
      if (state != SlotState::kSealed || entry.holds() > 0) ++busy;
    }
    for (std::uint32_t at = s.free_head; at != 0; at = entries_[at - 1].tail) {
      if (slab_of(at - 1) != slab || ++free > rows_[slab].filled) fail("a free list that leaves its slab");
      if (entries_[at - 1].state() != SlotState::kFree) fail("a slot in use in the free list");
    }
    if (taken != s.used || taken == 0) fail("used cells do not add up");
    if (busy != s.busy) fail("busy slots do not add up");
    if (taken + free != rows_[slab].filled) fail("free cells do not add up");
    if (s.linked != has_room(slab)) fail("a slab with room that is not offered");
  }
  std::size_t listed = 0, linked = 0;
  for (std::size_t units = 0; units < heads_.size(); ++units) {
    for (std::uint32_t at = heads_[units]; at != 0; at = slabs_[at - 1].next) {
      if (rows_[at - 1].cell_units != units || ++listed > slabs_.size()) fail("a slab in the wrong list");
    }
  }
  for (const Slab& s : slabs_) linked += s.linked ? 1 : 0;
  if (listed != linked) fail("lists do not add up");
}

}  // namespace kvstore
