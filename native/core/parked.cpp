#include "parked.hpp"

#include <algorithm>

namespace kvstore {

void ParkedFetches::park(Parked&& fetch, std::span<const std::uint32_t> missing, Nanos now, Nanos retry,
                         std::vector<std::uint32_t>& ask) {
  const Id id = next_++;
  Waiting waiting;
  waiting.missing.reserve(missing.size());
  for (const std::uint32_t index : missing) {
    const Key& key = fetch.keys[index];
    Wanted& wanted = wanted_[{fetch.request.ns, fetch.request.shard, key}];
    if (!wanted.waiters.empty() && wanted.waiters.back() == id) continue;  // the same key twice in one chain
    if (wanted.waiters.empty() || now - wanted.asked >= retry) {
      wanted.asked = now;
      ask.push_back(index);
    }
    wanted.waiters.push_back(id);
    waiting.missing.push_back(key);
  }
  by_deadline_.emplace(fetch.request.deadline, id);
  waiting.left = waiting.missing.size();
  waiting.fetch = std::move(fetch);
  parked_.emplace(id, std::move(waiting));
}

Parked ParkedFetches::take(Id id) {
  const auto found = parked_.find(id);
  Waiting waiting = std::move(found->second);
  parked_.erase(found);
  const FetchRequest& request = waiting.fetch.request;
  for (const Key& key : waiting.missing) {
    const auto wanted = wanted_.find({request.ns, request.shard, key});
    if (wanted == wanted_.end()) continue;
    std::erase(wanted->second.waiters, id);
    if (wanted->second.waiters.empty()) wanted_.erase(wanted);
  }
  auto [from, to] = by_deadline_.equal_range(request.deadline);
  for (; from != to; ++from)
    if (from->second == id) {
      by_deadline_.erase(from);
      break;
    }
  return std::move(waiting.fetch);
}

void ParkedFetches::settle(NsId ns, std::uint16_t shard, std::span<const Key> keys, std::vector<Parked>& out) {
  std::vector<Id> done;
  for (const Key& key : keys) {
    const auto wanted = wanted_.find({ns, shard, key});
    if (wanted == wanted_.end()) continue;
    for (const Id id : wanted->second.waiters) {
      if (--parked_.at(id).left == 0) done.push_back(id);
    }
    wanted_.erase(wanted);
  }
  for (const Id id : done) out.push_back(take(id));
}

void ParkedFetches::take_overdue(Nanos now, std::vector<Parked>& out) {
  while (!by_deadline_.empty() && by_deadline_.begin()->first <= now) out.push_back(take(by_deadline_.begin()->second));
}

template <class Predicate>
void ParkedFetches::take_if(const Predicate& predicate, std::vector<Parked>& out) {
  std::vector<Id> ids;
  for (const auto& [id, waiting] : parked_)
    if (predicate(waiting.fetch.request)) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  for (const Id id : ids) out.push_back(take(id));
}

void ParkedFetches::take_owner(OwnerId owner, std::vector<Parked>& out) {
  take_if([owner](const FetchRequest& request) { return request.owner == owner; }, out);
}

void ParkedFetches::take_namespace(NsId ns, std::vector<Parked>& out) {
  take_if([ns](const FetchRequest& request) { return request.ns == ns; }, out);
}

std::optional<Nanos> ParkedFetches::next_deadline() const {
  if (by_deadline_.empty()) return std::nullopt;
  return by_deadline_.begin()->first;
}

}  // namespace kvstore
