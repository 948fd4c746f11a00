#include "stamp_ring.hpp"

#include <algorithm>
#include <stdexcept>

namespace kvstore {
namespace {

constexpr std::size_t kSizeMin = 1024, kSizeMax = 1u << 22;
constexpr int kOldSteps = 64;

}  // namespace

std::size_t BitTree::next(std::size_t from) const noexcept {
  for (std::size_t level = 0; level < levels_.size(); ++level) {
    const auto& words = levels_[level];
    if (from / 64 >= words.size()) return kNone;
    const std::uint64_t rest = words[from / 64] >> (from % 64) << (from % 64);
    if (rest == 0) {
      from = from / 64 + 1;
      continue;
    }
    std::size_t at = from / 64 * 64 + static_cast<std::size_t>(std::countr_zero(rest));
    while (level-- > 0) at = at * 64 + static_cast<std::size_t>(std::countr_zero(levels_[level][at]));
    return at;
  }
  return kNone;
}

// A quarter as many stacks as ids: a byte an id. Batches average more than four blocks, so the window is longer than
// what is held; where it is not, `old` keeps the order.
StampRing::StampRing(LazyArray<Node>& nodes, std::size_t ids_max)
    : nodes_(nodes),
      size_(static_cast<std::uint32_t>(std::bit_ceil(std::clamp(ids_max / 4, kSizeMin, kSizeMax)))),
      heads_(size_),
      bits_(size_) {}

void StampRing::advance() {
  ++now_;
  const std::size_t recycled = bucket(now_ + size_ / 4);
  const std::uint32_t head = heads_[recycled];
  if (head == 0) return;
  heads_[recycled] = 0;
  bits_.clear(recycled);
  nodes_[head - 1].prev = old_tail_;
  (old_tail_ != 0 ? nodes_[old_tail_ - 1].next : old_head_) = head;
  for (std::uint32_t at = head; at != 0; at = nodes_[at - 1].next) {
    nodes_[at - 1].place = Place::kOld;
    old_tail_ = at;
  }
}

void StampRing::link(SlotId id, std::uint32_t prev, std::uint32_t next) noexcept {
  nodes_[id].prev = prev;
  nodes_[id].next = next;
  if (prev != 0) nodes_[prev - 1].next = id + 1;
  if (next != 0) nodes_[next - 1].prev = id + 1;
}

void StampRing::insert(SlotId id) {
  Node& node = nodes_[id];
  const std::int64_t age = static_cast<std::int32_t>(now_ - node.stamp);
  if (age >= window() || age < -ahead_max()) return insert_old(id);
  std::uint32_t& head = heads_[bucket(node.stamp)];
  node.place = Place::kRing;
  link(id, 0, head);
  head = id + 1;
  bits_.set(bucket(node.stamp));
}

void StampRing::insert_old(SlotId id) {
  Node& node = nodes_[id];
  node.place = Place::kOld;
  std::uint32_t next = old_head_;
  if (old_tail_ != 0 && colder(nodes_[old_tail_ - 1].stamp, node.stamp)) next = 0;
  for (int step = 0; step < kOldSteps && next != 0 && colder(nodes_[next - 1].stamp, node.stamp); ++step) {
    next = nodes_[next - 1].next;
  }
  const std::uint32_t prev = next != 0 ? nodes_[next - 1].prev : old_tail_;
  link(id, prev, next);
  if (prev == 0) old_head_ = id + 1;
  if (next == 0) old_tail_ = id + 1;
}

void StampRing::remove(SlotId id) {
  const Node node = nodes_[id];
  if (node.prev != 0) nodes_[node.prev - 1].next = node.next;
  if (node.next != 0) nodes_[node.next - 1].prev = node.prev;
  if (node.place == Place::kOld) {
    if (node.prev == 0) old_head_ = node.next;
    if (node.next == 0) old_tail_ = node.prev;
  } else if (node.prev == 0) {
    heads_[bucket(node.stamp)] = node.next;
    if (node.next == 0) bits_.clear(bucket(node.stamp));
  }
}

SlotId StampRing::first_from(std::size_t from) const noexcept {
  // In ring order: [start, size) and then [0, start).
  const std::size_t start = oldest_bucket();
  std::size_t at = bits_.next(from);
  bool wrapped = from < start;
  if (at == BitTree::kNone && !wrapped) {
    at = bits_.next(0);
    wrapped = true;
  }
  if (at == BitTree::kNone || (wrapped && at >= start)) return kNoSlot;
  return heads_[at] - 1;
}

SlotId StampRing::coldest() const noexcept {
  return old_head_ != 0 ? old_head_ - 1 : first_from(oldest_bucket());
}

SlotId StampRing::next_warmer(SlotId id) const noexcept {
  const Node& node = nodes_[id];
  if (node.next != 0) return node.next - 1;
  const std::size_t start = oldest_bucket();
  if (node.place == Place::kOld) return first_from(start);
  const std::size_t after = (bucket(node.stamp) + 1) & (size_ - 1);
  return after == start ? kNoSlot : first_from(after);
}

std::int64_t StampRing::span() const noexcept {
  const SlotId first = coldest();
  if (first == kNoSlot) return 0;
  return std::max<std::int32_t>(0, static_cast<std::int32_t>(now_ - nodes_[first].stamp));
}

void StampRing::check_integrity(std::size_t listed) const {
  std::size_t count = 0;
  SlotId before = kNoSlot;
  for (SlotId id = coldest(); id != kNoSlot; id = next_warmer(id)) {
    if (++count > listed || !lists(id)) throw std::logic_error("leaf_lru: a list names what it should not");
    if (before != kNoSlot && nodes_[before].place == Place::kRing && colder(nodes_[id].stamp, nodes_[before].stamp)) {
      throw std::logic_error("leaf_lru: stamps out of order");
    }
    before = id;
  }
  if (count != listed) throw std::logic_error("leaf_lru: candidates do not add up");
}

}  // namespace kvstore
