// What write-behind asks and says of slots. Rules: slot_table.hpp, slot_table_impl.hpp.
//
// clean: a tier below has it. What is not clean is dirty, and of that
//   fresh   write-behind has said nothing of it since it was last touched: its work
//   passed  it was not wanted below; or (sunk too) it was there, and had to go for room
//   lost    it went down (sunk), and is not there any more
// A touch makes passed and lost ones fresh again, and nothing else does but mark_dirty. So however fast the tier below
// forgets, a slot goes down at most once for each time that somebody put, fetched or promoted it: write-behind comes to rest.
#include <algorithm>
#include <unordered_set>

#include "slot_table_impl.hpp"

namespace kvstore {
namespace {

constexpr std::size_t kAtOnce = 64;

bool asked_for(const Entry& e, Dirty which) noexcept {
  if (e.has(kClean)) return false;
  switch (which) {
    case Dirty::kAll: return true;
    case Dirty::kFresh: return !e.has(kSunk) && !e.has(kPassed);
    case Dirty::kLost: return e.has(kSunk) && !e.has(kPassed);
  }
  return false;
}

}  // namespace

// Where room had to be made of what lies behind leaves that could not go, the beginnings of chains are what is to be written:
// only they may go there, once they are clean (slot_table_room.cpp). Else the coldest are, in the policy's order.
void SlotTable::dirty_victims(std::uint64_t bytes, std::vector<Ticket>& out, Dirty which) const {
  Impl& t = *impl_;
  out.clear();
  if (t.crowded) t.add_beginnings(bytes, {}, which, out);
  t.crowded = !out.empty();
  if (t.crowded) return;
  std::vector<SlotId> ids;
  const std::uint64_t left = t.add_coldest(bytes, ids, which, out);
  if (left > 0 && ids.size() < t.policy->size()) t.add_beginnings(left, ids, which, out);
}

std::uint64_t SlotTable::Impl::add_coldest(std::uint64_t bytes, std::vector<SlotId>& ids, Dirty which, std::vector<Ticket>& out) {
  // Clean ones go too, so the order runs through them; they are only not work. Ask for more until it is far enough.
  for (std::size_t wanted = kAtOnce;; wanted *= 4) {
    ids.resize(std::min(wanted, std::max<std::size_t>(policy->size(), 1)));
    ids.resize(policy->victims(ids, [this](SlotId slot) { return evictable(slot); }));
    out.clear();
    std::uint64_t left = bytes;
    for (const SlotId slot : ids) {
      const Entry& e = entries[slot];
      if (e.bytes > left) return 0;
      left -= e.bytes;
      if (asked_for(e, which)) out.push_back({slot, e.tenancy});
    }
    if (ids.size() < wanted) return left;
  }
}

void SlotTable::Impl::add_beginnings(std::uint64_t bytes, std::span<const SlotId> but, Dirty which,
                                     std::vector<Ticket>& out) const {
  const std::unordered_set<SlotId> known(but.begin(), but.end());
  std::vector<std::pair<std::uint32_t, SlotId>> found;
  for (std::uint32_t slab = 0; slab < slabs.count(); ++slab) {
    for (std::uint32_t cell = 0; cell < slabs.filled(slab); ++cell) {
      const SlotId slot = slabs.first_of(slab) + cell;
      const Entry& e = entries[slot];
      if (e.state() == SlotState::kSealed && e.holds() == 0 && !known.contains(slot)) found.emplace_back(e.position(), slot);
    }
  }
  std::sort(found.begin(), found.end());
  for (const auto& [position, slot] : found) {
    const Entry& e = entries[slot];
    if (e.bytes > bytes) return;
    bytes -= e.bytes;
    if (asked_for(e, which)) out.push_back({slot, e.tenancy});
  }
}

void SlotTable::mark_clean(Ticket ticket) { impl_->mark(ticket, kClean | kSunk, kPassed); }
void SlotTable::mark_lost(Ticket ticket) { impl_->mark(ticket, kSunk, kClean); }
void SlotTable::mark_dirty(Ticket ticket) { impl_->mark(ticket, 0, kClean | kSunk | kPassed); }
void SlotTable::mark_swept(Ticket ticket) {
  const bool sunk = impl_->names(ticket) && impl_->entries[ticket.slot].has(kSunk);  // else it was touched since
  impl_->mark(ticket, sunk ? kPassed : 0u, kClean);
}
void SlotTable::mark_passed(Ticket ticket) { impl_->mark(ticket, kPassed, 0); }

void SlotTable::Impl::mark(Ticket ticket, std::uint32_t on, std::uint32_t off) {
  if (!names(ticket) || entries[ticket.slot].state() != SlotState::kSealed) return;
  Entry& e = entries[ticket.slot];
  const std::uint32_t before = e.control;
  e.store_control((before | on) & ~off);
  if ((before ^ e.control) & kClean) log_change(ticket.slot);
}

}  // namespace kvstore
