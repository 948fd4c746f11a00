// The eviction order of one tier. A policy owns its order and nothing else: it knows ids, parents and hints, and
// neither bytes nor locks nor time. One algorithm a file (policy_leaf_lru.cpp, policy_s3_fifo.cpp).
//
// Rules
// - `id` is dense (an index); a policy may keep arrays by id.
// - touched() is given a chain prefix in chain order, once per get or put of a prompt; the leaf is colder than its parent.
// - victims are asked for, then removed by the caller with removed(); a policy never drops an id by itself.
// - a skipped victim (held, pinned, being written) keeps its place in the order and costs O(1) amortised: victims() sets
//   it aside once, and the caller says released() when it could go again. Nothing else brings it back but a touch's place.
// - touched() with an empty chain starts a new batch: what is added next is as recent as that.
#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "types.hpp"

namespace kvstore {

class Policy {
 public:
  virtual ~Policy() = default;
  // `parent` is the id of the preceding block of the chain in the same tier and shard, or kNoSlot.
  // `ghost` identifies the content, so that a policy with memory knows one it evicted before.
  // An id that is there already is only given its parent anew (a hole of its chain was filled).
  virtual void added(SlotId id, SlotId parent, std::uint64_t ghost, const Hint& hint) = 0;
  virtual void touched(std::span<const SlotId> chain, const Hint& hint) = 0;
  virtual void removed(SlotId id) = 0;
  // Writes up to out.size() ids in the order they should go, passing over those `usable` refuses. Returns how many.
  virtual std::size_t victims(std::span<SlotId> out, const std::function<bool(SlotId)>& usable) = 0;
  // An id that victims() was refused may go again. No-op for any other.
  virtual void released(SlotId id) = 0;
  virtual std::string_view name() const = 0;
  // How it was set up, for people: "small=10% ghost=90% promote_after=2".
  virtual std::string parameters() const = 0;
  // Throws std::logic_error naming what does not add up. Walks everything.
  virtual void check_integrity() const = 0;
  virtual std::size_t size() const = 0;
  // Heap bytes, for the memory row of the benchmark.
  virtual std::size_t memory_bytes() const = 0;
};

// name: "leaf_lru" or "s3_fifo"; `ids_max` bounds ids. Throws std::invalid_argument for another name.
std::unique_ptr<Policy> make_policy(std::string_view name, std::size_t ids_max);

}  // namespace kvstore
