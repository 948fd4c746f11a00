// Making room: victims, one at a time or a slab at once. Rules: slot_table.hpp, slot_table_impl.hpp.
//
// A cell is found in this order: a slab of the size with room, a free slab, the policy's next victim. A victim of the
// same size gives its cell; for one of another size its whole slab is emptied and taken, which is possible while
// nothing in it is busy; where it is not, the victim is passed over. Where every leaf is held or being written, their
// parents are no candidates of the policy either: then any slot that nobody holds goes, since only holds may refuse a put.
#include <algorithm>

#include "slot_table_impl.hpp"

namespace kvstore {
namespace {

constexpr std::size_t kVictimsAtOnce = 64;

}  // namespace

bool SlotTable::Impl::evictable(SlotId slot) {
  Entry& e = entries[slot];
  if (e.state() == SlotState::kSealed && e.holds() == 0) return true;
  e.set(kAside, true);  // the policy sets it aside: tell it when that changes
  return false;
}

SlotId SlotTable::Impl::next_victim(Request& request) {
  Victims& v = request.victims;
  while (true) {
    while (v.next < v.ids.size()) {
      const SlotId slot = v.ids[v.next++];
      const Entry& e = entries[slot];
      if (e.state() != SlotState::kSealed || e.holds() > 0) continue;
      ++v.used;
      return slot;
    }
    // Those passed over come again, so ask for as many more. Less than asked, and none of use: there are no more.
    if (v.asked > v.ids.size() && v.used == 0) return kNoSlot;
    v.asked = std::min(2 * v.passed_over + std::clamp<std::size_t>(request.left, 1, kVictimsAtOnce), policy->size() + 1);
    v.ids.resize(v.asked);
    v.ids.resize(policy->victims(v.ids, [this](SlotId slot) { return evictable(slot); }));
    v.next = v.used = v.passed_over = 0;
  }
}

void SlotTable::Impl::pass_over(Request& request) {
  --request.victims.used;
  ++request.victims.passed_over;
}

SlotId SlotTable::Impl::last_resort(std::uint32_t units) const {
  for (std::uint32_t slab = 0; slab < slabs.count(); ++slab) {
    const bool may_give = slabs.units_of(slab) == units ? slabs.busy(slab) < slabs.used(slab) : slabs.busy(slab) == 0;
    for (std::uint32_t cell = may_give ? slabs.filled(slab) : 0; cell-- > 0;) {
      const Entry& e = entries[slabs.first_of(slab) + cell];
      if (e.state() == SlotState::kSealed && e.holds() == 0) return slabs.first_of(slab) + cell;
    }
  }
  return kNoSlot;
}

SlotId SlotTable::Impl::make_room(Request& request) {
  SlotId slot = slabs.take(request.units);
  while (slot == kNoSlot) {
    SlotId victim = next_victim(request);
    if (victim == kNoSlot) victim = last_resort(request.units);
    if (victim == kNoSlot) return kNoSlot;
    const std::uint32_t slab = slabs.slab_of(victim);
    if (slabs.units_of(slab) == request.units) {
      evict(victim);
    } else if (slabs.busy(slab) == 0) {
      empty_slab(slab);
      request.victims = {};  // others have gone out of turn: the order is another now
    } else {
      pass_over(request);
      continue;
    }
    slot = slabs.take(request.units);
  }
  return slot;
}

void SlotTable::Impl::evict(SlotId slot) {
  if (observer) observer(info(slot));
  ++(entries[slot].has(kClean) ? counts.evicted_clean : counts.evicted_dirty);
  retire(slot);
}

void SlotTable::Impl::empty_slab(std::uint32_t slab) {
  // filled() falls to zero with the last one.
  for (std::uint32_t cell = 0; cell < slabs.filled(slab); ++cell) {
    const SlotId slot = slabs.first_of(slab) + cell;
    if (entries[slot].state() == SlotState::kSealed) evict(slot);
  }
  ++counts.slabs_moved;
}

std::uint32_t SlotTable::Impl::take_tail(Request& request, std::uint32_t units) {
  std::uint32_t at = tails.take(units);
  while (at == TailPool::kNone) {
    const SlotId victim = next_victim(request);
    if (victim == kNoSlot) return TailPool::kNone;
    evict(victim);
    at = tails.take(units);
  }
  return at;
}

}  // namespace kvstore
