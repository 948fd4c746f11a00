// What owners have at a table: holds of runs of slots, and reservations they write.
//
// Rules
// - A record belongs to one owner and ends by its number, by its owner's end, or by time. All three cost O(1) amortised.
// - A number is a place and a generation: it is never given twice, and a stale one finds nothing.
// - Deadlines lie in a heap that keeps ended records until they surface or outnumber the live ones.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "slot_table.hpp"
#include "types.hpp"

namespace kvstore {

// A hold of a run.
struct HoldBody {
  HoldKind kind = HoldKind::kLease;
  bool internal = false;  // a mover's: no time, no view
  bool counted = false;   // towards what its owner may hold open (OpenBytes)
  std::vector<SlotId> slots;
};

// What the counted holds of one owner keep from eviction: each slot once, however many of them have it.
class OpenBytes {
 public:
  // False: it would be more than `max`. Nothing has changed then.
  bool take(SlotId slot, std::uint64_t bytes, std::uint64_t max) {
    const auto known = uses_.find(slot);
    if (known != uses_.end()) {
      ++known->second;
      return true;
    }
    if (bytes > max || bytes_ > max - bytes) return false;
    uses_.emplace(slot, 1u);
    bytes_ += bytes;
    return true;
  }
  void give(SlotId slot, std::uint64_t bytes) {
    const auto known = uses_.find(slot);
    if (--known->second != 0) return;
    uses_.erase(known);
    bytes_ -= bytes;
  }
  bool empty() const noexcept { return uses_.empty(); }
  std::uint64_t bytes() const noexcept { return bytes_; }
  const std::unordered_map<SlotId, std::uint32_t>& uses() const noexcept { return uses_; }

 private:
  std::unordered_map<SlotId, std::uint32_t> uses_;
  std::uint64_t bytes_ = 0;
};

// A reservation, from its grant until its writer can do no more harm.
struct WriterBody {
  SlotId slot = kNoSlot;
  std::uint32_t tenancy = 0;
  std::uint32_t parts_ready = 0;
  bool in_place = false;  // the owner writes into the medium itself
  bool lapsed = false;    // quarantined: only the owner's word or end frees the slot
};

template <class Body>
class OwnedRecords {
 public:
  struct Record {
    OwnerId owner = 0;
    std::optional<Nanos> deadline;
    Body body;
  };

  std::uint64_t add(OwnerId owner, std::optional<Nanos> deadline, Body body) {
    const std::uint32_t at = fresh();
    Node& node = nodes_[at];
    node.record = {owner, deadline, std::move(body)};
    node.live = true;
    Owner& of = owners_[owner];
    std::uint32_t& head = of.head;
    ++of.records;
    node.prev = 0;
    node.next = head;
    if (head != 0) nodes_[head - 1].prev = at + 1;
    head = at + 1;
    ++live_;
    if (deadline) push({*deadline, at, node.generation});
    return id_of(at);
  }

  Record* find(std::uint64_t id) {
    const auto at = static_cast<std::uint32_t>(id) - 1;
    if (static_cast<std::uint32_t>(id) == 0 || at >= nodes_.size()) return nullptr;
    Node& node = nodes_[at];
    return node.live && node.generation == id >> 32 ? &node.record : nullptr;
  }
  // By place, for whoever keeps 32 bits of the number of a record that is known to live.
  std::uint64_t id_at(std::uint32_t place) const noexcept { return id_of(place); }
  const Record* peek(std::uint32_t place) const {
    return place < nodes_.size() && nodes_[place].live ? &nodes_[place].record : nullptr;
  }
  static std::uint32_t place_of(std::uint64_t id) noexcept { return static_cast<std::uint32_t>(id) - 1; }

