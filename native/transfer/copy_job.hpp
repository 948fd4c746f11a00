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

namespace kvstore::transfer {

struct LocalSpan {
  std::byte* base;
  std::uint64_t bytes;
  bool writable;
};

enum class Direction : std::uint8_t { kRead = 0, kWrite = 1 };  // remote to local, local to remote

struct Row {  // one copy, contiguous on both sides
  std::uint32_t local, remote;  // indexes of spans
  std::uint64_t local_offset, remote_offset, length;
};

struct Slice {
  std::uint64_t position;  // of its first byte in the batch, where all rows lie end to end
  std::uint32_t row_first, row_end, rail;
};

struct Spans {
  Direction direction = Direction::kRead;
  std::vector<LocalSpan> locals;
  std::vector<std::shared_ptr<const RemoteSpan>> remotes;
  // kNone: may be copied. Looks at bounds and rights, not at time.
  Reason check(const Row& row) const noexcept;
};

class CopyJob {
 public:
  // `parts`: lengths that add up to the batch's bytes, or empty for no digests. Slices are in order, cover all rows, and
  // begin at a leaf of a part. deadline_ns: CLOCK_MONOTONIC. Throws std::invalid_argument for what is not so.
  CopyJob(Spans spans, std::vector<Row> rows, std::vector<Slice> slices, const std::vector<std::uint64_t>& parts,
          std::int64_t deadline_ns);

  // Copies up to `slices_max` more slices of a rail. True when the rail has none left.
  bool advance(std::uint32_t rail, std::size_t slices_max) noexcept;
  // No further slice begins; the first reason stays. What is being copied ends first.
  void stop(Reason reason) noexcept;
  // Called once all rails are back: names what was left, and folds the leaves of each part.
  void finish() noexcept;

  std::uint32_t rails() const noexcept { return static_cast<std::uint32_t>(rails_.size()); }
  // After finish(): a Reason a slice; an XXH3-64 a leaf, and a checksum a part (0 where bytes are missing).
  std::span<const std::uint8_t> states() const noexcept { return states_; }
  std::span<const std::uint64_t> leaves() const noexcept { return leaves_; }
  std::span<const std::uint64_t> checksums() const noexcept { return checksums_; }
  bool whole() const noexcept { return whole_; }

 private:
  struct Part {
    std::uint64_t position, length, leaf_first;
  };
  struct Rail {
    std::vector<std::uint32_t> slices;
    std::size_t next = 0;
    std::vector<Piece> from, to;  // of one slice; reserved beforehand, so that copying allocates nothing
  };
  void lay_out_parts(const std::vector<std::uint64_t>& lengths);
  void lay_out_slices();
  Reason copy(const Slice& slice, Rail& rail) noexcept;
  void hash(std::uint64_t position, PieceCursor& from, PieceCursor& to, std::uint64_t bytes) noexcept;
  std::uint64_t bytes_of(const Slice& slice) const noexcept;
  std::size_t part_at(std::uint64_t position) const noexcept;

  Spans spans_;
  std::vector<Row> rows_;
  std::vector<Slice> slices_;
  std::vector<Part> parts_;
  std::int64_t deadline_ns_;
  std::uint64_t bytes_ = 0;
  std::vector<Rail> rails_;
  std::vector<std::uint8_t> states_;
  std::vector<std::uint64_t> leaves_, checksums_;
  std::atomic<std::uint8_t> stop_{0};
  bool whole_ = false;  // every slice landed
};

}  // namespace kvstore::transfer
