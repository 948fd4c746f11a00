// Checksums of a block's parts while its bytes arrive in order, in pieces of any size.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/checksum.hpp"

namespace kvstore::door {

class PartHasher {
 public:
  // `parts` outlives it.
  explicit PartHasher(std::span<const std::uint32_t> parts) : parts_(parts) { checksums_.reserve(parts.size()); }

  // Bytes beyond the last part are a programmer's error: the caller has checked them against the block.
  void feed(const void* data, std::size_t bytes) noexcept {
    const auto* at = static_cast<const std::uint8_t*>(data);
    progress_ += bytes;
    while (bytes > 0) {
      const std::size_t leaf = std::min<std::size_t>(kLeafBytes, parts_[checksums_.size()] - part_done_);
      const std::size_t step = std::min(leaf - filled_, bytes);
      if (step == leaf) {
        end_leaf(at, leaf);
      } else {
        std::memcpy(leaf_ + filled_, at, step);
        filled_ += step;
        if (filled_ == leaf) end_leaf(leaf_, leaf);
      }
      at += step;
      bytes -= step;
    }
  }
  std::uint64_t progress() const noexcept { return progress_; }
  bool complete() const noexcept { return checksums_.size() == parts_.size(); }
  std::span<const std::uint64_t> checksums() const noexcept { return checksums_; }  // of the parts that are whole

 private:
  void end_leaf(const std::uint8_t* leaf, std::size_t bytes) noexcept {
    fold_.add(xxh3(leaf, bytes));
    filled_ = 0;
    part_done_ += bytes;
    if (part_done_ < parts_[checksums_.size()]) return;
    checksums_.push_back(fold_.finish());
    part_done_ = 0;
  }

  std::span<const std::uint32_t> parts_;
  std::vector<std::uint64_t> checksums_;
  std::uint64_t progress_ = 0;
  std::size_t part_done_ = 0;  // of the current part, whole leaves
  std::size_t filled_ = 0;     // of the leaf that is begun
  LeafFold fold_;
  std::uint8_t leaf_[kLeafBytes];
};

}  // namespace kvstore::door