  // Ends a record and hands out its body.
  Body remove(std::uint64_t id) {
    const std::uint32_t at = place_of(id);
    Node& node = nodes_[at];
    const auto owner = owners_.find(node.record.owner);
    (node.prev != 0 ? nodes_[node.prev - 1].next : owner->second.head) = node.next;
    if (node.next != 0) nodes_[node.next - 1].prev = node.prev;
    if (--owner->second.records == 0) owners_.erase(owner);
    if (node.record.deadline) ++stale_;
    node.live = false;
    ++node.generation;
    Body body = std::exchange(node.record.body, Body{});
    node.next = free_;
    free_ = at + 1;
    --live_;
    return body;
  }
  // Its time no longer counts; it stays until its owner ends it.
  void forget_deadline(std::uint64_t id) {
    Record& record = nodes_[place_of(id)].record;
    if (record.deadline) ++stale_;
    record.deadline.reset();
  }

  std::uint64_t first_of(OwnerId owner) const {  // 0: none
    const auto found = owners_.find(owner);
    return found == owners_.end() ? 0 : id_of(found->second.head - 1);
  }
  std::size_t count_of(OwnerId owner) const {
    const auto found = owners_.find(owner);
    return found == owners_.end() ? 0 : found->second.records;
  }
  // The earliest record whose time has come, or 0.
  std::uint64_t due(Nanos now) {
    settle();
    return !heap_.empty() && heap_.front().deadline <= now ? id_of(heap_.front().place) : 0;
  }
  std::optional<Nanos> next_deadline() {
    settle();
    return heap_.empty() ? std::nullopt : std::optional<Nanos>(heap_.front().deadline);
  }
  std::size_t size() const noexcept { return live_; }

  template <class Visit>
  void for_each(Visit&& visit) const {
    for (std::uint32_t at = 0; at < nodes_.size(); ++at) {
      if (nodes_[at].live) visit(id_of(at), nodes_[at].record);
    }
  }
  std::size_t memory_bytes() const noexcept {
    return nodes_.capacity() * sizeof(Node) + heap_.capacity() * sizeof(Timer);
  }

 private:
  struct Node {
    Record record;
    std::uint32_t generation = 1;
    std::uint32_t prev = 0, next = 0;  // place + 1
    bool live = false;
  };
  struct Timer {
    Nanos deadline;
    std::uint32_t place, generation;
  };
  static bool later(const Timer& a, const Timer& b) noexcept { return a.deadline > b.deadline; }
  std::uint64_t id_of(std::uint32_t at) const noexcept {
    return static_cast<std::uint64_t>(nodes_[at].generation) << 32 | (at + 1);
  }
  std::uint32_t fresh() {
    if (free_ == 0) {
      nodes_.emplace_back();
      return static_cast<std::uint32_t>(nodes_.size() - 1);
    }
    const std::uint32_t at = free_ - 1;
    free_ = nodes_[at].next;
    return at;
  }
  bool counts(const Timer& timer) const noexcept {
    const Node& node = nodes_[timer.place];
    return node.live && node.generation == timer.generation && node.record.deadline.has_value();
  }
  void push(const Timer& timer) {
    if (stale_ > 64 && stale_ > heap_.size() / 2) {
      std::erase_if(heap_, [this](const Timer& t) { return !counts(t); });
      std::make_heap(heap_.begin(), heap_.end(), later);
      stale_ = 0;
    }
    heap_.push_back(timer);
    std::push_heap(heap_.begin(), heap_.end(), later);
  }
  void settle() {
    while (!heap_.empty() && !counts(heap_.front())) {
      std::pop_heap(heap_.begin(), heap_.end(), later);
      heap_.pop_back();
      if (stale_ > 0) --stale_;
    }
  }

  std::vector<Node> nodes_;
  std::uint32_t free_ = 0;
  std::size_t live_ = 0, stale_ = 0;
  struct Owner {
    std::uint32_t head = 0, records = 0;  // its newest record, place + 1
  };
  std::unordered_map<OwnerId, Owner> owners_;
  std::vector<Timer> heap_;
};

using Holds = OwnedRecords<HoldBody>;
using Writers = OwnedRecords<WriterBody>;

}  // namespace kvstore
