// Fetches that wait for a promotion, and the keys they wait for.
//
// Rules
// - Decides nothing about tiers, holds nothing, calls nobody. Its owner (NodeCore) serialises.
// - A parked fetch is in `parked_`, in `by_deadline_` and under each key it misses in `wanted_`; it leaves all three at once.
// - A key is asked for once while fetches wait for it, and again only after `promote_retry` without news.
#pragma once
#include <map>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "block_place.hpp"
#include "node_core.hpp"

namespace kvstore {

struct Parked {
  FetchRequest request;
  std::vector<Key> keys;            // what can be had, cut to the window
  std::vector<std::uint8_t> tiers;  // where each was when it was asked for
  bool window_full = false;
  Nanos asked = 0;
  std::uint32_t attempts = 0;  // promotions it has waited for
  FetchDone done;
};

class ParkedFetches {
 public:
  // Parks, waiting for the keys of `missing` (indices into fetch.keys, at least one). Writes to `ask` the indices of those
  // that nobody has asked for lately.
  void park(Parked&& fetch, std::span<const std::uint32_t> missing, Nanos now, Nanos retry, std::vector<std::uint32_t>& ask);
  // These keys have ended: takes out the fetches that now wait for nothing any more.
  void settle(NsId ns, std::uint16_t shard, std::span<const Key> keys, std::vector<Parked>& out);
  void take_overdue(Nanos now, std::vector<Parked>& out);
  void take_owner(OwnerId owner, std::vector<Parked>& out);
  void take_namespace(NsId ns, std::vector<Parked>& out);
  std::optional<Nanos> next_deadline() const;
  std::size_t size() const noexcept { return parked_.size(); }

 private:
  using Id = std::uint64_t;
  struct Waiting {
    Parked fetch;
    std::vector<Key> missing;  // under which it was listed, each once
    std::size_t left = 0;      // of them, those that have not ended
  };
  struct Wanted {
    std::vector<Id> waiters;
    Nanos asked = 0;
  };
  Parked take(Id id);
  template <class Predicate>
  void take_if(const Predicate& predicate, std::vector<Parked>& out);

  std::unordered_map<Id, Waiting> parked_;
  std::multimap<Nanos, Id> by_deadline_;
  std::unordered_map<BlockPlace, Wanted, BlockPlaceHash> wanted_;
  Id next_ = 1;
};

}  // namespace kvstore
