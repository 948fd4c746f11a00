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
// A pack may go too, and with it what made its blocks clean, in files or (where files have them not) in memory:
//
// - found damaged, cut or missing, or deleted by an operator: fresh. Written again as if just put: each such pack costs one.
// - swept, because the store has its limit: passed over, unless touched since it went down. To write it again at once would
//   push out other packs, whose blocks would be written again in their turn, without an end: a store that is smaller than
//   what lies above it would be rewritten for ever. What is touched is worth more than what the sweeper has chosen to keep.
// - forgotten by an index that is full: it is there, so nothing changes. Should it be swept later, nobody can say which
//   blocks its name stood for; they stay clean, and are lost when they are evicted. A cache may forget.
//
// Why that comes to rest, even where files are smaller than the cold part of memory and each write there evicts what is to
// be written next: a slot that went down is `sunk` until it is touched, and only fresh ones are write-behind's to files. So
// between two touches it is written there once. A pack is written once, and again once for each time that the store is found
// to have lost it; after a sweep only for a touch, since what was swept is neither fresh nor lost until then. When files evict what
// was swept, the copy in memory is passed over as well.
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
  if (!in_its_turn) return memory.mark_dirty(ticket);
  memory.mark_lost(ticket);
  if (info.sunk && info.passed) memory.mark_swept(ticket);
}

void NodeCore::Impl::pack_gone(NsId ns, std::uint16_t shard, std::span<const Key> keys, bool swept) {
  std::vector<Found> above(keys.size()), top(keys.size());
  if (file) file->find(ns, shard, keys, above);
  memory.find(ns, shard, keys, top);
  const auto mark = [swept](SlotTable& table, SlotId slot) {
    const SlotInfo info = table.info(slot);
    if (info.clean) swept ? table.mark_swept(info.ticket) : table.mark_dirty(info.ticket);
  };
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (above[i].slot != kNoSlot) {
      mark(*file, above[i].slot);  // and memory's copy stays clean: files have it
    } else if (top[i].slot != kNoSlot) {
      mark(memory, top[i].slot);
    }
  }
}

std::size_t NodeCore::recheck_clean(bool packs_below) {
  std::lock_guard lock(impl_->mutex);
  std::vector<Ticket> wrong;
  std::size_t marked = 0;
  if (impl_->file && !packs_below) {
    impl_->file->for_each_sealed([&](const SlotInfo& info) {
      if (info.clean && !impl_->in_packs(info)) wrong.push_back(info.ticket);
    });
    for (const Ticket ticket : wrong) impl_->file->mark_dirty(ticket);
    marked = wrong.size();
    wrong.clear();
  }
  impl_->memory.for_each_sealed([&](const SlotInfo& info) {
    const bool below = impl_->file && impl_->file->longest(info.ns, info.shard, {&info.key, 1}) == 1;
    if (info.clean && !below && !impl_->in_packs(info)) wrong.push_back(info.ticket);
  });
  for (const Ticket ticket : wrong) impl_->memory.mark_dirty(ticket);
  return marked + wrong.size();
}

}  // namespace kvstore
