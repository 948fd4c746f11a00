// The claims that a home keeps, as two threads have them: Python's, which is told what nodes hold, and the door's, which answers
// other nodes' PEER_LOCATE from them without waking Python. A lookup asks several homes at once, so that is most of its cost.
//
// Rules
// - One lock around the table, held for one batch.
// - answer() says what Python's own path would say (kvstore/directory/claims.py, kvstore/wire/claims.py), or nothing: whatever is
//   unusual in a question is Python's, which names what is wrong with it and passes over fields that it does not know.
// - It answers only before `until`, which Python moves on at each of its ticks. So who was stopped and wakes up answers nobody
//   before it has looked whether it was.
// - Who asks has introduced himself as a node: that is the door's to know.
#pragma once
#include <mutex>
#include <optional>

#include "base/clock.hpp"
#include "claims.hpp"

namespace kvstore {

// A PeerLocateRequest, in place.
struct LocateQuestion {
  std::span<const std::uint8_t> ns, keys;
  std::uint32_t spread = 0;
};
// Nothing: not one of exactly these fields, or longer than a door's thread should take for it.
std::optional<LocateQuestion> read_question(std::span<const std::uint8_t> message) noexcept;

class ClaimsDesk {
 public:
  explicit ClaimsDesk(const ClaimConfig& config) : table_(config) {}

  // The table, for as long as `use` takes.
  template <class Use>
  auto with(Use&& use) {
    const std::lock_guard lock(mutex_);
    return use(table_);
  }

  using NodeId = std::array<std::uint8_t, 16>;
  void name(NodeNumber node, const NodeId& id);  // what answers say for its number, from now on
  // From now until the monotonic clock says `until`, by a view of which `view` is told. A past time: nobody is answered.
  void answer_until(std::int64_t until, std::uint64_t view, std::uint32_t holders_max);
  // Appends a PeerLocateResponse. False: it is Python's to answer, and nothing was appended.
  bool answer(std::span<const std::uint8_t> message, std::vector<std::uint8_t>& out);

 private:
  bool place(NodeNumber node, std::uint16_t& place);

  std::mutex mutex_;
  ClaimTable table_;
  std::vector<NodeId> ids_;  // by number; kNobody: not told
  std::int64_t until_ = 0;
  std::uint64_t view_ = 0;
  std::uint32_t holders_max_ = 0;

  Located located_;  // of the answer being made, as the rest
  std::vector<NodeNumber> named_;
  std::vector<std::uint16_t> places_;  // by number, of named_ + 1; 0: not named in it
};

}  // namespace kvstore
