#include "claims.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>

namespace kvstore {
namespace {

constexpr std::uint32_t kEvictShare = 256;   // a batch is this part of the table
constexpr std::size_t kCandidatesMax = 256;  // holders of one key that locate() chooses from

}  // namespace

std::uint64_t claim_hash(std::uint32_t ns, const ShortKey& key, std::uint64_t shards, std::uint8_t tier) noexcept {
  return mixed(key.hash() ^ mixed(shards + (std::uint64_t{ns} << 8 | tier)));
}

void fold_digests(const ClaimRows& rows, Digests& out) noexcept {
  for (std::size_t i = 0; i < rows.keys.count; ++i) {
    if (rows.shards[i] == 0) continue;
    const ShortKey key = rows.keys[i];
    out[bucket_of(key)] ^= claim_hash(rows.ns, key, rows.shards[i], rows.tiers[i]);
  }
}

ClaimTable::ClaimTable(const ClaimConfig& config) : config_(config), claims_(config.claims_max), index_(config.claims_max) {
  if (config.claims_max == 0 || config.claims_max >= kNoSlot) throw std::invalid_argument("claims_max: from 1 to 2^32 - 2");
}

// ---- nodes

std::int32_t ClaimTable::add_node() {
  auto free = std::find_if(nodes_.begin(), nodes_.end(), [](const Node& node) { return !node.used; });
  if (free == nodes_.end()) {
    if (nodes_.size() >= kClaimNodesMax) return -1;
    free = nodes_.emplace(nodes_.end());
  }
  *free = Node{};
  free->used = free->named = true;
  return static_cast<std::int32_t>(free - nodes_.begin());
}

std::uint64_t ClaimTable::drop_node(NodeNumber node) {
  const std::uint64_t gone = remove_where(node, [](const Claim&) { return true; });
  nodes_.at(node) = Node{};
  return gone;
}

void ClaimTable::set_named(NodeNumber node, bool named) { nodes_.at(node).named = named; }

// ---- claims

SlotId ClaimTable::find(std::uint32_t ns, const ShortKey& key, NodeNumber node) const {
  return index_.find(tag_base(ns, key) | (node & 0xff), [&](SlotId slot) {
    const Claim& claim = claims_[slot];
    return claim.key == key && claim.node == node && claim.ns == ns;
  });
}

void ClaimTable::link(SlotId slot) {
  Claim& claim = claims_[slot];
  Node& node = nodes_[claim.node];
  claim.before = node.last;
  claim.after = kNoSlot;
  (node.last == kNoSlot ? node.first : claims_[node.last].after) = slot;
  node.last = slot;
}

void ClaimTable::unlink(SlotId slot) {
  const Claim& claim = claims_[slot];
  Node& node = nodes_[claim.node];
  (claim.before == kNoSlot ? node.first : claims_[claim.before].after) = claim.after;
  (claim.after == kNoSlot ? node.last : claims_[claim.after].before) = claim.before;
}

void ClaimTable::fold(const Claim& claim) noexcept {
  nodes_[claim.node].digests[bucket_of(claim.key)] ^= claim_hash(claim.ns, claim.key, claim.shards, claim.tier);
}

void ClaimTable::remove(SlotId slot) {
  Claim& claim = claims_[slot];
  fold(claim);
  unlink(slot);
  nodes_[claim.node].count -= 1;
  index_.erase(tag_base(claim.ns, claim.key) | (claim.node & 0xff), slot);
  claim.after = free_;
  free_ = slot;
}

template <class Goes>
std::uint64_t ClaimTable::remove_where(NodeNumber node, Goes&& goes) {
  std::uint64_t gone = 0;
  for (SlotId slot = nodes_.at(node).first; slot != kNoSlot;) {
    const SlotId next = claims_[slot].after;
    if (goes(claims_[slot])) {
      remove(slot);
      ++gone;
    }
    slot = next;
  }
  return gone;
}

std::uint64_t ClaimTable::make_room() {
  const auto most = std::max_element(nodes_.begin(), nodes_.end(), [](const Node& a, const Node& b) { return a.count < b.count; });
  const std::uint64_t batch = std::min(std::max(config_.claims_max / kEvictShare, 1u), most->count);
  for (std::uint64_t i = 0; i < batch; ++i) remove(most->first);
  most->evicted += batch;
  return batch;
}

Applied ClaimTable::apply(NodeNumber number, const ClaimRows& rows) {
  if (!known(number)) throw std::out_of_range("node");
  Applied done;
  for (std::size_t i = 0; i < rows.keys.count; ++i) {
    const ShortKey key = rows.keys[i];
    SlotId slot = find(rows.ns, key, number);
    if (rows.shards[i] == 0) {
      if (slot != kNoSlot) remove(slot);
      (slot != kNoSlot ? done.withdrawn : done.unknown) += 1;
      continue;
    }
    if (slot != kNoSlot) {
      Claim& claim = claims_[slot];
      done.changed += claim.shards != rows.shards[i] || claim.tier != rows.tiers[i];
      fold(claim);
      unlink(slot);
    } else {
      if (index_.size() >= config_.claims_max) done.evicted += make_room();
      slot = free_ != kNoSlot ? free_ : used_end_++;
      if (slot == free_) free_ = claims_[slot].after;
      index_.insert(tag_base(rows.ns, key) | (number & 0xff), slot);
      nodes_[number].count += 1;
      done.added += 1;
    }
    claims_[slot] = Claim{key, rows.shards[i], rows.ns, kNoSlot, kNoSlot, number, rows.tiers[i], 0};
    fold(claims_[slot]);
    link(slot);
  }
  return done;
}

std::uint64_t ClaimTable::drop_namespace(NodeNumber node, std::uint32_t ns) {
  return remove_where(node, [ns](const Claim& claim) { return claim.ns == ns; });
}

void ClaimTable::begin(NodeNumber number, std::uint64_t buckets) {
  Node& node = nodes_.at(number);
  if (buckets == ~0ull) node.evicted = 0;
  for (SlotId slot = node.first; slot != kNoSlot; slot = claims_[slot].after)
    if ((buckets >> bucket_of(claims_[slot].key) & 1) != 0) claims_[slot].old = 1;
}

std::uint64_t ClaimTable::end(NodeNumber node, std::uint64_t buckets) {
  return remove_where(node, [buckets](const Claim& claim) { return claim.old != 0 && (buckets >> bucket_of(claim.key) & 1) != 0; });
}

// ---- asking

void ClaimTable::locate(std::uint32_t ns, const KeyRows& keys, std::uint32_t holders_max, std::uint32_t spread, Located& out) const {
  struct Candidate {
    std::uint32_t rank;  // tier above an order of nodes that `spread` shuffles
    const Claim* claim;
  };
  std::vector<Candidate> found;
  holders_max = std::min(holders_max, 255u);
  for (std::size_t k = 0; k < keys.count; ++k) {
    const ShortKey key = keys[k];
    const std::uint32_t base = tag_base(ns, key);
    found.clear();
    index_.each(base, base | 0xff, [&](SlotId slot) {
      const Claim& claim = claims_[slot];
      if (claim.key == key && claim.ns == ns && nodes_[claim.node].named)
        found.push_back({std::uint32_t{claim.tier} << 16 | static_cast<std::uint16_t>(mixed(std::uint64_t{spread} << 32 | claim.node)), &claim});
      return found.size() < kCandidatesMax;
    });
    std::sort(found.begin(), found.end(), [](const Candidate& a, const Candidate& b) {
      return a.rank != b.rank ? a.rank < b.rank : a.claim->node < b.claim->node;
    });
    std::uint8_t count = 0;
    std::uint64_t covered = 0;
    const auto take = [&](Candidate& one) {
      out.nodes.push_back(one.claim->node);
      out.shards.push_back(one.claim->shards);
      out.tiers.push_back(one.claim->tier);
      covered |= one.claim->shards;
      one.claim = nullptr;
      ++count;
    };
    for (Candidate& one : found)
      if (count < holders_max && (one.claim->shards & ~covered) != 0) take(one);
    for (Candidate& one : found)
      if (count < holders_max && one.claim != nullptr) take(one);
    out.counts.push_back(count);
  }
}

std::size_t ClaimTable::memory_bytes() const noexcept {
  constexpr std::size_t page = 4096;  // the array is touched page by page
  return (used_end_ * sizeof(Claim) + page - 1) / page * page + index_.memory_bytes() + nodes_.capacity() * sizeof(Node);
}

void ClaimTable::check_integrity() const {
  index_.check_integrity();
  std::size_t listed = 0;
  for (std::size_t n = 0; n < nodes_.size(); ++n) {
    Digests digests{};
    std::size_t count = 0;
    SlotId before = kNoSlot;
    for (SlotId slot = nodes_[n].first; slot != kNoSlot; before = slot, slot = claims_[slot].after) {
      const Claim& claim = claims_[slot];
      if (claim.node != n || claim.before != before || claim.shards == 0) throw std::logic_error("claims: a list is broken");
      if (find(claim.ns, claim.key, claim.node) != slot) throw std::logic_error("claims: one cannot be found");
      digests[bucket_of(claim.key)] ^= claim_hash(claim.ns, claim.key, claim.shards, claim.tier);
      ++count;
    }
    if (nodes_[n].last != before || nodes_[n].count != count) throw std::logic_error("claims: a node's do not add up");
    if (nodes_[n].digests != digests) throw std::logic_error("claims: a digest is wrong");
    listed += count;
  }
  std::size_t unused = 0;
  for (SlotId slot = free_; slot != kNoSlot; slot = claims_[slot].after) ++unused;
  if (listed != index_.size() || listed + unused != used_end_) throw std::logic_error("claims: they do not add up");
}

}  // namespace kvstore
