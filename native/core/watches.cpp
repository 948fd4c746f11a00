#include "watches.hpp"

#include <algorithm>

namespace kvstore {

std::uint64_t Watches::add(NsId ns, std::uint16_t shard, std::span<const Key> keys) {
  const std::uint64_t id = next_++;
  Watch watch{.ns = ns, .shard = shard, .keys = {}};
  watch.keys.reserve(keys.size());
  for (const Key& key : keys) {
    std::vector<std::uint64_t>& here = by_place_[{ns, shard, key}];
    if (!here.empty() && here.back() == id) continue;  // the same key twice
    here.push_back(id);
    watch.keys.push_back(key);
  }
  watches_.emplace(id, std::move(watch));
  return id;
}

void Watches::remove(std::uint64_t id) {
  const auto found = watches_.find(id);
  if (found == watches_.end()) return;
  const Watch& watch = found->second;
  for (const Key& key : watch.keys) {
    const auto here = by_place_.find({watch.ns, watch.shard, key});
    std::erase(here->second, id);
    if (here->second.empty()) by_place_.erase(here);
  }
  watches_.erase(found);
}

bool Watches::tell(std::uint64_t id, Watch& watch, bool abandoned) {
  watch.abandoned = watch.abandoned || abandoned;
  if (watch.told) return false;
  watch.told = true;
  told_.push_back(id);
  return true;
}

bool Watches::happened(NsId ns, std::uint16_t shard, const Key& key, bool abandoned) {
  if (watches_.empty()) return false;
  const auto here = by_place_.find({ns, shard, key});
  if (here == by_place_.end()) return false;
  bool woken = false;
  for (const std::uint64_t id : here->second) woken = tell(id, watches_.at(id), abandoned) || woken;
  return woken;
}

bool Watches::dropped(NsId ns) {
  std::vector<std::uint64_t> ids;
  for (const auto& [id, watch] : watches_)
    if (watch.ns == ns) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  bool woken = false;
  for (const std::uint64_t id : ids) woken = tell(id, watches_.at(id), true) || woken;
  return woken;
}

std::vector<Woken> Watches::take() {
  std::vector<Woken> out;
  for (const std::uint64_t id : told_) {
    const auto found = watches_.find(id);
    if (found == watches_.end()) continue;
    out.push_back({id, found->second.abandoned});
    found->second.told = found->second.abandoned = false;
  }
  told_.clear();
  return out;
}

}  // namespace kvstore
