// Chains of block keys. docs/format/keys.md says the same byte by byte; tests/golden/keys.json holds both to it.
//
// Rules
// - key[i] = SHA-256("kvk1" | key[i-1] | u32 block_tokens | tokens | u32 bytes of extras | extras), all little-endian; the key before
//   the first is the namespace's seed. Every field has a fixed size or its length in front, so no two inputs encode alike.
// - Only full blocks have keys.
// - A chain of an engine's own hashes has another tag: it can never meet a chain of tokens.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sha256.hpp"

namespace kvstore {

inline constexpr std::uint32_t kBlockTokensMax = 65'536;
inline constexpr std::size_t kEngineHashBytesMax = 64;
inline constexpr std::size_t kExtrasBytesMax = 4'096;  // of one block, encoded
inline constexpr std::size_t kExtrasMax = 65'536;      // of one call
inline constexpr std::size_t kExtrasPerBlockMax = 128;
inline constexpr std::size_t kExtrasArenaMax = 64u << 20;  // of all blocks of one call, encoded

// Encoded extras of one block. Blocks not listed have none.
struct BlockExtras {
  std::size_t block = 0;
  std::span<const std::uint8_t> bytes;
};

// out.size() == tokens.size() / block_tokens. `extras` ascend strictly by block, each of at most kExtrasBytesMax.
void chain_keys(const Digest& parent, std::span<const std::uint32_t> tokens, std::uint32_t block_tokens,
                std::span<const BlockExtras> extras, std::span<Digest> out);
// One engine hash a block, each 1..kEngineHashBytesMax bytes: key[i] = SHA-256("kvh1" | key[i-1] | u32 bytes | hash).
void chain_keys_of_hashes(const Digest& parent, std::span<const std::span<const std::uint8_t>> hashes,
                          std::span<Digest> out) noexcept;

// What else decides the content of blocks: applies to the tokens [first, end) of the call.
enum class ExtraKind : std::uint8_t { kLora = 1, kSalt = 2, kMultimodal = 3, kEmbeds = 4 };
struct Extra {
  ExtraKind kind = ExtraKind::kLora;
  std::int64_t first = 0;  // may lie before the call's first token
  std::int64_t end = 0;
  std::span<const std::uint8_t> value;
};

// The canonical encoding of `extras` for each of the first `blocks` blocks that any of them touches: records sorted as byte
// strings, equal ones once. A record: u8 kind | u32 first in block | u32 end in block | u64 tokens of it before this block |
// u32 bytes of value | value. It does not depend on where a call begins, so a chain may be made in several calls.
class EncodedExtras {
 public:
  // Throws std::invalid_argument naming the extra or the limit.
  EncodedExtras(std::span<const Extra> extras, std::uint32_t block_tokens, std::size_t blocks);
  std::span<const BlockExtras> blocks() const noexcept { return blocks_; }

 private:
  std::vector<std::uint8_t> arena_;
  std::vector<BlockExtras> blocks_;
};

}  // namespace kvstore
