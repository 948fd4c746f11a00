// One batch of copies between mapped memory, cut into slices by transfer.plan.
//
// Rules
// - A slice is the unit of everything that may stop a batch: its grant, the deadline and a stop are looked at before it, and
//   its state is written after its last byte is stored and fenced.
// - All bounds are checked when the job is made, against the mappings and the grants; a job out of bounds is never run.
// - Each rail of a job is driven by one thread at a time; rails are independent, so several threads may share a job.
// - It never outlives what it points at by its own means: whoever made it keeps the mappings until every rail is back.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/copy.hpp"
#include "grant_table.hpp"
#include "layout.hpp"

namespace kvstore::transfer {

struct Spans {
  Direction direction = Direction::kRead;
  std::vector<LocalSpan> locals;
  std::vector<std::shared_ptr<const RemoteSpan>> remotes;
  // kNone: may be copied. Looks at bounds and rights, not at time.
  Reason check(const Row& row) const noexcept;
};

class CopyJob {
 public:
  // deadline_ns: CLOCK_MONOTONIC. Throws std::invalid_argument for rows out of bounds.
  CopyJob(Spans spans, Layout layout, std::int64_t deadline_ns);

  // Copies up to `slices_max` more slices of a rail. True when the rail has none left.
  bool advance(std::uint32_t rail, std::size_t slices_max) noexcept;
  // No further slice begins; the first reason stays. What is being copied ends first.
  void stop(Reason reason) noexcept;
  // Called once all rails are back: names what was left, and folds the leaves of each part.
  void finish() noexcept;

  std::uint32_t rails() const noexcept { return static_cast<std::uint32_t>(rails_.size()); }
  const Layout& layout() const noexcept { return layout_; }  // its results: after finish()

 private:
  struct Rail {
    std::vector<std::uint32_t> slices;
    std::size_t next = 0;
    std::vector<Piece> from, to;  // of one slice; reserved beforehand, so that copying allocates nothing
  };
  Reason copy(const Slice& slice, Rail& rail) noexcept;
  Spans spans_;
  Layout layout_;
  std::int64_t deadline_ns_;
  std::vector<Rail> rails_;
  std::atomic<std::uint8_t> stop_{0};
};

}  // namespace kvstore::transfer
