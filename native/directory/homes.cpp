#include "homes.hpp"

#include <algorithm>

namespace kvstore {

std::vector<std::uint32_t> highest(std::uint64_t thing, std::span<const std::uint64_t> nodes, std::size_t width) {
  std::vector<std::uint32_t> order(nodes.size());
  for (std::uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  const std::size_t count = std::min(width, nodes.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    const std::uint64_t left = mixed(thing ^ nodes[a]), right = mixed(thing ^ nodes[b]);
    return left != right ? left > right : a < b;
  });
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

void homes_of(const KeyRows& keys, std::span<const std::uint64_t> nodes, std::span<std::int32_t> first, std::span<std::int32_t> second) {
  for (std::size_t k = 0; k < keys.count; ++k) {
    const std::uint64_t hash = keys[k].hash();
    std::uint64_t best = 0, next = 0;
    std::int32_t home = kNoHome, other = kNoHome;
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      const std::uint64_t weight = mixed(hash ^ nodes[i]);
      if (home == kNoHome || weight > best) {
        next = best, other = home;
        best = weight, home = static_cast<std::int32_t>(i);
      } else if (other == kNoHome || weight > next) {
        next = weight, other = static_cast<std::int32_t>(i);
      }
    }
    first[k] = home;
    second[k] = other;
  }
}

}  // namespace kvstore
