// Payload checksums: XXH3-64 (seed 0) over the XXH3-64s of a part's 4 KiB leaves, little-endian, the last leaf short.
// An empty part's is XXH3-64 of nothing. Leaves make the checksum independent of who copied which piece, and when.
// They guard against corruption, not against an adversary: keys are SHA-256 (docs/format/keys.md).
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvstore {

inline constexpr std::size_t kLeafBytes = 4096;

std::uint64_t xxh3(const void* data, std::size_t bytes) noexcept;
std::uint64_t part_checksum(const void* data, std::size_t bytes) noexcept;
// A part's checksum from its leaves' digests, in order.
std::uint64_t combine_leaves(std::span<const std::uint64_t> leaf_digests) noexcept;

// Folds the digests of any number of leaves, in order, without keeping them. Not to be copied: it holds a hash in progress.
class LeafFold {
 public:
  static constexpr std::size_t kStateBytes = 576;  // XXH3's streaming state, which only checksum.cpp knows
  LeafFold() noexcept;
  LeafFold(const LeafFold&) = delete;
  LeafFold& operator=(const LeafFold&) = delete;
  void add(std::uint64_t leaf_digest) noexcept;
  std::uint64_t finish() noexcept;  // and start anew

 private:
  alignas(64) unsigned char state_[kStateBytes];
};

}  // namespace kvstore
