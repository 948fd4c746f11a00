// Words shared by the whole core. No behaviour here.
#pragma once
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvstore {

using Nanos = std::int64_t;     // a monotonic clock's reading, or a duration; always passed in, never read here
using SlotId = std::uint32_t;   // index of an entry in one SlotTable
using NsId = std::uint32_t;     // a node's handle for one open namespace; never reused while the node lives
using OwnerId = std::uint64_t;  // a connection, or an actor inside the node; never reused
using HoldId = std::uint64_t;   // never reused

inline constexpr SlotId kNoSlot = 0xffffffffu;
inline constexpr NsId kNoNamespace = 0xffffffffu;
inline constexpr std::uint32_t kShardsMax = 64;    // a block's shard bitmap is one word
inline constexpr std::uint32_t kPartsMax = 256;    // checksums and meta fit one 4 KiB slot header
inline constexpr std::uint32_t kMetaBytesMax = 1024;
inline constexpr std::uint32_t kSlotAlign = 4096;  // direct I/O and huge pages both want it
inline constexpr std::uint64_t kBlockBytesMin = 4096;
inline constexpr std::uint64_t kBlockBytesMax = 64ull << 20;

// The full key is kept and compared; only its first bytes choose a bucket.
struct Key {
  std::array<std::uint8_t, 32> bytes{};
  friend bool operator==(const Key&, const Key&) = default;
  std::uint64_t word(int i) const noexcept {
    std::uint64_t w;
    std::memcpy(&w, bytes.data() + 8 * i, 8);
    return w;
  }
};
static_assert(sizeof(Key) == 32);

// What one rank holds of a block for one cache group. `part_bytes` sums to `bytes`.
struct ShardSpec {
  std::uint64_t bytes = 0;
  std::vector<std::uint32_t> part_bytes;
};

struct NamespaceSpec {
  Key digest;                     // model, layout, tenant, generation...: see docs/format/keys.md
  std::uint32_t tenant = 0;       // a node's handle for the tenant's name
  std::uint32_t block_tokens = 0;
  std::vector<ShardSpec> shards;  // 1..kShardsMax
};

// What a caller may tell about the future of the blocks it touches. Zero means "nothing said".
struct Hint {
  std::uint64_t family = 0;               // unit of hit-rate reporting
  std::uint64_t session = 0;
  std::uint32_t turn = 0;
  std::uint32_t expected_return_ms = 0;   // when the session is expected back
  std::int8_t priority = 0;               // -1 colder, +1 warmer
  bool end = false;                       // the session will not come back
  // expected_return_ms in touches of the tier at hand, the only time a policy knows. Filled in by the table from the
  // rate of touches it has seen; callers of a table leave it.
  std::uint32_t return_touches = 0;
  // reserve() only: the index in its chain of the first key given. Object packs are aligned groups of a chain's blocks.
  std::uint32_t position = 0;
  // reserve() only: a promotion. What it brings lies below as well, so it may take the place of its own chain's beginning.
  bool from_below = false;
};

enum class HoldKind : std::uint8_t {
  kLease = 0,  // has a duration; its holder verifies after the copy, so a lapse costs a miss and no more
  kView = 1,   // zero copy; ends with its release or its owner's end, never by time
  kPin = 2,    // an operator's; has a duration and a budget
};

// Which shards a boundary must have. A lookup is the longest boundary at which all its needs hold.
enum class NeedKind : std::uint8_t {
  kAll = 0,    // every block before the boundary (full attention)
  kLast = 1,   // the last `blocks` before the boundary (sliding window)
  kState = 2,  // the block that ends at the boundary (recurrent state)
};
struct Need {
  std::uint16_t shard = 0;
  NeedKind kind = NeedKind::kAll;
  std::uint32_t blocks = 0;  // for kLast
};

}  // namespace kvstore
