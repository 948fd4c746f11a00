#include "grant_table.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

#include "bounds.hpp"

namespace kvstore::transfer {

namespace {

TableHeader read_header(const std::byte* table) noexcept {
  TableHeader header{};
  std::memcpy(&header, table, sizeof header);
  return header;
}

bool aligned(const std::byte* p) noexcept { return reinterpret_cast<std::uintptr_t>(p) % 64 == 0; }

}  // namespace

GrantTable::GrantTable(std::byte* memory, std::size_t size, std::uint32_t slots) : memory_(memory), slots_(slots) {
  if (size < bytes(slots) || !aligned(memory)) throw std::invalid_argument("grant table: memory too small or not aligned");
  const TableHeader header{kTableMagic, kTableVersion, slots};
  std::memcpy(memory, &header, sizeof header);
}

GrantCell& GrantTable::cell(std::uint32_t slot) const {
  if (slot >= slots_) throw std::out_of_range("grant table: no such slot");
  return *std::launder(reinterpret_cast<GrantCell*>(memory_ + kTableHeaderBytes + slot * sizeof(GrantCell)));
}

void GrantTable::issue(std::uint32_t slot, std::uint32_t generation, std::int64_t expiry_ns) {
  GrantCell& c = cell(slot);
  if (c.state.load() >> 1 >= generation) throw std::invalid_argument("grant table: a slot's generation only grows");
  c.expiry_ns.store(expiry_ns);
  c.state.store(static_cast<std::uint64_t>(generation) << 1 | 1);
}

void GrantTable::end(std::uint32_t slot) {
  GrantCell& c = cell(slot);
  c.state.store(c.state.load() & ~std::uint64_t{1});
}

bool GrantTable::live(std::uint32_t slot, std::uint32_t generation, std::int64_t now_ns) const {
  const GrantCell& c = cell(slot);
  return c.state.load() == (static_cast<std::uint64_t>(generation) << 1 | 1) && now_ns < c.expiry_ns.load();
}

std::uint32_t touches(const std::byte* activity, std::size_t size, std::uint32_t slot) {
  if (GrantTable::activity_bytes(slot + 1) > size) throw std::out_of_range("activity page: no such slot");
  return std::launder(reinterpret_cast<const std::atomic<std::uint32_t>*>(activity))[slot].load();
}

void Peer::check() const {
  if (table_bytes < kTableHeaderBytes || !aligned(table) || !aligned(activity)) {
    throw std::invalid_argument("grant table: too small or not aligned");
  }
  const TableHeader header = read_header(table);
  if (header.magic != kTableMagic) throw std::invalid_argument("grant table: not one of ours");
  if (header.version != kTableVersion) throw std::invalid_argument("grant table: of another version");
  if (GrantTable::bytes(header.slots) > table_bytes || GrantTable::activity_bytes(header.slots) > activity_bytes) {
    throw std::invalid_argument("grant table: smaller than its header says");
  }
}

RemoteSpan::RemoteSpan(std::shared_ptr<Peer> peer, std::uint32_t slot, std::uint32_t generation, std::byte* base,
                       std::uint64_t bytes, bool readable, bool writable, std::vector<Range> ranges)
    : peer_(std::move(peer)),
      slot_(slot),
      generation_(generation),
      base_(base),
      bytes_(bytes),
      readable_(readable),
      writable_(writable),
      ranges_(std::move(ranges)) {
  peer_->check();
  if (slot_ >= read_header(peer_->table).slots) throw std::invalid_argument("grant: its slot is not in the table");
  std::uint64_t end = 0;
  for (const Range& range : ranges_) {
    if (range.offset < end || range.length == 0 || !within(range.offset, range.length, bytes_)) {
      throw std::invalid_argument("grant: ranges must be sorted, disjoint and within the region");
    }
    end = range.offset + range.length;
  }
  cell_ = std::launder(reinterpret_cast<const GrantCell*>(peer_->table + kTableHeaderBytes + slot_ * sizeof(GrantCell)));
  activity_ = std::launder(reinterpret_cast<std::atomic<std::uint32_t>*>(peer_->activity)) + slot_;
}

bool covered(std::span<const Range> ranges, std::uint64_t offset, std::uint64_t length) noexcept {
  // The last range that starts at or before the offset; ranges that touch count as one.
  auto it = std::upper_bound(ranges.begin(), ranges.end(), offset,
                             [](std::uint64_t at, const Range& range) { return at < range.offset; });
  if (it == ranges.begin()) return false;
  --it;
  if (offset - it->offset > it->length) return false;
  std::uint64_t room = it->length - (offset - it->offset);
  for (auto next = it + 1; room < length && next != ranges.end() && next->offset == it->offset + it->length; ++next) {
    room += next->length;
    it = next;
  }
  return length <= room;
}

Reason RemoteSpan::covers(std::uint64_t offset, std::uint64_t length, bool writing) const noexcept {
  if (writing ? !writable_ : !readable_) return Reason::kNotAllowed;
  return covered(ranges_, offset, length) ? Reason::kNone : Reason::kOutOfBounds;
}

Reason RemoteSpan::enter(std::int64_t now_ns) const noexcept {
  if (peer_->gone.load()) return Reason::kPeerGone;
  activity_->fetch_add(1);  // sequentially consistent: before the look at the cell
  Reason reason = Reason::kNone;
  if (cell_->state.load() != (static_cast<std::uint64_t>(generation_) << 1 | 1)) {
    reason = Reason::kRevoked;
  } else if (now_ns >= cell_->expiry_ns.load()) {
    reason = Reason::kExpired;
  }
  if (reason != Reason::kNone) leave();
  return reason;
}

void RemoteSpan::leave() const noexcept {
  const bool last = activity_->fetch_sub(1) == 1;
  if (last && (cell_->state.load() & 1) == 0 && peer_->quiet_fd >= 0) {
    const std::uint64_t one = 1;
    // EAGAIN means that the owner has a signal waiting already.
    [[maybe_unused]] const auto written = ::write(peer_->quiet_fd, &one, sizeof one);
  }
}

}  // namespace kvstore::transfer
