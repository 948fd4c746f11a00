// Holds, owners and time. Rules: slot_table.hpp, slot_table_impl.hpp.
#include <algorithm>

#include "slot_table_impl.hpp"

namespace kvstore {
namespace {

std::uint64_t cell_bytes(const Entry& e) noexcept { return (e.bytes + std::uint64_t{kSlotAlign} - 1) / kSlotAlign * kSlotAlign; }

}  // namespace

bool SlotTable::Impl::can_hold(SlotId slot, HoldKind kind) const noexcept {
  const Entry& e = entries[slot];
  return e.holds() < kHoldsPerSlotMax && (kind != HoldKind::kView || e.views < 0xffff);
}

void SlotTable::Impl::hold_one(SlotId slot, HoldKind kind) {
  Entry& e = entries[slot];
  if (kind == HoldKind::kView) std::atomic_ref(e.views).fetch_add(1, std::memory_order_release);
  if (e.holds() == 0 && e.state() == SlotState::kSealed) slabs.add_busy(slot);
  e.add_hold();
}

void SlotTable::Impl::release_one(SlotId slot, HoldKind kind) {
  Entry& e = entries[slot];
  e.drop_hold();
  if (kind == HoldKind::kView) std::atomic_ref(e.views).fetch_sub(1, std::memory_order_release);
  if (e.holds() > 0) return;
  if (e.state() == SlotState::kSealed) {
    slabs.drop_busy(slot);
    offer_again(slot);
  } else {
    free_if_unused(slot);
  }
}

void SlotTable::Impl::offer_again(SlotId slot) {
  Entry& e = entries[slot];
  if (!e.has(kAside)) return;
  e.set(kAside, false);
  policy->released(slot);
}

void SlotTable::Impl::release(std::uint64_t hold) {
  const auto open = holds.find(hold)->body.counted ? open_bytes.find(holds.find(hold)->owner) : open_bytes.end();
  const HoldBody body = holds.remove(hold);
  const HoldKind kind = body.internal ? HoldKind::kLease : body.kind;
  // Chain order reversed: what becomes a candidate again does so leaf first.
  for (auto slot = body.slots.rbegin(); slot != body.slots.rend(); ++slot) {
    if (kind == HoldKind::kPin) counts.pinned_bytes -= entries[*slot].bytes;
    if (open != open_bytes.end()) open->second.give(*slot, cell_bytes(entries[*slot]));
    release_one(*slot, kind);
  }
  if (open != open_bytes.end() && open->second.empty()) open_bytes.erase(open);
}

HoldId SlotTable::hold(OwnerId owner, NsId ns, std::uint16_t shard, std::span<const Key> keys, HoldKind kind,
                       bool following, const Hint& hint, Nanos now, Nanos lapse_after, std::vector<Held>& out, std::uint64_t open_max) {
  Impl& t = *impl_;
  out.clear();
  const std::uint16_t row = t.row_of(ns);
  if (row == kNoRow) return 0;
  std::vector<SlotId> run;
  OpenBytes* const open = open_max != 0 ? &t.open_bytes[owner] : nullptr;
  t.find_each(row, shard, keys, [&](std::size_t, SlotId slot) {
    if (slot == kNoSlot || !t.can_hold(slot, kind)) return false;
    const Entry& e = t.entries[slot];
    const std::uint32_t ready = t.parts_ready(e);
    if (e.state() != SlotState::kSealed && !(following && ready > 0)) return false;
    if (open != nullptr && !open->take(slot, cell_bytes(e), open_max)) return false;
    t.hold_one(slot, kind);
    t.entries[slot].touch();
    if (kind == HoldKind::kPin) t.counts.pinned_bytes += e.bytes;
    run.push_back(slot);
    out.push_back({{slot, e.tenancy}, t.slabs.offset(slot), ready});
    return true;
  });
  if (run.empty()) {
    if (open != nullptr && open->empty()) t.open_bytes.erase(owner);
    return 0;
  }
  t.policy->touched(run, t.in_touches(hint, now));
  const std::optional<Nanos> deadline = kind == HoldKind::kView ? std::nullopt : std::optional(now + lapse_after);
  return t.holds.add(owner, deadline, {.kind = kind, .internal = false, .counted = open != nullptr, .slots = std::move(run)});
}

void SlotTable::touch(NsId ns, std::uint16_t shard, std::span<const Key> keys, const Hint& hint, Nanos now) {
  Impl& t = *impl_;
  const std::uint16_t row = t.row_of(ns);
  if (row == kNoRow) return;
  std::vector<SlotId> run;
  t.find_each(row, shard, keys, [&](std::size_t, SlotId slot) {
    if (slot == kNoSlot || t.entries[slot].state() != SlotState::kSealed) return true;
    t.entries[slot].touch();
    run.push_back(slot);
    return true;
  });
  if (!run.empty()) t.policy->touched(run, t.in_touches(hint, now));
}

HoldId SlotTable::hold_slots(OwnerId owner, std::span<const Ticket> tickets, std::vector<Held>& out) {
  Impl& t = *impl_;
  out.clear();
  std::vector<SlotId> run;
  for (const Ticket& ticket : tickets) {
    if (!t.names(ticket) || t.entries[ticket.slot].state() != SlotState::kSealed) continue;
    if (!t.can_hold(ticket.slot, HoldKind::kLease)) continue;
    t.hold_one(ticket.slot, HoldKind::kLease);
    run.push_back(ticket.slot);
    out.push_back({ticket, t.slabs.offset(ticket.slot), t.entries[ticket.slot].parts()});
  }
  if (run.empty()) return 0;
  return t.holds.add(owner, std::nullopt, {.kind = HoldKind::kLease, .internal = true, .counted = false, .slots = std::move(run)});
}

Outcome SlotTable::release(OwnerId owner, HoldId hold) {
  Impl& t = *impl_;
  const auto* record = t.holds.find(hold);
  if (record == nullptr || record->owner != owner) return Outcome::kStale;
  t.release(hold);
  return Outcome::kOk;
}

void SlotTable::owner_gone(OwnerId owner) {
  Impl& t = *impl_;
  while (const std::uint64_t hold = t.holds.first_of(owner)) t.release(hold);
  while (const std::uint64_t writer = t.writers.first_of(owner)) {
    const SlotId slot = t.writers.find(writer)->body.slot;
    if (t.entries[slot].state() == SlotState::kReserved) ++t.counts.aborted;
    t.end_writer(writer);
  }
}

void SlotTable::expire(Nanos now) {
  Impl& t = *impl_;
  while (const std::uint64_t hold = t.holds.due(now)) {
    if (t.holds.find(hold)->body.kind == HoldKind::kLease) ++t.counts.lapsed_leases;
    t.release(hold);
  }
  while (const std::uint64_t writer = t.writers.due(now)) {
    ++t.counts.lapsed_reservations;
    t.drop_reservation(writer);
  }
}

std::size_t SlotTable::holds_of(OwnerId owner) const { return impl_->holds.count_of(owner); }

std::optional<Nanos> SlotTable::next_expiry() const {
  const std::optional<Nanos> hold = impl_->holds.next_deadline(), writer = impl_->writers.next_deadline();
  if (!hold || !writer) return hold ? hold : writer;
  return std::min(*hold, *writer);
}

// Touches come at a rate that this table has seen, so a duration can be told to a policy that knows no time.
Hint SlotTable::Impl::in_touches(const Hint& hint, Nanos now) {
  constexpr Nanos kWindow = 1'000'000'000;
  ++rate_touches;
  const Nanos passed = now - rate_since;
  if (passed >= kWindow || passed < 0) {
    const std::uint64_t now_16ths =
        passed > 0 ? rate_touches * 16 * static_cast<std::uint64_t>(kWindow) / static_cast<std::uint64_t>(passed) : 0;
    rate_16ths = rate_16ths == 0 ? now_16ths : (rate_16ths * 3 + now_16ths) / 4;
    rate_since = now;
    rate_touches = 0;
  }
  Hint out = hint;
  const std::uint64_t touches = std::uint64_t{hint.expected_return_ms} * rate_16ths / 16'000;
  if (hint.expected_return_ms > 0) out.return_touches = static_cast<std::uint32_t>(std::min<std::uint64_t>(touches, 1u << 30));
  return out;
}

}  // namespace kvstore
