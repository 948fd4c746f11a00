// What the mover and administration do with slots of either tier. Rules: node_core.hpp.
#include <algorithm>

#include "node_core_impl.hpp"
#include "slot_header.hpp"

namespace kvstore {
namespace {

constexpr std::size_t kLookedPerRow = 16;  // slots looked at under one lock, for each that may be found

}  // namespace

bool NodeCore::has(Tier tier) const noexcept {
  return tier == Tier::kMemory || (tier == Tier::kFile && impl_->file.has_value());
}

void NodeCore::with_memory(const std::function<void(SlotTable&)>& use) {
  std::lock_guard lock(impl_->mutex);
  use(impl_->memory);
}

bool NodeCore::with_file(const std::function<void(SlotTable&)>& use) {
  std::lock_guard lock(impl_->mutex);
  if (!impl_->file) return false;
  use(*impl_->file);
  return true;
}

SlotInfo NodeCore::Impl::live(const SlotTable& of, Ticket ticket) const {
  SlotInfo info = of.info(ticket.slot);
  if (info.ticket.tenancy != ticket.tenancy) info.state = SlotState::kFree;
  return info;
}

HoldId NodeCore::hold_run(Tier tier, OwnerId owner, NsId ns, std::uint16_t shard, std::span<const Key> keys, Nanos,
                          SlotRows& out) {
  if (!has(tier)) return 0;
  std::lock_guard lock(impl_->mutex);
  if (impl_->check(ns, shard, keys.size()) != FetchStatus::kOk) return 0;
  SlotTable& table = impl_->table(tier);
  std::vector<Found> found(keys.size());
  table.find(ns, shard, keys, found);
  std::vector<Ticket> run;
  for (const Found& one : found) {
    if (one.slot == kNoSlot) break;
    run.push_back(table.info(one.slot).ticket);
  }
  if (run.empty()) return 0;
  std::vector<Held> held;
  const HoldId hold = table.hold_slots(owner, run, held);
  for (const Held& one : held) out.add(table.info(one.ticket.slot));
  return hold;
}

HoldId NodeCore::hold_slots(Tier tier, OwnerId owner, std::span<const Ticket> tickets, SlotRows& out) {
  if (!has(tier) || tickets.empty()) return 0;
  std::lock_guard lock(impl_->mutex);
  SlotTable& table = impl_->table(tier);
  std::vector<Held> held;
  const HoldId hold = table.hold_slots(owner, tickets, held);
  for (const Held& one : held) out.add(table.info(one.ticket.slot));
  return hold;
}

void NodeCore::info(Tier tier, std::span<const Ticket> tickets, SlotRows& out) {
  if (!has(tier)) return;
  std::lock_guard lock(impl_->mutex);
  for (const Ticket ticket : tickets)
    if (const SlotInfo info = impl_->live(impl_->table(tier), ticket); info.state != SlotState::kFree) out.add(info);
}

Outcome NodeCore::headers(Tier tier, std::span<const Ticket> tickets, std::span<const std::uint64_t> checksums,
                          std::span<std::uint8_t> pages) const {
  if (!has(tier) || tickets.empty() || checksums.size() % tickets.size() != 0) return Outcome::kBadInput;
  if (pages.size() != tickets.size() * kHeaderBytes) return Outcome::kBadInput;
  const std::size_t each = checksums.size() / tickets.size();
  std::vector<std::uint8_t> record;
  std::lock_guard lock(impl_->mutex);
  for (std::size_t i = 0; i < tickets.size(); ++i) {
    record.clear();
    const Outcome outcome = impl_->table(tier).record(tickets[i], checksums.subspan(i * each, each), record);
    if (outcome != Outcome::kOk) return outcome;
    fill_header(record, pages.subspan(i * kHeaderBytes, kHeaderBytes));
  }
  return Outcome::kOk;
}

SlotId NodeCore::scan(Tier tier, SlotId after, std::size_t max, SlotRows& out) {
  if (!has(tier)) return kNoSlot;
  std::lock_guard lock(impl_->mutex);
  const SlotTable& table = impl_->table(tier);
  SlotId at = table.next_used(after);
  for (std::size_t left = kLookedPerRow * max; at != kNoSlot && left > 0 && out.tickets.size() < max; --left, at = table.next_used(at + 1))
    if (const SlotInfo info = table.info(at); info.state == SlotState::kSealed) out.add(info);
  return at;
}

std::size_t NodeCore::retire(Tier tier, std::span<const Ticket> tickets, bool corrupt) {
  if (!has(tier)) return 0;
  std::lock_guard lock(impl_->mutex);
  SlotTable& table = impl_->table(tier);
  std::size_t retired = 0;
  for (const Ticket ticket : tickets) {
    const SlotInfo info = impl_->live(table, ticket);
    if (info.state != SlotState::kSealed) continue;
    impl_->removed(tier, info);
    if (tier == Tier::kFile) impl_->file_copy_gone(info, false);
    if (table.retire(ticket.slot) != Outcome::kOk) continue;
    retired += 1;
    if (corrupt) impl_->counters.corrupt[static_cast<std::size_t>(tier)] += 1;
  }
  return retired;
}

std::size_t NodeCore::retire_keys(NsId ns, std::span<const Key> keys) {
  std::lock_guard lock(impl_->mutex);
  const Impl::Namespace* row = impl_->open_row(ns);
  if (row == nullptr) return 0;
  std::size_t retired = 0;
  std::vector<Found> found(keys.size());
  for (const Tier tier : {Tier::kMemory, Tier::kFile}) {
    if (!has(tier)) continue;
    SlotTable& table = impl_->table(tier);
    for (std::uint16_t shard = 0; shard < row->spec.shards.size(); ++shard) {
      table.find(ns, shard, keys, found);
      for (const Found& one : found) {
        if (one.slot == kNoSlot) continue;
        const SlotInfo info = table.info(one.slot);
        if (info.state != SlotState::kSealed) continue;  // the same key twice in one call
        impl_->removed(tier, info);
        retired += table.retire(one.slot) == Outcome::kOk;
      }
    }
  }
  return retired;
}

NsId NodeCore::ticket_namespace(Ticket ticket) const {
  std::lock_guard lock(impl_->mutex);
  const SlotInfo info = impl_->live(impl_->memory, ticket);
  return info.state == SlotState::kFree ? kNoNamespace : info.ns;
}

}  // namespace kvstore
