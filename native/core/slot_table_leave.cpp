// Leaving: unlisted now, free when nobody can read or write it any more. Rules: slot_table.hpp, slot_table_impl.hpp.
#include "slot_table_impl.hpp"

namespace kvstore {

void SlotTable::Impl::unlist(SlotId slot) {
  const Entry& e = entries[slot];
  index.erase(tag(hash(e.row, e.shard(), e.key)), slot);
  policy->removed(slot);
  if (e.state() == SlotState::kReserved) {
    --counts.slots_reserved;
  } else {
    --counts.slots_sealed;
    counts.payload_bytes_sealed -= e.bytes;
  }
}

bool SlotTable::Impl::retire(SlotId slot) {
  Entry& e = entries[slot];
  if (e.state() == SlotState::kReserved) {
    drop_reservation(writers.id_at(e.writer()));
    return true;
  }
  if (e.state() != SlotState::kSealed) return false;
  unlist(slot);
  if (e.holds() == 0) slabs.add_busy(slot);  // until free_slot: it can be neither found nor evicted
  ++counts.slots_retired;
  e.set_state(SlotState::kRetired, e.control & kFormer);
  free_if_unused(slot);
  return true;
}

void SlotTable::Impl::drop_reservation(std::uint64_t writer) {
  WriterBody& body = writers.find(writer)->body;
  const SlotId slot = body.slot;
  unlist(slot);
  ++counts.slots_retired;
  const bool may_write = body.in_place;
  entries[slot].set_state(SlotState::kRetired, kWriter);
  tell(slot, Progress::kAbandoned, body.parts_ready);
  if (may_write) {
    body.lapsed = true;
    writers.forget_deadline(writer);
    ++counts.quarantined;
  } else {
    end_writer(writer);
  }
}

void SlotTable::Impl::end_writer(std::uint64_t writer) {
  const WriterBody body = writers.remove(writer);
  const SlotId slot = body.slot;
  Entry& e = entries[slot];
  const bool reserved = e.state() == SlotState::kReserved;
  if (reserved) {
    unlist(slot);
    ++counts.slots_retired;
  }
  e.set_state(SlotState::kRetired, 0);
  if (reserved) tell(slot, Progress::kAbandoned, body.parts_ready);
  free_if_unused(slot);
}

void SlotTable::Impl::free_if_unused(SlotId slot) {
  const Entry& e = entries[slot];
  if (e.state() == SlotState::kRetired && e.holds() == 0 && !e.has(kWriter) && !e.has(kFormer)) free_slot(slot);
}

void SlotTable::Impl::free_slot(SlotId slot) {
  Entry& e = entries[slot];
  const std::uint16_t row = e.row;
  const std::uint32_t tail = e.tail, tail_units = e.tail_units();
  const std::uint64_t offset = slabs.offset(slot);
  log_free(offset);
  e.set_state(SlotState::kFree, 0);
  if (tail_units > 0) tails.give(tail, tail_units);
  slabs.drop_busy(slot);
  slabs.give(slot);
  --counts.slots_retired;
  if (row == kNoRow) return;
  --rows[row].slots;
  leave_row(row);
}

Outcome SlotTable::retire(SlotId slot) {
  if (slot >= impl_->layout.ids) return Outcome::kBadInput;
  return impl_->retire(slot) ? Outcome::kOk : Outcome::kStale;
}

std::size_t SlotTable::retire_keys(NsId ns, std::span<const Key> keys) {
  Impl& t = *impl_;
  const std::uint16_t row = t.row_of(ns);
  if (row == kNoRow) return 0;
  std::size_t unlisted = 0;
  for (std::uint16_t shard = 0; shard < t.rows[row].shards.size(); ++shard) {
    for (const Key& key : keys) {
      const SlotId slot = t.lookup(row, shard, key);
      if (slot != kNoSlot && t.retire(slot)) ++unlisted;
    }
  }
  return unlisted;
}

}  // namespace kvstore
