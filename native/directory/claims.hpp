// What nodes say that they hold: the part of the directory that one home keeps.
//
// Rules
// - A claim is a hint: (namespace word, first 16 bytes of the key, node) -> shards, tier. A wrong one costs a miss.
// - 40 bytes a claim and 8.9 to 11.1 of index. The index sorts by tag: 24 bits of the key, 8 of the node. So all holders of a
//   key lie side by side, and a node finds its own claim among a thousand holders without looking at theirs.
// - The claims of a node are a list of their own, in the order in which it last said them: dropping it costs what it has claimed.
// - Bounded: where there is no room, the node with most claims loses the batch that it said longest ago (kEvictShare of the
//   table), and evicted_of() says so, since its digest cannot agree any more. A flood costs the node that made it.
// - A digest is, for each of 64 buckets of keys, the XOR of the hashes of a node's claims in it. Whoever holds the same
//   set has the same digest, in whatever order it came.
// - begin() and end() bracket a telling from scratch: what is not said between them goes at the end, and not before.
// - No clock, no lock, no I/O: its owner serialises.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "core/index.hpp"
#include "homes.hpp"

namespace kvstore {

using NodeNumber = std::uint16_t;
inline constexpr std::uint32_t kDigestBuckets = 64;
inline constexpr std::uint32_t kClaimNodesMax = 4'096;
using Digests = std::array<std::uint64_t, kDigestBuckets>;

struct ClaimConfig {
  std::uint32_t claims_max = 16u << 20;
  std::uint64_t hash_seed = 0x9e3779b97f4a7c15ull;  // of the index; random in production
};

// Rows as they are told. shards 0: it holds nothing of it any more.
struct ClaimRows {
  std::uint32_t ns = 0;  // namespace word
  KeyRows keys;
  std::span<const std::uint64_t> shards;
  std::span<const std::uint8_t> tiers;
};

struct Applied {
  std::uint64_t added = 0, changed = 0, withdrawn = 0, unknown = 0 /* withdrawn, and not here */, evicted = 0;
};

// Holders of many keys: counts[i] of them for key i, the rest concatenated.
struct Located {
  std::vector<std::uint8_t> counts;
  std::vector<NodeNumber> nodes;
  std::vector<std::uint64_t> shards;
  std::vector<std::uint8_t> tiers;
};

// The same word for the same namespace on every node.
inline std::uint32_t namespace_word(std::span<const std::uint8_t> digest) noexcept {
  return static_cast<std::uint32_t>(name_hash(digest) >> 32);
}
inline std::uint32_t bucket_of(const ShortKey& key) noexcept { return static_cast<std::uint32_t>(key.hash() >> 58); }
std::uint64_t claim_hash(std::uint32_t ns, const ShortKey& key, std::uint64_t shards, std::uint8_t tier) noexcept;
// XORs the rows into `out`; rows without shards are no claims.
void fold_digests(const ClaimRows& rows, Digests& out) noexcept;

class ClaimTable {
 public:
  explicit ClaimTable(const ClaimConfig& config);

  std::int32_t add_node();             // -1: kClaimNodesMax
  std::uint64_t drop_node(NodeNumber node);  // and all that it claims; its number may be given to another
  void set_named(NodeNumber node, bool named);  // false: locate() leaves it out
  bool known(std::uint32_t node) const noexcept { return node < nodes_.size() && nodes_[node].used; }

  Applied apply(NodeNumber node, const ClaimRows& rows);
  std::uint64_t drop_namespace(NodeNumber node, std::uint32_t ns);
  void begin(NodeNumber node, std::uint64_t buckets);
  std::uint64_t end(NodeNumber node, std::uint64_t buckets);  // how many went

  // At most `holders_max` of each: first those that add shards, nearer tiers first, then others. `spread` shuffles
  // equals, so that askers do not all name the same.
  void locate(std::uint32_t ns, const KeyRows& keys, std::uint32_t holders_max, std::uint32_t spread, Located& out) const;

  const Digests& digests(NodeNumber node) const { return nodes_.at(node).digests; }
  std::uint64_t claims_of(NodeNumber node) const { return nodes_.at(node).count; }
  std::uint64_t evicted_of(NodeNumber node) const { return nodes_.at(node).evicted; }  // since its last begin() of all buckets
  std::size_t size() const noexcept { return index_.size(); }
  std::size_t claims_max() const noexcept { return config_.claims_max; }
  std::size_t memory_bytes() const noexcept;
  void check_integrity() const;  // throws std::logic_error

 private:
  struct Claim {
    ShortKey key;
    std::uint64_t shards;
    std::uint32_t ns;
    SlotId before, after;  // of its node; `after` links free ones
    NodeNumber node;
    std::uint8_t tier;
    std::uint8_t old;  // said before begin(), and not since
  };
  static_assert(sizeof(Claim) == 40);
  struct Node {
    SlotId first = kNoSlot, last = kNoSlot;  // first: said longest ago
    std::uint32_t count = 0;
    bool used = false, named = false;
    std::uint64_t evicted = 0;
    Digests digests{};
  };

  std::uint32_t tag_base(std::uint32_t ns, const ShortKey& key) const noexcept {
    return static_cast<std::uint32_t>(mixed(key.hash() ^ ns ^ config_.hash_seed) >> 32) & ~0xffu;
  }
  SlotId find(std::uint32_t ns, const ShortKey& key, NodeNumber node) const;
  void link(SlotId slot);
  void unlink(SlotId slot);
  void fold(const Claim& claim) noexcept;
  void remove(SlotId slot);
  std::uint64_t make_room();
  template <class Goes>
  std::uint64_t remove_where(NodeNumber node, Goes&& goes);

  ClaimConfig config_;
  LazyArray<Claim> claims_;
  Index index_;
  std::vector<Node> nodes_;
  SlotId free_ = kNoSlot;
  SlotId used_end_ = 0;  // claims_ from here on was never touched
};

}  // namespace kvstore
