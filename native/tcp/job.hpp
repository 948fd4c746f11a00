// One batch in motion over TCP: where its bytes lie here, by which grants they are asked for, and what has come of it.
//
// Rules
// - A slice belongs to one worker thread at a time; only that thread touches its memory and writes its state.
// - Every slice is settled exactly once. The last one to settle ends the job: then nothing touches its local memory.
#pragma once
#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "transfer/layout.hpp"
#include "wire.hpp"

namespace kvstore::tcp {

using transfer::Direction;
using transfer::Layout;
using transfer::LocalSpan;
using transfer::Slice;

// Where the next byte of a run of rows lies.
struct Place {
  std::uint32_t row = 0;
  std::uint64_t offset = 0;  // in the row
};

class Job {
 public:
  // Throws std::invalid_argument for rows outside of `locals`, without bytes, or of an access that is not there.
  Job(std::uint64_t token, Direction direction, std::vector<LocalSpan> locals, std::vector<Access> accesses, Layout layout);

  // Asks of each access whether it is live: so many slices without bytes.
  Job(std::uint64_t token, std::vector<Access> accesses);

  std::uint64_t token() const noexcept { return token_; }
  Direction direction() const noexcept { return direction_; }
  const Layout& layout() const noexcept { return layout_; }
  std::size_t slices() const noexcept { return probes_.empty() ? layout_.slices().size() : probes_.size(); }
  const Slice& slice(std::size_t index) const noexcept { return probes_.empty() ? layout_.slices()[index] : kNoRows; }
  const Access& access(std::size_t slice) const noexcept {
    return accesses_[probes_.empty() ? layout_.rows()[this->slice(slice).row_first].remote : slice];
  }

  // Asking for it costs no more than waking a thread, and so does receiving it.
  bool small() const noexcept { return direction_ == Direction::kRead && layout_.bytes() <= kSmallBytes && layout_.rows().size() <= kSmallRows; }

  Place begin(const Slice& slice) const noexcept { return {slice.row_first, 0}; }
  // Up to `bytes` from `place` on, in at most out.size() pieces of local memory; returns how many pieces.
  std::size_t pieces(Place place, std::uint64_t bytes, std::span<iovec> out) const noexcept;
  void advance(Place& place, std::uint64_t bytes) const noexcept;
  // Hashes what of the slice lies in memory: [hashed, landed), counted from its start, as far as leaves are whole. The new `hashed`.
  std::uint64_t hash(const Slice& slice, Place& place, std::uint64_t hashed, std::uint64_t landed) noexcept;

  void stop(Reason reason) noexcept;  // the first reason stays
  Reason stopped() const noexcept { return static_cast<Reason>(stop_.load()); }
  // kNone: not moved, because the job was stopped. True: it was the last slice.
  bool settle(std::size_t slice, Reason reason) noexcept;
  void finish() noexcept;  // after the last slice
  bool finished() const noexcept { return finished_.load(); }
  // Before it is submitted: a thread waits for its end, so nobody else is told.
  void wait_in_a_thread() noexcept { waited_ = true; }
  bool waited_in_a_thread() const noexcept { return waited_; }
  std::span<const std::uint8_t> states() const noexcept { return probes_.empty() ? layout_.states() : probes_; }  // after finish()

 private:
  std::uint64_t token_;
  Direction direction_;
  std::vector<LocalSpan> locals_;
  std::vector<Access> accesses_;
  static constexpr Slice kNoRows{};
  static constexpr std::uint64_t kSmallBytes = 64u << 10;
  static constexpr std::size_t kSmallRows = 64;
  Layout layout_;
  std::vector<std::uint8_t> probes_;  // a Reason each
  std::atomic<std::uint8_t> stop_{0};
  std::atomic<std::size_t> left_;
  std::atomic<bool> finished_{false};
  bool waited_ = false;
};

}  // namespace kvstore::tcp
