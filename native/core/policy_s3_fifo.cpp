// S3-FIFO (Yang et al., SOSP 2023): a small queue through which everything comes, a main one for what was asked for
// again, and a memory of what left the small one. It resists scans and knows nothing of chains.
//
// Rules
// - New ids enter `small`, or `main` if the ghosts know them. A touch counts up to 3.
// - The next to go comes from small while it has at least a tenth of all ids, else from main. From small an id touched
//   twice moves to main instead, its count forgotten; from main one touched at all goes round again with one less.
// - Hints: a touch of priority, or with a return expected, counts twice; of priority below zero, not at all. The end of a
//   session says nothing here: without chains its own blocks cannot be told from those it shares, and these must stay.
// - An id that leaves from small is remembered as a ghost: as many as nine tenths of the ids, first in, first out. A
//   ghost is 27 bits of its content's hash: a false one puts a block into the wrong queue, no more.
// - An id that victims() was refused leaves its queue's list, and has its place at the cold end again when released().
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "lazy_array.hpp"
#include "policy_impl.hpp"

namespace kvstore {
namespace {

constexpr std::size_t kSmallPart = 10, kGhostTenths = 9;  // a tenth; nine tenths
constexpr std::uint32_t kTouchesMax = 3, kPromoteAfter = 2;

enum Queue : std::uint32_t { kAbsent = 0, kSmall = 1, kMain = 2 };

struct Node {
  std::uint32_t prev, next;  // id + 1; prev is colder
  std::uint32_t ghost : 27;
  std::uint32_t queue : 2;
  std::uint32_t touches : 2;
  std::uint32_t aside : 1;
};
static_assert(sizeof(Node) == 12);

// What left lately: buckets of eight, each remembering when by a count of all that ever came.
class Ghosts {
 public:
  void add(std::uint32_t ghost, std::size_t limit) {
    limit_ = limit;
    if (wanted_buckets(limit) > buckets_.size()) grow(limit);
    put({ghost, ++clock_});
  }
  bool take(std::uint32_t ghost) {
    if (buckets_.empty()) return false;
    for (One& one : buckets_[bucket(ghost)].of) {
      if (one.when == 0 || one.ghost != ghost || stale(one)) continue;
      one = {};
      return true;
    }
    return false;
  }
  std::size_t memory_bytes() const noexcept { return buckets_.capacity() * sizeof(Bucket); }

 private:
  struct One {
    std::uint32_t ghost = 0, when = 0;  // when == 0: empty
  };
  struct Bucket {
    One of[8];
  };
  static std::size_t wanted_buckets(std::size_t limit) { return limit / 6 + 4; }
  std::size_t bucket(std::uint32_t ghost) const noexcept {
    return static_cast<std::size_t>((static_cast<std::uint64_t>(ghost * 0x9e3779b1u) * buckets_.size()) >> 32);
  }
  bool stale(const One& one) const noexcept { return clock_ - one.when >= limit_; }
  void put(One one) {
    Bucket& in = buckets_[bucket(one.ghost)];
    // An empty place, or the oldest's.
    One* oldest = std::min_element(std::begin(in.of), std::end(in.of), [this](const One& a, const One& b) {
      return (a.when == 0 ? 0xffffffffu : clock_ - a.when) > (b.when == 0 ? 0xffffffffu : clock_ - b.when);
    });
    *oldest = one;
  }
  void grow(std::size_t limit) {
    std::vector<Bucket> old(wanted_buckets(limit + limit / 4));
    old.swap(buckets_);
    for (const Bucket& from : old) {
      for (const One& one : from.of) {
        if (one.when != 0 && !stale(one)) put(one);
      }
    }
  }

  std::vector<Bucket> buckets_;
  std::uint32_t clock_ = 0;
  std::size_t limit_ = 0;
};

struct List {
  std::uint32_t head = 0, tail = 0;  // id + 1; head is the cold end
  std::size_t members = 0;           // with those set aside
};

class S3Fifo final : public Policy {
 public:
  explicit S3Fifo(std::size_t ids_max) : nodes_(ids_max) {}

  void added(SlotId id, SlotId, std::uint64_t ghost, const Hint&) override {
    Node& node = nodes_[id];
    if (node.queue != kAbsent) return;
    node.ghost = static_cast<std::uint32_t>(ghost >> 20) & 0x7ffffffu;
    node.touches = 0;
    node.aside = 0;
    node.queue = ghosts_.take(node.ghost) ? kMain : kSmall;
    ++of(id).members;
    push_warm(id);
  }

