// Which slot has this name: open addressing, 8 bytes a bucket, ordered by tag within a run.
//
// Rules
// - A bucket is a 32-bit tag (the upper half of the name's hash) above slot + 1; zero is empty. Names are not kept here:
//   the caller compares them in the entry, so a tag that collides costs one more look and never an answer.
// - A tag's home is its place in proportion (tag * capacity / 2^32), so buckets are sorted by tag as a whole and a search
//   stops at the first greater tag. Growing is one pass in order and reads no entry.
// - Shards of a block are names of their own. A chain of shards would cost a dependent miss each; probing one more name
//   costs the same miss and can be prefetched.
#pragma once
#include <cstddef>
#include <cstdint>

#include "lazy_array.hpp"
#include "types.hpp"

namespace kvstore {

class Index {
 public:
  // `items_max` bounds growth: never more buckets than it needs.
  explicit Index(std::size_t items_max);

  void insert(std::uint32_t tag, SlotId slot);
  bool erase(std::uint32_t tag, SlotId slot);  // false: not there
  void prefetch(std::uint32_t tag) const noexcept { __builtin_prefetch(&buckets_[home(tag)]); }

  // The slot with this tag for which same(slot) holds, or kNoSlot.
  template <class Same>
  SlotId find(std::uint32_t tag, Same&& same) const {
    for (std::size_t i = home(tag);; ++i) {
      const std::uint64_t bucket = buckets_[i];
      if (bucket == 0 || tag_of(bucket) > tag) return kNoSlot;
      if (tag_of(bucket) == tag && same(slot_of(bucket))) return slot_of(bucket);
    }
  }
  // The first slot with this tag, uncompared: what is worth prefetching.
  SlotId candidate(std::uint32_t tag) const noexcept {
    for (std::size_t i = home(tag);; ++i) {
      const std::uint64_t bucket = buckets_[i];
      if (bucket == 0 || tag_of(bucket) > tag) return kNoSlot;
      if (tag_of(bucket) == tag) return slot_of(bucket);
    }
  }

  // Every slot with a tag from `first` to `last`, until visit(slot) says false.
  template <class Visit>
  void each(std::uint32_t first, std::uint32_t last, Visit&& visit) const {
    const std::size_t end = home(last);
    for (std::size_t i = home(first);; ++i) {
      const std::uint64_t bucket = buckets_[i];
      if (bucket == 0) {
        if (i >= end) return;
      } else if (tag_of(bucket) > last || (tag_of(bucket) >= first && !visit(slot_of(bucket)))) {
        return;
      }
    }
  }

  std::size_t size() const noexcept { return size_; }
  std::size_t memory_bytes() const noexcept { return buckets_.bytes(); }
  // Throws std::logic_error where order, homes or the count are broken.
  void check_integrity() const;

 private:
  static std::uint32_t tag_of(std::uint64_t bucket) noexcept { return static_cast<std::uint32_t>(bucket >> 32); }
  static SlotId slot_of(std::uint64_t bucket) noexcept { return static_cast<SlotId>(bucket) - 1; }
  std::size_t home(std::uint32_t tag) const noexcept {
    return static_cast<std::size_t>((static_cast<std::uint64_t>(tag) * homes_) >> 32);  // homes_ < 2^32
  }
  void rebuild(std::size_t homes, std::size_t tail);

  LazyArray<std::uint64_t> buckets_;  // homes_ + a tail for runs that end past the last home; its end stays empty
  std::size_t homes_ = 0;
  std::size_t size_ = 0;
  std::size_t items_max_;
};

}  // namespace kvstore
