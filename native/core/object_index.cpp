#include "object_index.hpp"

#include <algorithm>
#include <utility>

namespace kvstore {
namespace {
constexpr std::uint64_t kEmpty = 0, kRemoved = 1;
constexpr std::size_t kCellsMin = 64;
}  // namespace

ObjectIndex::ObjectIndex(std::size_t blocks_max) : half_max_(std::max<std::size_t>(blocks_max / 2, 1)) {}

// Keys are SHA-256 output, so any 8 bytes of one are well mixed; the multiplications spread the few bits of ns and shard.
std::uint64_t ObjectIndex::print_of(NsId ns, std::uint16_t shard, const Key& key) noexcept {
  const std::uint64_t print = key.word(1) ^ (std::uint64_t{ns} * 0x9e3779b97f4a7c15ull) ^
                              ((std::uint64_t{shard} + 1) * 0xc2b2ae3d27d4eb4full);
  return print > kRemoved ? print : print + 2;
}

std::size_t ObjectIndex::Half::find(std::uint64_t print) const noexcept {
  const std::size_t mask = cells.size() - 1;
  std::size_t at = print & mask;
  while (cells[at] != kEmpty && cells[at] != print) at = (at + 1) & mask;
  return at;
}

bool ObjectIndex::Half::has(std::uint64_t print) const noexcept { return !cells.empty() && cells[find(print)] == print; }

void ObjectIndex::Half::grow() {
  std::size_t size = kCellsMin;
  while (size < 4 * (used + 1)) size *= 2;
  const std::vector<std::uint64_t> before = std::exchange(cells, std::vector<std::uint64_t>(size, kEmpty));
  for (const std::uint64_t print : before)
    if (print > kRemoved) cells[find(print)] = print;
  touched = used;
}

void ObjectIndex::Half::add(std::uint64_t print) {
  if (cells.empty() || 2 * (touched + 1) > cells.size()) grow();
  std::uint64_t& cell = cells[find(print)];
  if (cell == print) return;
  cell = print;
  ++used;
  ++touched;
}

void ObjectIndex::Half::remove(std::uint64_t print) noexcept {
  if (!has(print)) return;
  cells[find(print)] = kRemoved;
  --used;
}

void ObjectIndex::add(NsId ns, std::uint16_t shard, std::span<const Key> keys) {
  for (const Key& key : keys) {
    const std::uint64_t print = print_of(ns, shard, key);
    if (young_.has(print)) continue;
    old_.remove(print);
    if (young_.used >= half_max_) {
      old_ = std::move(young_);
      young_ = Half{};
    }
    young_.add(print);
  }
}

void ObjectIndex::remove(NsId ns, std::uint16_t shard, std::span<const Key> keys) {
  for (const Key& key : keys) {
    young_.remove(print_of(ns, shard, key));
    old_.remove(print_of(ns, shard, key));
  }
}

bool ObjectIndex::has(NsId ns, std::uint16_t shard, const Key& key) const noexcept {
  const std::uint64_t print = print_of(ns, shard, key);
  return young_.has(print) || old_.has(print);
}

}  // namespace kvstore
