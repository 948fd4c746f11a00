// How a batch lies: rows (one copy each), slices of them, and the parts whose leaves are hashed. Shared by all transports.
//
// Rules
// - Slices are in order, cover all rows, lie in one remote region each, and begin at a leaf of a part: every leaf is hashed by
//   whoever moves the slice, so slices may move in any order and on any thread.
// - A leaf's digest is written by the one thread that moves its slice; finish() comes after all of them.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/checksum.hpp"
#include "reason.hpp"

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

class Layout {
 public:
  // `parts`: lengths that add up to the batch's bytes, or empty for no digests. Throws std::invalid_argument for what is not so.
  Layout(std::vector<Row> rows, std::vector<Slice> slices, const std::vector<std::uint64_t>& parts);

  const std::vector<Row>& rows() const noexcept { return rows_; }
  const std::vector<Slice>& slices() const noexcept { return slices_; }
  std::uint32_t rails() const noexcept { return rails_; }
  std::uint64_t bytes() const noexcept { return bytes_; }
  std::uint64_t bytes_of(const Slice& slice) const noexcept;
  bool hashes() const noexcept { return !parts_.empty(); }

  // Calls each(bytes, leaf digests) for every part that [position, position + bytes) touches, in order; position is at a leaf.
  template <class Each>
  void over_parts(std::uint64_t position, std::uint64_t bytes, Each each) {
    for (std::size_t k = bytes > 0 ? part_at(position) : 0; bytes > 0; ++k) {
      const Part& part = parts_[k];
      const std::uint64_t into = position - part.position;
      const std::uint64_t step = std::min(bytes, part.length - into);
      if (step > 0) each(step, leaves_.data() + part.leaf_first + into / kLeafBytes);
      position += step;
      bytes -= step;
    }
  }
  // How many of [position, position + bytes) can be hashed now: up to the last leaf, or end of a part, that is whole.
  std::uint64_t whole_leaves(std::uint64_t position, std::uint64_t bytes) const noexcept;

  // Of each slice, by whoever moves it; what is kNone at finish() becomes `left`.
  void set_state(std::size_t slice, Reason reason) noexcept { states_[slice] = static_cast<std::uint8_t>(reason); }
  void finish(Reason left) noexcept;

  // After finish(): a Reason a slice; an XXH3-64 a leaf, and a checksum a part (0 where bytes are missing).
  std::span<const std::uint8_t> states() const noexcept { return states_; }
  std::span<const std::uint64_t> leaves() const noexcept { return leaves_; }
  std::span<const std::uint64_t> checksums() const noexcept { return checksums_; }
  bool whole() const noexcept { return whole_; }

 private:
  struct Part {
    std::uint64_t position, length, leaf_first;
  };
  void lay_out_parts(const std::vector<std::uint64_t>& lengths);
  void lay_out_slices();
  std::size_t part_at(std::uint64_t position) const noexcept;

  std::vector<Row> rows_;
  std::vector<Slice> slices_;
  std::vector<Part> parts_;
  std::uint64_t bytes_ = 0;
  std::uint32_t rails_ = 0;
  std::vector<std::uint8_t> states_;
  std::vector<std::uint64_t> leaves_, checksums_;
  bool whole_ = false;  // every slice landed
};

}  // namespace kvstore::transfer
