#include "keys.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace kvstore {
namespace {

static_assert(std::endian::native == std::endian::little, "tokens are hashed as they lie in memory");

constexpr std::uint8_t kTokensTag[4] = {'k', 'v', 'k', '1'};
constexpr std::uint8_t kHashTag[4] = {'k', 'v', 'h', '1'};
constexpr std::size_t kParentAt = 4, kCountAt = 36, kBodyAt = 40;

void put_u32(std::uint8_t* at, std::size_t value) noexcept {
  const auto small = static_cast<std::uint32_t>(value);
  std::memcpy(at, &small, 4);
}

}  // namespace

void chain_keys(const Digest& parent, std::span<const std::uint32_t> tokens, std::uint32_t block_tokens,
                std::span<const BlockExtras> extras, std::span<Digest> out) {
  const std::size_t token_bytes = std::size_t{block_tokens} * 4;
  const std::size_t extras_at = kBodyAt + token_bytes + 4;
  // One message for all blocks, and one pass of SHA-256 over it: cheaper than four small updates.
  std::vector<std::uint8_t> message(extras_at + kExtrasBytesMax);
  std::memcpy(message.data(), kTokensTag, 4);
  put_u32(message.data() + kCountAt, block_tokens);
  const Digest* before = &parent;
  std::size_t next = 0;
  for (std::size_t block = 0; block < out.size(); ++block) {
    std::memcpy(message.data() + kParentAt, before->data(), 32);
    std::memcpy(message.data() + kBodyAt, tokens.data() + block * block_tokens, token_bytes);
    std::span<const std::uint8_t> more;
    if (next < extras.size() && extras[next].block == block) more = extras[next++].bytes;
    put_u32(message.data() + extras_at - 4, more.size());
    if (!more.empty()) std::memcpy(message.data() + extras_at, more.data(), more.size());
    out[block] = sha256(message.data(), extras_at + more.size());
    before = &out[block];
  }
}

void chain_keys_of_hashes(const Digest& parent, std::span<const std::span<const std::uint8_t>> hashes,
                          std::span<Digest> out) noexcept {
  std::uint8_t message[kBodyAt + kEngineHashBytesMax];
  std::memcpy(message, kHashTag, 4);
  const Digest* before = &parent;
  for (std::size_t block = 0; block < hashes.size(); ++block) {
    std::memcpy(message + kParentAt, before->data(), 32);
    put_u32(message + kCountAt, hashes[block].size());
    std::memcpy(message + kBodyAt, hashes[block].data(), hashes[block].size());
    out[block] = sha256(message, kBodyAt + hashes[block].size());
    before = &out[block];
  }
}

}  // namespace kvstore
