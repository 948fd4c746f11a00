// Least recently used, leaves first.
//
// Rules
// - A batch is one touch: a get or put of a prompt. Everything in it has the same stamp, the batch's number. The order is
//   by stamp; within a stamp the deeper goes first, so that a chain leaves leaf by leaf and is never cut in the middle.
// - Only an id without children is a candidate. When its last child goes, a parent becomes one with the stamp it has.
// - Candidates of one stamp are a stack in a ring of stacks over the stamps of late (the window) and a little way ahead.
//   What falls out of the window moves, in order, to the warm end of one list, `old`. So every verb is O(1), and the order
//   is exact: the one approximation is a place in `old` further than kOldSteps from its cold end.
// - Hints shift a stamp by parts of the present span (from the coldest candidate to now), and never beyond it: they say
//   what is likely, and the next touch overrules them.
//     end              half a span colder, for the tail of the chain that this session has to itself; others' blocks in
//                      the chain are touched as ever
//     priority         an eighth of the span a step, at most half
//     expected return  warmer by as many touches as the return is away, at most one span
// - An id that victims() was refused is set aside and keeps its stamp; released() gives it its place back.
// - Parents are named by id and generation. A generation changes when an id leaves while it has children, so that they do
//   not count for whoever has the id next.
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "lazy_array.hpp"
#include "policy_impl.hpp"
#include "stamp_ring.hpp"

namespace kvstore {
namespace {

constexpr std::uint32_t kNone = 0;  // links hold id + 1
constexpr std::uint16_t kGenerationMask = 0x1fff;
constexpr std::int64_t kPrioritySteps = 8, kPriorityStepsMax = 4;

class LeafLru final : public Policy {
 public:
  explicit LeafLru(std::size_t ids_max) : nodes_(ids_max), ring_(nodes_, ids_max) {}

  void added(SlotId id, SlotId parent, std::uint64_t, const Hint& hint) override {
    Node& node = nodes_[id];
    if (node.place != Place::kAbsent) {
      if (!descends(parent, id)) give_parent(id, parent);
      return;
    }
    ++size_;
    node.stamp = ring_.now() + static_cast<std::uint32_t>(shift(hint, true));
    node.parent = kNone;
    ring_.insert(id);
    give_parent(id, parent);
  }

  void touched(std::span<const SlotId> chain, const Hint& hint) override {
    ring_.advance();
    const std::size_t own = hint.end ? own_tail(chain) : chain.size();
    const std::uint32_t shared_stamp = ring_.now() + static_cast<std::uint32_t>(shift(hint, false));
    const std::uint32_t own_stamp = ring_.now() + static_cast<std::uint32_t>(shift(hint, true));
    for (std::size_t i = 0; i < chain.size(); ++i) {
      if (i + 8 < chain.size()) __builtin_prefetch(&nodes_[chain[i + 8]]);
      touch(chain[i], i >= own ? own_stamp : shared_stamp);
    }
  }

  void removed(SlotId id) override {
    Node& node = nodes_[id];
    if (node.place == Place::kAbsent) return;
    leave_parent(id);
    if (ring_.lists(id)) ring_.remove(id);
    if (node.place == Place::kInterior) {
      node.generation = (node.generation + 1) & kGenerationMask;
      if (node.generation == 0) orphan_all_of(id);
    }
    node.place = Place::kAbsent;
    --size_;
  }

  std::size_t victims(std::span<SlotId> out, const std::function<bool(SlotId)>& usable) override;

  void released(SlotId id) override {
    if (nodes_[id].place == Place::kAside) ring_.insert(id);
  }

  std::string_view name() const override { return "leaf_lru"; }
  std::string parameters() const override {
    return "end=-1/2 span priority=1/8 span a step return<=1 span window=" + std::to_string(ring_.window());
  }
  std::size_t size() const override { return size_; }
  std::size_t memory_bytes() const override { return size_ * sizeof(Node) + ring_.memory_bytes(); }
  void check_integrity() const override;

 private:
  void touch(SlotId id, std::uint32_t stamp) {
    Node& node = nodes_[id];
    if (!ring_.lists(id)) {
      if (node.place != Place::kAbsent) node.stamp = stamp;
      return;
    }
    ring_.remove(id);
    node.stamp = stamp;
    ring_.insert(id);
  }

  // Where the tail begins that nobody else's chain runs through: each block there has one child at most, the next.
  std::size_t own_tail(std::span<const SlotId> chain) const {
    std::size_t from = chain.size();
    while (from > 0) {
      const Node& node = nodes_[chain[from - 1]];
      const std::uint32_t children = node.place == Place::kInterior ? node.next : 0;
      if (children > (from == chain.size() ? 0u : 1u)) break;
      --from;
    }
    return from;
  }

  std::int64_t shift(const Hint& hint, bool own) const {
    if (!(hint.end && own) && hint.priority == 0 && hint.return_touches == 0) return 0;
    const std::int64_t span = ring_.span();
    const std::int64_t steps = std::clamp<std::int64_t>(hint.priority, -kPriorityStepsMax, kPriorityStepsMax);
    std::int64_t by = span * steps / kPrioritySteps;
    if (hint.end && own) by -= span / 2;
    if (!hint.end) by += std::min<std::int64_t>(hint.return_touches, span);
    // Never the first to go: a hinted stamp stays inside the span, past its coldest quarter.
    return std::clamp<std::int64_t>(by, -(span - span / 4), std::min<std::int64_t>(span, ring_.ahead_max()));
  }

