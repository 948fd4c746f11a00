#include "index.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace kvstore {
namespace {

// Full at 9 of 10: a search then looks at about five buckets beyond its home, within one or two cache lines. Growing by
// a quarter keeps the cost of memory between 8.9 and 11.1 bytes an item.
constexpr std::size_t kHomesMin = 1024;
constexpr std::size_t kTail = 256;
constexpr std::size_t load_max(std::size_t homes) { return homes / 10 * 9; }
constexpr std::size_t homes_for(std::size_t items) { return items / 9 * 10 + 20; }

}  // namespace

Index::Index(std::size_t items_max) : items_max_(items_max) {
  homes_ = std::min(kHomesMin, homes_for(items_max));
  buckets_ = LazyArray<std::uint64_t>(homes_ + kTail);
}

void Index::rebuild(std::size_t homes, std::size_t tail) {
  // Sorted in, sorted out: each goes to its home or right behind its forerunner.
  const LazyArray<std::uint64_t> old = std::move(buckets_);
  for (;; tail *= 2) {
    homes_ = homes;
    buckets_ = LazyArray<std::uint64_t>(homes + tail);
    std::size_t next = 0;
    bool fits = true;
    for (std::size_t i = 0; i < old.size() && fits; ++i) {
      if (old[i] == 0) continue;
      const std::size_t at = std::max(next, home(tag_of(old[i])));
      fits = at + 1 < buckets_.size();
      if (fits) buckets_[at] = old[i];
      next = at + 1;
    }
    if (fits) return;
  }
}

void Index::insert(std::uint32_t tag, SlotId slot) {
  if (size_ >= load_max(homes_)) {
    const std::size_t wanted = homes_ + homes_ / 4;
    rebuild(std::max(homes_ + 64, std::min(wanted, homes_for(items_max_))), kTail);
  }
  std::size_t at = home(tag);
  while (buckets_[at] != 0 && tag_of(buckets_[at]) <= tag) ++at;
  std::size_t end = at;
  while (buckets_[end] != 0) ++end;
  if (end + 1 >= buckets_.size()) {  // the last bucket must stay empty: it ends every search
    rebuild(homes_, 2 * (buckets_.size() - homes_));
    return insert(tag, slot);
  }
  std::memmove(&buckets_[at + 1], &buckets_[at], (end - at) * sizeof(std::uint64_t));
  buckets_[at] = static_cast<std::uint64_t>(tag) << 32 | (slot + 1);
  ++size_;
}

bool Index::erase(std::uint32_t tag, SlotId slot) {
  const std::uint64_t wanted = static_cast<std::uint64_t>(tag) << 32 | (slot + 1);
  std::size_t at = home(tag);
  while (buckets_[at] != wanted) {
    if (buckets_[at] == 0 || tag_of(buckets_[at]) > tag) return false;
    ++at;
  }
  std::size_t end = at + 1;
  while (buckets_[end] != 0 && home(tag_of(buckets_[end])) < end) ++end;
  std::memmove(&buckets_[at], &buckets_[at + 1], (end - 1 - at) * sizeof(std::uint64_t));
  buckets_[end - 1] = 0;
  --size_;
  return true;
}

void Index::check_integrity() const {
  std::size_t count = 0;
  std::uint32_t before = 0;
  for (std::size_t i = 0; i < buckets_.size(); ++i) {
    if (buckets_[i] == 0) continue;
    ++count;
    const std::uint32_t tag = tag_of(buckets_[i]);
    if (tag < before) throw std::logic_error("index: tags out of order");
    before = tag;
    const std::size_t from = home(tag);
    if (from > i) throw std::logic_error("index: an item before its home");
    for (std::size_t j = from; j < i; ++j) {
      if (buckets_[j] == 0) throw std::logic_error("index: a hole between an item and its home");
    }
  }
  if (count != size_) throw std::logic_error("index: items do not add up");
  if (buckets_[buckets_.size() - 1] != 0) throw std::logic_error("index: its end is not empty");
}

}  // namespace kvstore
