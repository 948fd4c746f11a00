// Which blocks are known to lie in the object tier. A hint: a wrong answer costs a miss, so 64-bit fingerprints are enough.
//
// Rules
// - Bounded: two halves of `blocks_max / 2`. When the young half is full the old one is forgotten and the young becomes
//   old; what is asked for is moved to the young half by its caller's add(). Forgotten blocks are found again by probing.
// - No iteration, no ownership: where in which pack a block lies is the mover's to know.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "types.hpp"

namespace kvstore {

class ObjectIndex {
 public:
  explicit ObjectIndex(std::size_t blocks_max);
  void add(NsId ns, std::uint16_t shard, std::span<const Key> keys);
  void remove(NsId ns, std::uint16_t shard, std::span<const Key> keys);
  bool has(NsId ns, std::uint16_t shard, const Key& key) const noexcept;
  std::size_t size() const noexcept { return young_.used + old_.used; }
  std::size_t memory_bytes() const noexcept { return (young_.cells.capacity() + old_.cells.capacity()) * sizeof(std::uint64_t); }

 private:
  // Open addressing, at most half full. 0 is empty, 1 was removed.
  struct Half {
    std::vector<std::uint64_t> cells;
    std::size_t used = 0;     // live
    std::size_t touched = 0;  // live or removed
    std::size_t find(std::uint64_t print) const noexcept;  // its cell, or the empty one that ends the search
    bool has(std::uint64_t print) const noexcept;
    void add(std::uint64_t print);
    void remove(std::uint64_t print) noexcept;
    void grow();
  };
  static std::uint64_t print_of(NsId ns, std::uint16_t shard, const Key& key) noexcept;

  std::size_t half_max_;
  Half young_, old_;
};

}  // namespace kvstore
