// Which nodes keep a key's claims: rendezvous hashing, the same on every node of a cluster.
//
// Rules
// - A node's weight for something is hash(thing ^ node); the highest wins. When a node comes or goes only the keys it wins
//   or had won move. Ties go to the node that comes first, so callers give nodes in one order (by id).
// - Nobody's seed is in it: every node must come to the same answer. Keys are of a chain seeded by the cluster's secret, so a
//   client cannot aim them at one home.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace kvstore {

inline constexpr std::int32_t kNoHome = -1;

inline std::uint64_t mixed(std::uint64_t word) noexcept {  // the finalizer of MurmurHash3
  word ^= word >> 33;
  word *= 0xff51afd7ed558ccdull;
  word ^= word >> 33;
  word *= 0xc4ceb9fe1a85ec53ull;
  return word ^ word >> 33;
}

// The first 16 bytes of a key, which is all that a claim keeps of it.
struct ShortKey {
  std::uint64_t low = 0, high = 0;
  friend bool operator==(const ShortKey&, const ShortKey&) = default;
  static ShortKey at(const std::uint8_t* bytes) noexcept {
    ShortKey key;
    std::memcpy(&key, bytes, sizeof key);
    return key;
  }
  std::uint64_t hash() const noexcept { return mixed(low ^ mixed(high + 0x9e3779b97f4a7c15ull)); }
};
static_assert(sizeof(ShortKey) == 16);

// Keys of 16 or 32 bytes, one behind the other.
struct KeyRows {
  const std::uint8_t* data = nullptr;
  std::size_t count = 0;
  std::size_t stride = 16;
  ShortKey operator[](std::size_t i) const noexcept { return ShortKey::at(data + i * stride); }
};

// Of anything of 16 bytes or more (a node id, a namespace's digest): its first 16 bytes hashed.
inline std::uint64_t name_hash(std::span<const std::uint8_t> bytes) noexcept { return ShortKey::at(bytes.data()).hash(); }

// The places of the `width` nodes with the highest weights for `thing`, ascending.
std::vector<std::uint32_t> highest(std::uint64_t thing, std::span<const std::uint64_t> nodes, std::size_t width);
// The places of each key's home and second home among `nodes`; kNoHome where there is none.
void homes_of(const KeyRows& keys, std::span<const std::uint64_t> nodes, std::span<std::int32_t> first, std::span<std::int32_t> second);

}  // namespace kvstore
