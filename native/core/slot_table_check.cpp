// What must be true of a table between calls. Rules: slot_table_impl.hpp.
#include <stdexcept>
#include <string>

#include "slot_table_impl.hpp"

namespace kvstore {
namespace {

[[noreturn]] void fail(const std::string& what, SlotId slot = kNoSlot) {
  throw std::logic_error("slot table: " + what + (slot == kNoSlot ? "" : " (slot " + std::to_string(slot) + ")"));
}

struct Tally {
  std::uint64_t reserved = 0, sealed = 0, retired = 0, sealed_bytes = 0, tail_bytes = 0, writers = 0, former = 0;
  std::vector<std::uint64_t> by_row;
};

struct Expected {
  std::unordered_map<SlotId, std::uint32_t> holds, views;
  std::unordered_map<OwnerId, std::unordered_map<SlotId, std::uint32_t>> open;
  std::uint64_t pinned_bytes = 0;
};

}  // namespace

void SlotTable::Impl::check() const {
  slabs.check_integrity();
  tails.check_integrity();
  index.check_integrity();
  policy->check_integrity();

  Expected expected;
  holds.for_each([&](std::uint64_t, const Holds::Record& hold) {
    for (const SlotId slot : hold.body.slots) {
      ++expected.holds[slot];
      if (hold.body.counted) ++expected.open[hold.owner][slot];
      if (hold.body.internal) continue;
      if (hold.body.kind == HoldKind::kView) ++expected.views[slot];
      if (hold.body.kind == HoldKind::kPin) expected.pinned_bytes += entries[slot].bytes;
    }
  });
  for (const SlotId slot : former) {
    if (!entries[slot].has(kFormer)) fail("kept for former clients without its flag", slot);
    if (entries[slot].row == kNoRow) continue;
    ++expected.holds[slot];
    ++expected.views[slot];
  }
  std::uint64_t tickets = 0;
  writers.for_each([&](std::uint64_t id, const Writers::Record& writer) {
    const Entry& e = entries[writer.body.slot];
    ++tickets;
    if (!e.has(kWriter) || e.tenancy != writer.body.tenancy) fail("a reservation of a slot that is not its", writer.body.slot);
    if (writers.id_at(e.writer()) != id) fail("two reservations of one slot", writer.body.slot);
    if (writer.body.lapsed != (e.state() == SlotState::kRetired)) fail("a reservation out of its state", writer.body.slot);
  });

  Tally tally;
  tally.by_row.assign(rows.size(), 0);
  for (std::uint32_t slab = 0; slab < slabs.count(); ++slab) {
    for (std::uint32_t cell = 0; cell < slabs.filled(slab); ++cell) {
      const SlotId slot = slabs.first_of(slab) + cell;
      const Entry& e = entries[slot];
      if (e.state() == SlotState::kFree) {
        if (e.holds() > 0 || (e.control & ~std::uint32_t{kLogged}) != 0) fail("a free slot that is not quite", slot);
        continue;
      }
      if (e.row != kNoRow) ++tally.by_row.at(e.row);
      tally.tail_bytes += e.tail_units() * TailPool::kUnitBytes;
      tally.writers += e.has(kWriter) ? 1 : 0;
      tally.former += e.has(kFormer) ? 1 : 0;
      const auto held = expected.holds.find(slot);
      if (e.holds() != (held == expected.holds.end() ? 0 : held->second)) fail("holds do not agree", slot);
      const auto viewed = expected.views.find(slot);
      if (e.views != (viewed == expected.views.end() ? 0 : viewed->second)) fail("views do not agree", slot);
      if (listed(e) != e.has(kRanked)) fail("listed and ranked do not agree", slot);
      if (listed(e) && lookup(e.row, e.shard(), e.key) != slot) fail("not to be found by its name", slot);
      if (e.state() == SlotState::kReserved && !e.has(kWriter)) fail("reserved by nobody", slot);
      if (e.state() == SlotState::kSealed) {
        if (e.checksum() != entry_checksum(slot)) fail("its entry has changed", slot);
        tally.sealed_bytes += e.bytes;
      }
      if (e.state() == SlotState::kRetired && e.holds() == 0 && !e.has(kWriter) && !e.has(kFormer)) {
        fail("retired, unused and not free", slot);
      }
      tally.reserved += e.state() == SlotState::kReserved ? 1 : 0;
      tally.sealed += e.state() == SlotState::kSealed ? 1 : 0;
      tally.retired += e.state() == SlotState::kRetired ? 1 : 0;
    }
  }
  if (tally.reserved != counts.slots_reserved || tally.sealed != counts.slots_sealed ||
      tally.retired != counts.slots_retired || tally.sealed_bytes != counts.payload_bytes_sealed) {
    fail("slots do not add up");
  }
  if (index.size() != tally.reserved + tally.sealed) fail("the index has another number of slots");
  if (policy->size() != tally.reserved + tally.sealed) fail("the policy has another number of slots");
  if (tickets != tally.writers) fail("reservations do not add up");
  if (former.size() != tally.former) fail("slots kept for former clients do not add up");
  if (tails.bytes_used() != tally.tail_bytes) fail("tails do not add up");
  if (expected.pinned_bytes != counts.pinned_bytes) fail("pinned bytes do not add up");
  if (expected.open.size() != open_bytes.size()) fail("owners of counted holds do not add up");
  for (const auto& [owner, open] : open_bytes)
    if (expected.open[owner] != open.uses()) fail("what an owner holds open does not add up");
  for (std::size_t row = 0; row < rows.size(); ++row) {
    if (rows[row].slots != tally.by_row[row]) fail("slots of a namespace do not add up");
  }
}

}  // namespace kvstore
