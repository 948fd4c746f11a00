// Grants as the processes of one host see them: a page that the owner writes and every reader maps.
//
// Rules
// - The owner alone writes cells; readers get the table read-only, so no reader can widen or prolong a grant.
// - A reader counts itself in (its own activity page, one a connection) before it looks at the cell, and out after its last
//   touch. The owner ends the grant before it looks at the counts. Both orders are sequentially consistent, so a touch is
//   either refused or counted: when a cell is dead and all counts are zero, nobody touches the memory.
// - The count of a process that died lies in its connection's page, which the owner drops with the connection.
// - A slot is used again only with a higher generation.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "reason.hpp"

namespace kvstore::transfer {

struct GrantCell {
  std::atomic<std::uint64_t> state;     // generation << 1 | live
  std::atomic<std::int64_t> expiry_ns;  // CLOCK_MONOTONIC, which the processes of a host share
};
static_assert(sizeof(GrantCell) == 16 && std::atomic<std::uint64_t>::is_always_lock_free);

inline constexpr std::uint32_t kTableMagic = 0x5447564b;  // "KVGT"
inline constexpr std::uint32_t kTableVersion = 1;
inline constexpr std::size_t kTableHeaderBytes = 64;

struct TableHeader {
  std::uint32_t magic, version, slots;
};

// The owner's side, over memory that is kept by the caller.
class GrantTable {
 public:
  static std::size_t bytes(std::uint32_t slots) noexcept { return kTableHeaderBytes + slots * sizeof(GrantCell); }
  static std::size_t activity_bytes(std::uint32_t slots) noexcept { return slots * sizeof(std::atomic<std::uint32_t>); }
  GrantTable(std::byte* memory, std::size_t size, std::uint32_t slots);  // formats it; throws std::invalid_argument
  void issue(std::uint32_t slot, std::uint32_t generation, std::int64_t expiry_ns);
  void end(std::uint32_t slot);  // no touch begins any more
  bool live(std::uint32_t slot, std::uint32_t generation, std::int64_t now_ns) const;

 private:
  GrantCell& cell(std::uint32_t slot) const;
  std::byte* memory_;
  std::uint32_t slots_;
};

// Reads one slot's count in one connection's activity page.
std::uint32_t touches(const std::byte* activity, std::size_t size, std::uint32_t slot);

struct Range {
  std::uint64_t offset, length;
};

// Whether ranges (sorted, disjoint; those that touch count as one) hold all of [offset, offset + length).
bool covered(std::span<const Range> ranges, std::uint64_t offset, std::uint64_t length) noexcept;

// One end of a connection, shared by all grants used over it.
struct Peer {
  const std::byte* table = nullptr;  // read-only mapping
  std::size_t table_bytes = 0;
  std::byte* activity = nullptr;
  std::size_t activity_bytes = 0;
  int quiet_fd = -1;  // an eventfd of the owner: signalled by the last touch of a grant that has ended
  std::atomic<bool> gone{false};
  void check() const;  // throws std::invalid_argument unless both pages are what they should be
};

// A grant in a reader's hands: where the memory is mapped and which ranges of it may be touched.
class RemoteSpan {
 public:
  // `ranges` are sorted and disjoint. Throws std::invalid_argument for what does not fit the mapping or the table.
  RemoteSpan(std::shared_ptr<Peer> peer, std::uint32_t slot, std::uint32_t generation, std::byte* base, std::uint64_t bytes,
             bool readable, bool writable, std::vector<Range> ranges);
  Reason covers(std::uint64_t offset, std::uint64_t length, bool writing) const noexcept;
  // kNone: counted in, leave() must follow. Else why not.
  Reason enter(std::int64_t now_ns) const noexcept;
  void leave() const noexcept;
  std::byte* base() const noexcept { return base_; }

 private:
  std::shared_ptr<Peer> peer_;
  std::uint32_t slot_, generation_;
  std::byte* base_;
  std::uint64_t bytes_;
  bool readable_, writable_;
  std::vector<Range> ranges_;
  const GrantCell* cell_;
  std::atomic<std::uint32_t>* activity_;
};

}  // namespace kvstore::transfer
