// What this process has granted, as the threads that serve it look at it.
//
// Rules
// - Each request's grant is checked here, natively: slot, generation, proof, expiry, rights, and every row against the ranges.
// - A touch is counted in before the grant is looked at, and counted out after the last byte; ending a grant is stored before the
//   counts are looked at. Both orders are sequentially consistent: when a grant has ended and its count is zero, nobody touches it.
// - What a slot says lies in one immutable object, swapped whole: a request keeps the one it was checked against.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "transfer/grant_table.hpp"
#include "wire.hpp"

namespace kvstore::tcp {

using transfer::Range;

struct Served {  // one grant
  std::uint32_t slot, generation;
  std::int64_t expiry_ns;  // CLOCK_MONOTONIC
  std::byte* base;
  std::uint64_t bytes;
  bool readable, writable;
  std::array<std::uint8_t, kProofBytes> proof;
  std::vector<Range> ranges;  // sorted, disjoint
  std::atomic<bool> ended{false};
  std::atomic<std::uint32_t> touching{0};

  // kNone: counted in, leave() must follow.
  Reason enter(std::int64_t now_ns) noexcept;
  // True: the last one out of a grant that has ended; its owner wants to know.
  bool leave() noexcept;
};

class ServedGrants {
 public:
  explicit ServedGrants(std::uint32_t slots) : slots_(slots) {}
  void issue(std::shared_ptr<Served> grant);  // throws std::out_of_range, std::invalid_argument
  void end(std::uint32_t slot);
  bool quiet(std::uint32_t slot) const;
  // The grant a request names, if it may do what it asks for; else why not (then the pointer is empty). A wrong proof is answered as
  // a grant that was revoked: nothing tells a guesser that a slot is in use.
  std::shared_ptr<Served> open(const Access& access, std::span<const WireRow> rows, bool writing, std::int64_t now_ns,
                               Reason& why) const;

 private:
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Served>> slots_;
};

}  // namespace kvstore::tcp
