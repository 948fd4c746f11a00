#include "counters.hpp"

#include <algorithm>
#include <bit>

namespace kvstore {

void BlockCounts::add(const FetchedReport& report) noexcept {
  gets += report.blocks_asked != 0 ? 1 : 0;  // the later parts of a get by parts ask for no block again
  asked += report.blocks_asked;
  failed += report.blocks_failed;
  for (std::size_t tier = 1; tier < kTiers; ++tier) by_tier[tier] += report.blocks_by_tier[tier];
}

void Histogram::add(Nanos elapsed, std::uint64_t moved) noexcept {
  const auto us = static_cast<std::uint64_t>(std::max<Nanos>(elapsed, 0)) / 1'000;
  const auto bucket = static_cast<std::size_t>(std::bit_width(us));
  counts[std::min(bucket, kBuckets - 1)] += 1;
  sum_ns += static_cast<std::uint64_t>(std::max<Nanos>(elapsed, 0));
  bytes += moved;
}

bool FetchedReport::plausible() const noexcept {
  std::uint64_t parts = blocks_failed;
  for (std::size_t tier = 1; tier < kTiers; ++tier) parts += blocks_by_tier[tier];
  return parts <= blocks_asked && elapsed >= 0;
}

FamilyCounts& FamilyTable::row_of(const Id& id) {
  if (const auto known = where_.find(id); known != where_.end()) return rows_[known->second];
  if (rows_.size() < rows_max_) {
    where_.emplace(id, rows_.size());
    rows_.push_back({id.family, id.ns, {}, 0});
    return rows_.back();
  }
  const auto least = std::min_element(rows_.begin(), rows_.end(),
                                      [](const auto& a, const auto& b) { return a.blocks.asked < b.blocks.asked; });
  where_.erase({least->family, least->ns});
  where_.emplace(id, static_cast<std::size_t>(least - rows_.begin()));
  FamilyCounts fresh{id.family, id.ns, {}, least->blocks.asked};
  fresh.blocks.asked = least->blocks.asked;
  *least = fresh;
  return *least;
}

void FamilyTable::add(const FetchedReport& report) {
  if (rows_max_ == 0 || report.blocks_asked == 0) return;
  row_of({report.hint.family, report.ns}).blocks.add(report);
}

RateEstimate::RateEstimate() noexcept : bytes_per_ns_{0.0, 8.0, 1.0, 0.2} {}

void RateEstimate::observe(const FetchedReport& report) noexcept {
  constexpr std::uint64_t kTelling = 1 << 20;  // a small get is all latency
  if (report.bytes < kTelling || report.elapsed <= 0) return;
  std::size_t slowest = 0;
  for (std::size_t tier = 1; tier < kTiers; ++tier)
    if (report.blocks_by_tier[tier] > 0) slowest = tier;
  if (slowest == 0) return;
  const double seen = std::clamp(static_cast<double>(report.bytes) / static_cast<double>(report.elapsed), 1e-3, 1e3);
  bytes_per_ns_[slowest] += (seen - bytes_per_ns_[slowest]) / 8.0;
}

Nanos RateEstimate::estimate(const std::array<std::uint64_t, kTiers>& bytes_by_tier) const noexcept {
  double total = 0.0;
  for (std::size_t tier = 1; tier < kTiers; ++tier) total += static_cast<double>(bytes_by_tier[tier]) / bytes_per_ns_[tier];
  return static_cast<Nanos>(total);
}

}  // namespace kvstore