  bool child_of(const Node& child, SlotId parent) const {
    return child.parent == parent + 1 && child.parent_generation == nodes_[parent].generation &&
           nodes_[parent].place == Place::kInterior;
  }
  SlotId parent_of(SlotId id) const {  // kNoSlot: none that still counts it
    const Node& node = nodes_[id];
    return node.parent != kNone && child_of(node, node.parent - 1) ? node.parent - 1 : kNoSlot;
  }

  // Whether `id` is in the chain that ends with `leaf`. Keys of an engine's own may name each other in a circle, and a
  // circle would never have a leaf; a chain too long to walk is taken for one.
  bool descends(SlotId leaf, SlotId id) const {
    constexpr int kStepsMax = 1 << 16;
    if (nodes_[id].place != Place::kInterior) return leaf == id;
    SlotId at = leaf;
    for (int step = 0; step < kStepsMax && at != kNoSlot; ++step) {
      if (at == id) return true;
      at = parent_of(at);
    }
    return at != kNoSlot;
  }

  void give_parent(SlotId id, SlotId parent) {
    Node& node = nodes_[id];
    if (parent == parent_of(id) || parent == id) return;
    leave_parent(id);
    if (parent == kNoSlot || nodes_[parent].place == Place::kAbsent) return;
    Node& above = nodes_[parent];
    node.parent = parent + 1;
    node.parent_generation = above.generation;
    if (above.place == Place::kInterior) {
      ++above.next;
      return;
    }
    if (ring_.lists(parent)) ring_.remove(parent);
    above.place = Place::kInterior;
    above.next = 1;
  }

  void leave_parent(SlotId id) {
    const SlotId parent = parent_of(id);
    nodes_[id].parent = kNone;
    if (parent == kNoSlot || --nodes_[parent].next > 0) return;
    ring_.insert(parent);
  }

  // A generation came round: nobody may be left that still names the first of its name. Once in 8,192 of such leaves.
  void orphan_all_of(SlotId id) {
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      if (nodes_[i].parent == id + 1) nodes_[i].parent = kNone;
    }
  }

  LazyArray<Node> nodes_;
  StampRing ring_;
  std::size_t size_ = 0;
};

// Many at once means foreseeing which parents become candidates when these are gone: they are kept in `risen`, a heap by
// stamp, and go before a listed candidate of the same stamp, as they would if the caller removed one after the other.
std::size_t LeafLru::victims(std::span<SlotId> out, const std::function<bool(SlotId)>& usable) {
  std::unordered_map<SlotId, std::uint32_t> gone;  // children foreseen to be gone, by parent
  struct Risen {
    SlotId id;
    std::uint32_t stamp, order;
  };
  std::vector<Risen> risen;  // of one stamp the last to rise goes first
  const auto warmer = [](const Risen& a, const Risen& b) {
    return a.stamp == b.stamp ? a.order < b.order : StampRing::colder(b.stamp, a.stamp);
  };
  std::uint32_t order = 0;
  std::size_t count = 0;
  SlotId listed = ring_.coldest();
  while (count < out.size() && (listed != kNoSlot || !risen.empty())) {
    SlotId id = listed;
    const bool from_risen =
        !risen.empty() && (listed == kNoSlot || !StampRing::colder(nodes_[listed].stamp, risen.front().stamp));
    if (from_risen) {
      id = risen.front().id;
      std::pop_heap(risen.begin(), risen.end(), warmer);
      risen.pop_back();
      if (!usable(id)) continue;
    } else {
      listed = ring_.next_warmer(id);
      if (!usable(id)) {
        ring_.remove(id);
        nodes_[id].place = Place::kAside;
        continue;
      }
    }
    out[count++] = id;
    if (count == out.size()) break;
    const SlotId parent = parent_of(id);
    if (parent != kNoSlot && ++gone[parent] == nodes_[parent].next) {
      risen.push_back({parent, nodes_[parent].stamp, order++});
      std::push_heap(risen.begin(), risen.end(), warmer);
    }
  }
  return count;
}

void LeafLru::check_integrity() const {
  const auto fail = [](const std::string& what) { throw std::logic_error("leaf_lru: " + what); };
  std::vector<std::uint32_t> children(nodes_.size(), 0);
  std::size_t present = 0, listed = 0;
  for (SlotId id = 0; id < nodes_.size(); ++id) {
    if (nodes_[id].place == Place::kAbsent) continue;
    ++present;
    if (ring_.lists(id)) ++listed;
    const SlotId parent = parent_of(id);
    if (parent != kNoSlot) ++children[parent];
  }
  for (SlotId id = 0; id < nodes_.size(); ++id) {
    const bool interior = nodes_[id].place == Place::kInterior;
    if (interior != (children[id] > 0)) fail("an id with children is a candidate, or one without is not");
    if (interior && nodes_[id].next != children[id]) fail("children do not add up");
  }
  if (present != size_) fail("ids do not add up");
  ring_.check_integrity(listed);
}

}  // namespace

std::unique_ptr<Policy> make_leaf_lru(std::size_t ids_max) { return std::make_unique<LeafLru>(ids_max); }

}  // namespace kvstore
