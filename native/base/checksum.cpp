#include "checksum.hpp"

#include <bit>
#include <new>

#include "kernels.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace kvstore {

namespace kernels {
std::uint64_t xxh3_portable(const void* data, std::size_t bytes) noexcept { return XXH3_64bits(data, bytes); }
}  // namespace kernels

// Streamed digests are at most a few kilobytes a part, so the portable streaming form does.
static_assert(sizeof(XXH3_state_t) <= LeafFold::kStateBytes);
static_assert(alignof(XXH3_state_t) <= 64);

namespace {
XXH3_state_t* state_of(unsigned char* bytes) noexcept {
  return std::launder(reinterpret_cast<XXH3_state_t*>(bytes));
}

// Not inlined: with a known size of 8, gcc warns of branches for long inputs that are never taken.
[[gnu::noinline]] void update(XXH3_state_t* state, const unsigned char* data, std::size_t bytes) noexcept {
  XXH3_64bits_update(state, data, bytes);
}
}  // namespace

LeafFold::LeafFold() noexcept {
  auto* state = ::new (static_cast<void*>(state_)) XXH3_state_t;
  XXH3_INITSTATE(state);
  XXH3_64bits_reset(state);
}

void LeafFold::add(std::uint64_t leaf_digest) noexcept {
  unsigned char bytes[8];
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<unsigned char>(leaf_digest >> (8 * i));
  update(state_of(state_), bytes, sizeof bytes);
}

std::uint64_t LeafFold::finish() noexcept {
  XXH3_state_t* state = state_of(state_);
  const std::uint64_t digest = XXH3_64bits_digest(state);
  XXH3_64bits_reset(state);
  return digest;
}

std::uint64_t xxh3(const void* data, std::size_t bytes) noexcept { return kernels::chosen().xxh3(data, bytes); }

std::uint64_t part_checksum(const void* data, std::size_t bytes) noexcept {
  const auto hash = kernels::chosen().xxh3;
  const auto* from = static_cast<const unsigned char*>(data);
  LeafFold fold;
  for (std::size_t at = 0; at < bytes; at += kLeafBytes) {
    fold.add(hash(from + at, bytes - at < kLeafBytes ? bytes - at : kLeafBytes));
  }
  return fold.finish();
}

std::uint64_t combine_leaves(std::span<const std::uint64_t> leaf_digests) noexcept {
  // In memory they lie as the checksum wants them: one hash of the lot is an order cheaper than one update a leaf.
  if constexpr (std::endian::native == std::endian::little) return xxh3(leaf_digests.data(), leaf_digests.size_bytes());
  LeafFold fold;
  for (const std::uint64_t digest : leaf_digests) fold.add(digest);
  return fold.finish();
}

}  // namespace kvstore
