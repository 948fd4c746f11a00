// Candidates in the order of their stamps: a ring of stacks over a window of stamps, and one list for what is older.
// Rules: policy_leaf_lru.cpp.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "lazy_array.hpp"
#include "types.hpp"

namespace kvstore {

enum class Place : std::uint16_t {
  kAbsent = 0,
  kInterior = 1,  // has children: no candidate; `next` counts them
  kAside = 2,     // refused by a caller, who will say released()
  kRing = 3,      // a candidate in the window
  kOld = 4,       // a candidate older than the window
};

struct Node {
  std::uint32_t parent;      // id + 1
  std::uint32_t prev, next;  // id + 1; prev is colder
  std::uint32_t stamp;
  std::uint16_t generation : 13;
  Place place : 3;
  std::uint16_t parent_generation;
};
static_assert(sizeof(Node) == 20);

// Bits with "the next one set, from here": 64 at a step, four levels for 16 million.
class BitTree {
 public:
  explicit BitTree(std::size_t bits) {
    do {
      bits = (bits + 63) / 64;
      levels_.emplace_back(bits);
    } while (bits > 1);
  }
  void set(std::size_t i) noexcept {
    for (auto& level : levels_) {
      level[i / 64] |= 1ull << (i % 64);
      i /= 64;
    }
  }
  void clear(std::size_t i) noexcept {
    for (auto& level : levels_) {
      if ((level[i / 64] &= ~(1ull << (i % 64))) != 0) return;
      i /= 64;
    }
  }
  static constexpr std::size_t kNone = ~std::size_t{0};
  std::size_t next(std::size_t from) const noexcept;  // the first set at or after `from`, or kNone
  std::size_t memory_bytes() const noexcept {
    std::size_t bytes = 0;
    for (const auto& level : levels_) bytes += level.size() * 8;
    return bytes;
  }

 private:
  std::vector<LazyArray<std::uint64_t>> levels_;
};

class StampRing {
 public:
  StampRing(LazyArray<Node>& nodes, std::size_t ids_max);

  std::uint32_t now() const noexcept { return now_; }
  void advance();
  void insert(SlotId id);  // at the cold end of its stamp's stack
  void remove(SlotId id);
  bool lists(SlotId id) const noexcept { return nodes_[id].place == Place::kRing || nodes_[id].place == Place::kOld; }
  SlotId coldest() const noexcept;
  SlotId next_warmer(SlotId id) const noexcept;
  // Stamps count modulo 2^32: right as long as two are less than 2^31 touches apart, and merely inexact beyond.
  static bool colder(std::uint32_t a, std::uint32_t b) noexcept { return static_cast<std::int32_t>(a - b) < 0; }
  std::int64_t span() const noexcept;  // from the coldest candidate to now, in touches
  std::int64_t ahead_max() const noexcept { return size_ / 4; }
  std::uint32_t window() const noexcept { return size_ - size_ / 4; }
  std::size_t memory_bytes() const noexcept { return heads_.bytes() + bits_.memory_bytes(); }
  void check_integrity(std::size_t listed) const;

 private:
  std::size_t bucket(std::uint32_t stamp) const noexcept { return stamp & (size_ - 1); }
  std::size_t oldest_bucket() const noexcept { return bucket(now_ + size_ / 4 + 1); }
  SlotId first_from(std::size_t from) const noexcept;
  void insert_old(SlotId id);
  void link(SlotId id, std::uint32_t prev, std::uint32_t next) noexcept;

  LazyArray<Node>& nodes_;
  std::uint32_t size_;  // a power of two: the window, and a quarter of it ahead
  std::uint32_t now_ = 0;
  LazyArray<std::uint32_t> heads_;  // id + 1 of each stack's cold end
  BitTree bits_;                    // stacks that are not empty
  std::uint32_t old_head_ = 0, old_tail_ = 0;
};

}  // namespace kvstore
