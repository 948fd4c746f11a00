// The last events of a node, for Watch. Bounded by count and by bytes of meta; a reader that is too slow sees a gap.
#pragma once
#include <deque>

#include "node_core.hpp"

namespace kvstore {

class EventRing {
 public:
  EventRing(std::size_t events_max, std::size_t meta_bytes_max) : events_max_(events_max), meta_bytes_max_(meta_bytes_max) {}
  void push(Event&& event) {
    event.sequence = ++sequence_;
    meta_bytes_ += event.meta.size();
    events_.push_back(std::move(event));
    while (events_.size() > events_max_ || meta_bytes_ > meta_bytes_max_) {
      meta_bytes_ -= events_.front().meta.size();
      events_.pop_front();
    }
  }
  std::uint64_t sequence() const noexcept { return sequence_; }
  std::vector<Event> since(std::uint64_t sequence, std::size_t max, bool& gap) const {
    const std::uint64_t first = sequence_ - events_.size() + 1;  // sequence of events_[0]
    gap = sequence + 1 < first || sequence > sequence_;
    const std::uint64_t from = gap ? first : sequence + 1;
    std::vector<Event> out;
    for (std::uint64_t at = from; at <= sequence_ && out.size() < max; ++at) out.push_back(events_[at - first]);
    return out;
  }
  // The same without copies: visit(event).
  template <class Visit>
  std::uint64_t each_since(std::uint64_t sequence, std::size_t max, bool& gap, Visit&& visit) const {
    const std::uint64_t first = sequence_ - events_.size() + 1;
    gap = sequence + 1 < first || sequence > sequence_;
    std::uint64_t at = gap ? first : sequence + 1;
    for (; at <= sequence_ && max > 0; ++at, --max) visit(events_[at - first]);
    return at - 1;
  }

 private:
  std::size_t events_max_, meta_bytes_max_;
  std::size_t meta_bytes_ = 0;
  std::uint64_t sequence_ = 0;
  std::deque<Event> events_;
};

}  // namespace kvstore
