// What write-behind asks and says of slots. Rules: slot_table.hpp, slot_table_impl.hpp.
//
// clean: a tier below has it. What is not clean is dirty, and of that
//   fresh   write-behind has said nothing of it since it was last touched: its work
//   passed  it was not wanted below
//   lost    it went down (sunk), and is not there any more
// A touch makes passed and lost ones fresh again, and nothing else does but mark_dirty. So however fast the tier below
// forgets, a slot goes down at most once for each time that somebody put, fetched or promoted it: write-behind comes to rest.
#include <algorithm>

#include "slot_table_impl.hpp"

namespace kvstore {
namespace {

constexpr std::size_t kAtOnce = 64;

bool asked_for(const Entry& e, Dirty which) noexcept {
  if (e.has(kClean)) return false;
  switch (which) {
    case Dirty::kAll: return true;
    case Dirty::kFresh: return !e.has(kSunk) && !e.has(kPassed);
    case Dirty::kLost: return e.has(kSunk);
  }
  return false;
}

}  // namespace

void SlotTable::dirty_victims(std::uint64_t bytes, std::vector<Ticket>& out, Dirty which) const {
  Impl& t = *impl_;
  std::vector<SlotId> ids;
  // Clean ones go too, so the order runs through them; they are only not work. Ask for more until it is far enough.
  for (std::size_t wanted = kAtOnce;; wanted *= 4) {
    ids.resize(std::min(wanted, std::max<std::size_t>(t.policy->size(), 1)));
    ids.resize(t.policy->victims(ids, [&t](SlotId slot) { return t.evictable(slot); }));
    out.clear();
    std::uint64_t sum = 0;
    for (const SlotId slot : ids) {
      const Entry& e = t.entries[slot];
      sum += e.bytes;
      if (sum > bytes) return;
      if (asked_for(e, which)) out.push_back({slot, e.tenancy});
    }
    if (ids.size() < wanted) return;
  }
}

void SlotTable::mark_clean(Ticket ticket) { impl_->mark(ticket, kClean | kSunk, kPassed); }
void SlotTable::mark_lost(Ticket ticket) { impl_->mark(ticket, kSunk, kClean); }
void SlotTable::mark_dirty(Ticket ticket) { impl_->mark(ticket, 0, kClean | kSunk | kPassed); }
void SlotTable::mark_passed(Ticket ticket) { impl_->mark(ticket, kPassed, 0); }

void SlotTable::Impl::mark(Ticket ticket, std::uint32_t on, std::uint32_t off) {
  if (!names(ticket) || entries[ticket.slot].state() != SlotState::kSealed) return;
  Entry& e = entries[ticket.slot];
  const std::uint32_t before = e.control;
  e.store_control((before | on) & ~off);
  if ((before ^ e.control) & kClean) log_change(ticket.slot);
}

}  // namespace kvstore