  void touched(std::span<const SlotId> chain, const Hint& hint) override {
    if (hint.priority < 0) return;
    const std::uint32_t worth = hint.priority > 0 || hint.return_touches > 0 ? 2 : 1;
    for (const SlotId id : chain) {
      const std::uint32_t touches = std::min(nodes_[id].touches + worth, kTouchesMax);
      nodes_[id].touches = touches & kTouchesMax;
    }
  }

  void removed(SlotId id) override {
    Node& node = nodes_[id];
    if (node.queue == kAbsent) return;
    if (node.queue == kSmall) ghosts_.add(node.ghost, size() * kGhostTenths / 10);
    if (node.aside == 0) unlink(id);
    --of(id).members;
    node.queue = kAbsent;
  }

  std::size_t victims(std::span<SlotId> out, const std::function<bool(SlotId)>& usable) override {
    std::size_t count = 0, from_small = 0;
    while (count < out.size()) {
      const bool small_is_due = (small_.members - from_small) * kSmallPart >= size() - count;
      List& queue = small_.head != 0 && (small_is_due || main_.head == 0) ? small_ : main_;
      if (queue.head == 0) break;
      const SlotId id = queue.head - 1;
      unlink(id);
      if (stays(id)) continue;
      if (!usable(id)) {
        nodes_[id].aside = 1;
        continue;
      }
      from_small += &queue == &small_ ? 1 : 0;
      out[count++] = id;
    }
    // They go when the caller removes them; until then they are the next.
    for (std::size_t i = count; i-- > 0;) push_cold(out[i]);
    return count;
  }

  void released(SlotId id) override {
    if (nodes_[id].queue == kAbsent || nodes_[id].aside == 0) return;
    nodes_[id].aside = 0;
    push_cold(id);
  }

  std::string_view name() const override { return "s3_fifo"; }
  std::string parameters() const override { return "small=10% ghosts=90% touches<=3 promote_after=2"; }
  std::size_t size() const override { return small_.members + main_.members; }
  std::size_t memory_bytes() const override { return size() * sizeof(Node) + ghosts_.memory_bytes(); }

  void check_integrity() const override {
    std::size_t listed = 0, aside = 0;
    for (const List* list : {&small_, &main_}) {
      std::uint32_t before = 0;
      for (std::uint32_t at = list->head; at != 0; at = nodes_[at - 1].next) {
        const Node& node = nodes_[at - 1];
        const bool right = node.queue == (list == &small_ ? kSmall : kMain) && node.aside == 0 && node.prev == before;
        if (!right || ++listed > size()) throw std::logic_error("s3_fifo: a broken list");
        before = at;
      }
      if (list->tail != before) throw std::logic_error("s3_fifo: a list that ends elsewhere");
    }
    for (std::size_t id = 0; id < nodes_.size(); ++id) {
      aside += nodes_[id].queue != kAbsent && nodes_[id].aside == 1 ? 1 : 0;
    }
    if (listed + aside != size()) throw std::logic_error("s3_fifo: ids do not add up");
  }

 private:
  List& of(SlotId id) { return nodes_[id].queue == kSmall ? small_ : main_; }

  // Whether an unlinked id has earned another round, and gives it that.
  bool stays(SlotId id) {
    Node& node = nodes_[id];
    if (node.queue == kSmall) {
      if (node.touches < kPromoteAfter) return false;
      --small_.members;
      ++main_.members;
      node.queue = kMain;
      node.touches = 0;
    } else {
      if (node.touches == 0) return false;
      --node.touches;
    }
    push_warm(id);
    return true;
  }

  void push_warm(SlotId id) {
    List& list = of(id);
    nodes_[id].prev = list.tail;
    nodes_[id].next = 0;
    (list.tail != 0 ? nodes_[list.tail - 1].next : list.head) = id + 1;
    list.tail = id + 1;
  }
  void push_cold(SlotId id) {
    List& list = of(id);
    nodes_[id].prev = 0;
    nodes_[id].next = list.head;
    (list.head != 0 ? nodes_[list.head - 1].prev : list.tail) = id + 1;
    list.head = id + 1;
  }
  void unlink(SlotId id) {
    const Node node = nodes_[id];
    List& list = of(id);
    (node.prev != 0 ? nodes_[node.prev - 1].next : list.head) = node.next;
    (node.next != 0 ? nodes_[node.next - 1].prev : list.tail) = node.prev;
  }

  LazyArray<Node> nodes_;
  List small_, main_;
  Ghosts ghosts_;
};

}  // namespace

std::unique_ptr<Policy> make_s3_fifo(std::size_t ids_max) { return std::make_unique<S3Fifo>(ids_max); }

}  // namespace kvstore
