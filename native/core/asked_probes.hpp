// Which holes of which chains were asked about lately, so that a lookup which misses the same block a thousand times makes
// one probe. Forgets what lands on the same place; then a probe is asked for twice, which its owner may drop.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "types.hpp"

namespace kvstore {

class AskedProbes {
 public:
  // False: asked already.
  bool ask(NsId ns, std::uint16_t shard, const Key& hole) noexcept {
    const std::uint64_t print = hole.word(2) ^ (std::uint64_t{ns} * 0x9e3779b97f4a7c15ull) ^
                                ((std::uint64_t{shard} + 1) * 0xc2b2ae3d27d4eb4full);
    std::uint64_t& cell = cells_[print % kCells];
    if (cell == (print | 1)) return false;
    cell = print | 1;
    return true;
  }
  void forget() noexcept { cells_.fill(0); }

 private:
  static constexpr std::size_t kCells = 8192;
  std::array<std::uint64_t, kCells> cells_{};  // 0: empty
};

}  // namespace kvstore
