// Making room: victims, one at a time or a slab at once. Rules: slot_table.hpp, slot_table_impl.hpp.
//
// A cell is found in this order: a slab of the size with room, a free slab, the policy's next victim. A victim of the
// same size gives its cell; for one of another size its whole slab is emptied and taken, which is possible while
// nothing in it is busy; where it is not, the victim is passed over. Where every leaf is held or being written, their
// parents are no candidates of the policy either. Then what nobody holds goes, in this order (the last resort):
// - what lies below too, from the beginnings of chains. Not where a dirty parent would become a leaf and go next;
// - what does not, from the ends of chains: behind a hole nothing is of use;
// - but never the dirty ancestors of what is to be stored. A chain longer than the tier would otherwise push out its own
//   beginning, and the rest would be of no use. It is stored as far as write-behind has made room, and then refused. Only
//   a promotion takes their place, after all else: it has a reader, who has had the beginning.
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

bool SlotTable::Impl::may_go(SlotId slot, std::uint32_t units) const noexcept {
  const std::uint32_t slab = slabs.slab_of(slot);
  if (slabs.units_of(slab) != units && slabs.busy(slab) > 0) return false;
  return entries[slot].state() == SlotState::kSealed && entries[slot].holds() == 0;
}

SlotId SlotTable::Impl::parent_of(SlotId slot) const {
  return parents[slot] == Key{} ? kNoSlot : lookup(entries[slot].row, entries[slot].shard(), parents[slot]);
}

// Opaque keys may name each other in a circle; and a chain too long to walk is not all known to be one's own.
void SlotTable::Impl::find_ancestors(Request& request) const {
  constexpr std::size_t kStepsMax = 1 << 16;
  for (SlotId at = request.above; at != kNoSlot && request.ancestors.size() < kStepsMax; at = parent_of(at))
    if (!request.ancestors.insert(at).second) return;
}

// Smaller goes sooner; nothing: not at all.
std::optional<std::int64_t> SlotTable::Impl::last_rank(SlotId slot, const Request& request) const {
  const Entry& e = entries[slot];
  const SlotId parent = e.has(kClean) ? parent_of(slot) : kNoSlot;
  if (e.has(kClean) && (parent == kNoSlot || entries[parent].has(kClean))) return e.position();
  if (!request.ancestors.contains(slot)) return std::int64_t{2} * kPositionMax - e.position();
  if (!request.hint.from_below) return std::nullopt;
  return std::int64_t{2} * kPositionMax + 1 + e.position();
}

// As many as the call may need are looked for at once: a chain longer than the tier asks for one after the other.
SlotId SlotTable::Impl::last_resort(Request& request) {
  std::vector<SlotId>& ids = request.last_resorts;
  const auto next = [&]() {
    while (!ids.empty()) {
      const SlotId slot = ids.back();
      ids.pop_back();
      if (may_go(slot, request.units)) return slot;
    }
    return kNoSlot;
  };
  if (const SlotId slot = next(); slot != kNoSlot) return slot;
  crowded = true;
  if (request.ancestors.empty()) find_ancestors(request);
  std::vector<std::pair<std::int64_t, SlotId>> ranked;
  for (std::uint32_t slab = 0; slab < slabs.count(); ++slab) {
    if (slabs.busy(slab) == slabs.used(slab)) continue;
    for (std::uint32_t cell = 0; cell < slabs.filled(slab); ++cell) {
      const SlotId slot = slabs.first_of(slab) + cell;
      if (!may_go(slot, request.units)) continue;
      if (const auto rank = last_rank(slot, request)) ranked.emplace_back(*rank, slot);
    }
  }
  const std::size_t few = std::min(ranked.size(), std::max<std::size_t>(request.left, 1));
  std::partial_sort(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(few), ranked.end());
  for (std::size_t i = few; i-- > 0;) ids.push_back(ranked[i].second);
  return next();
}

SlotId SlotTable::Impl::make_room(Request& request) {
  SlotId slot = slabs.take(request.units);
  while (slot == kNoSlot) {
    SlotId victim = next_victim(request);
    if (victim == kNoSlot) victim = last_resort(request);
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
