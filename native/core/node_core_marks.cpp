// What leaves a tier, and what that says of its copies and of the counters. Rules: node_core.hpp.
//
// A memory slot is clean while a tier below has its block; a file slot, while a pack has it. Both are told by whoever wrote
// there. What was true then may cease to be: a file slot is evicted, or found damaged, before its block is in a pack. Then
// the copy in memory, if there is one, is the last, and is dirty again:
//
// - evicted in its turn: lost. It is not written to files again, unless it is touched: files have just found it to be the
//   coldest that they had. But it is offered to the object tier from memory, and once it is in a pack it is clean for good.
// - damaged, or retired by an operator: fresh. It is written again as if it had just been put.
// - cleared: memory goes first, so there is no copy.
//
// Why that comes to rest, even where files are smaller than the cold part of memory and each write there evicts what is to
// be written next: a slot that went down is `sunk` until it is touched, and only fresh ones are write-behind's to files. So
// between two touches it is written there once. Packs are written once for all: what lies in one is never made dirty.
#include "node_core_impl.hpp"

namespace kvstore {

bool NodeCore::Impl::in_packs(const SlotInfo& info) const { return objects && objects->has(info.ns, info.shard, info.key); }

void NodeCore::Impl::evicted(Tier tier, const SlotInfo& info) {
  removed(tier, info);
  if (tier == Tier::kFile) return file_copy_gone(info, true);
  // Dropped: a tier below would have had it, and has not. What admission passed over was not to go, and what files
  // let go in their turn has been there.
  if (info.clean || info.passed || !(file || object_tier) || in_packs(info)) return;
  if (info.sunk && !object_tier) return;
  if (file && file->longest(info.ns, info.shard, {&info.key, 1}) == 1) return;
  counters.demotions_dropped += 1;
}

void NodeCore::Impl::file_copy_gone(const SlotInfo& info, bool in_its_turn) {
  if (info.ns == kNoNamespace || info.clean || in_packs(info)) return;
  Found copy;
  memory.find(info.ns, info.shard, {&info.key, 1}, {&copy, 1});
  if (copy.slot == kNoSlot) {
    counters.demotions_dropped += in_its_turn && object_tier ? 1 : 0;
    return;
  }
  const Ticket ticket = memory.info(copy.slot).ticket;
  in_its_turn ? memory.mark_lost(ticket) : memory.mark_dirty(ticket);
}

std::size_t NodeCore::recheck_clean() {
  std::lock_guard lock(impl_->mutex);
  std::vector<Ticket> wrong;
  impl_->memory.for_each_sealed([&](const SlotInfo& info) {
    const bool below = impl_->file && impl_->file->longest(info.ns, info.shard, {&info.key, 1}) == 1;
    if (info.clean && !below && !impl_->in_packs(info)) wrong.push_back(info.ticket);
  });
  for (const Ticket ticket : wrong) impl_->memory.mark_dirty(ticket);
  return wrong.size();
}

}  // namespace kvstore
