// Where blocks are, and the longest boundary that satisfies every need. Changes nothing but counters.
#include <algorithm>
#include <array>

#include "node_core_impl.hpp"

namespace kvstore {
namespace {

constexpr std::size_t kGroup = 64;  // keys probed at once: enough to hide memory latency, little wasted behind a hole

// For each block, how many consecutive ones that end with it are somewhere.
std::vector<std::uint32_t> run_lengths(std::span<const std::uint8_t> tiers) {
  std::vector<std::uint32_t> runs(tiers.size());
  std::uint32_t run = 0;
  for (std::size_t i = 0; i < tiers.size(); ++i) runs[i] = run = tiers[i] == 0 ? 0 : run + 1;
  return runs;
}

struct ShardView {
  std::vector<std::uint8_t> tiers;
  std::vector<std::uint32_t> runs;
};

bool holds_at(const Need& need, const ShardView& view, std::uint32_t boundary) {
  const std::uint32_t run = view.runs[boundary - 1];
  switch (need.kind) {
    case NeedKind::kAll: return run >= boundary;
    case NeedKind::kLast: return run >= std::min(need.blocks, boundary);
    case NeedKind::kState: return run >= 1;
  }
  return false;
}

// The blocks [first, boundary) of its shard that a need reads.
std::uint32_t first_read(const Need& need, std::uint32_t boundary) {
  switch (need.kind) {
    case NeedKind::kAll: return 0;
    case NeedKind::kLast: return boundary - std::min(need.blocks, boundary);
    case NeedKind::kState: return boundary - 1;
  }
  return boundary;
}

bool only_all_of_one(std::span<const Need> needs) { return needs.size() == 1 && needs[0].kind == NeedKind::kAll; }

}  // namespace

// The one place that says in which order tiers are asked: nearest first.
void NodeCore::Impl::probe_group(NsId ns, std::uint16_t shard, std::span<const Key> keys, std::uint8_t* tiers) const {
  std::array<Found, kGroup> found;
  memory.find(ns, shard, keys, std::span(found).first(keys.size()));
  bool all = true;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    tiers[i] = static_cast<std::uint8_t>(found[i].slot == kNoSlot ? Tier::kNone : Tier::kMemory);
    all = all && tiers[i] != 0;
  }
  if (all) return;
  if (file) {
    file->find(ns, shard, keys, std::span(found).first(keys.size()));
    for (std::size_t i = 0; i < keys.size(); ++i)
      if (tiers[i] == 0 && found[i].slot != kNoSlot) tiers[i] = static_cast<std::uint8_t>(Tier::kFile);
  }
  if (!object_answers || objects->size() == 0) return;
  for (std::size_t i = 0; i < keys.size(); ++i)
    if (tiers[i] == 0 && objects->has(ns, shard, keys[i])) tiers[i] = static_cast<std::uint8_t>(Tier::kObject);
}

bool NodeCore::Impl::probe(NsId ns, std::uint16_t shard, std::span<const Key> keys, std::vector<std::uint8_t>& tiers) const {
  while (tiers.size() < keys.size()) {
    const std::size_t from = tiers.size();
    const std::size_t count = std::min(kGroup, keys.size() - from);
    std::array<std::uint8_t, kGroup> group;
    probe_group(ns, shard, keys.subspan(from, count), group.data());
    const auto hole = std::find(group.begin(), group.begin() + count, std::uint8_t{0});
    tiers.insert(tiers.end(), group.begin(), hole);
    if (hole != group.begin() + static_cast<std::ptrdiff_t>(count)) return false;
  }
  return true;
}

void NodeCore::Impl::probe_all(NsId ns, std::uint16_t shard, std::span<const Key> keys,
                               std::vector<std::uint8_t>& tiers) const {
  tiers.resize(keys.size());
  for (std::size_t from = 0; from < keys.size(); from += kGroup) {
    const std::size_t count = std::min(kGroup, keys.size() - from);
    probe_group(ns, shard, keys.subspan(from, count), tiers.data() + from);
  }
}

namespace {

// The longest boundary at which all needs hold, and the slowest tier each block is read from.
void longest_boundary(std::span<const Need> needs, const std::vector<ShardView>& views, std::uint32_t limit,
                      LookupAnswer& out) {
  std::uint32_t boundary = limit;
  for (; boundary > 0; --boundary)
    if (std::all_of(needs.begin(), needs.end(), [&](const Need& need) { return holds_at(need, views[need.shard], boundary); }))
      break;
  out.blocks = boundary;
  out.tiers.assign(boundary, 0);
  for (const Need& need : needs)
    for (std::uint32_t i = first_read(need, boundary); i < boundary; ++i)
      out.tiers[i] = std::max(out.tiers[i], views[need.shard].tiers[i]);
}

}  // namespace

FetchStatus NodeCore::lookup(NsId ns, std::span<const Key> keys, std::span<const Need> needs, LookupAnswer& out) {
  static constexpr Need kWhole{};
  if (needs.empty()) needs = {&kWhole, 1};
  out.tiers.clear();
  out.blocks = 0;
  out.estimate = 0;
  std::lock_guard lock(impl_->mutex);
  for (const Need& need : needs)
    if (const auto status = impl_->check(ns, need.shard, keys.size()); status != FetchStatus::kOk) return status;
  Impl::Namespace& row = impl_->namespaces[ns];
  if (only_all_of_one(needs)) {
    impl_->probe(ns, needs[0].shard, keys, out.tiers);
    out.blocks = static_cast<std::uint32_t>(out.tiers.size());
    impl_->ask_probe(ns, needs[0].shard, keys.subspan(out.blocks), out.blocks, false);
  } else {
    // Any kAll bounds the rest, so that a short prefix is not paid for with a long probe.
    std::vector<ShardView> views(row.spec.shards.size());
    std::size_t limit = keys.size();
    for (const Need& need : needs) {
      std::vector<std::uint8_t>& tiers = views[need.shard].tiers;
      if (need.kind != NeedKind::kAll) continue;
      tiers.clear();
      impl_->probe(ns, need.shard, keys.first(limit), tiers);
      limit = tiers.size();
    }
    for (const Need& need : needs) {
      ShardView& view = views[need.shard];
      if (view.tiers.size() < limit) impl_->probe_all(ns, need.shard, keys.first(limit), view.tiers);
      if (view.runs.size() != view.tiers.size()) view.runs = run_lengths(view.tiers);
      const auto hole = std::find(view.tiers.begin(), view.tiers.end(), std::uint8_t{0});
      const auto at = static_cast<std::size_t>(hole - view.tiers.begin());
      impl_->ask_probe(ns, need.shard, keys.subspan(at), at, false);
    }
    longest_boundary(needs, views, static_cast<std::uint32_t>(limit), out);
  }
  std::array<std::uint64_t, kTiers> bytes{};
  std::uint64_t block_bytes = 0;
  for (const Need& need : needs) block_bytes += row.spec.shards[need.shard].bytes;
  for (const std::uint8_t tier : out.tiers) bytes[tier] += block_bytes;
  out.estimate = impl_->rates.estimate(bytes);
  impl_->counters.lookups += 1;
  impl_->counters.lookup_keys += keys.size();
  impl_->counters.lookup_found += out.blocks;
  row.counts.lookups += 1;
  row.counts.lookup_keys += keys.size();
  row.counts.lookup_found += out.blocks;
  return FetchStatus::kOk;
}

}  // namespace kvstore
