// What a node tells the directory of: which shards of which keys it holds, and what has changed.
#include "node_core_impl.hpp"

namespace kvstore {
namespace {

struct Here {
  std::uint64_t memory = 0, file = 0, publishing = 0;  // shards
  std::uint64_t shards() const { return (memory | file) != 0 ? memory | file : publishing; }
  std::uint8_t tier() const {
    if ((memory | file) == 0 && publishing != 0) return NodeCore::kPublishing;
    return static_cast<std::uint8_t>(memory != 0 ? Tier::kMemory : file != 0 ? Tier::kFile : Tier::kNone);
  }
};

Here here(const NodeCore::Impl& core, NsId ns, const Key& key) {
  Here found{core.memory.shards_of(ns, key), core.file ? core.file->shards_of(ns, key) : 0, 0};
  if ((found.memory | found.file) == 0) found.publishing = core.memory.publishing_of(ns, key);
  return found;
}

// Where scan_held() is: at a slot of memory, or from 2^32 on of files.
constexpr std::uint64_t kFiles = 1ull << 32, kNowhere = ~0ull;

std::uint64_t next_used(const NodeCore::Impl& core, std::uint64_t at) {
  if (at < kFiles) {
    if (const SlotId slot = core.memory.next_used(static_cast<SlotId>(at)); slot != kNoSlot) return slot;
    at = kFiles;
  }
  if (!core.file) return kNowhere;
  const SlotId slot = core.file->next_used(static_cast<SlotId>(at - kFiles));
  return slot != kNoSlot ? kFiles + slot : kNowhere;
}

}  // namespace

void NodeCore::held(NsId ns, std::span<const Key> keys, std::span<std::uint64_t> shards, std::span<std::uint8_t> tiers) const {
  std::lock_guard lock(impl_->mutex);
  const bool open = impl_->open_row(ns) != nullptr;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const Here found = open ? here(*impl_, ns, keys[i]) : Here{};
    shards[i] = found.shards();
    tiers[i] = found.tier();
  }
}

void NodeCore::held_in(Tier tier, NsId ns, std::span<const Key> keys, std::span<std::uint64_t> shards) const {
  std::lock_guard lock(impl_->mutex);
  const bool open = has(tier) && impl_->open_row(ns) != nullptr;
  for (std::size_t i = 0; i < keys.size(); ++i) shards[i] = open ? impl_->table(tier).shards_of(ns, keys[i]) : 0;
}

std::uint64_t NodeCore::scan_held(std::uint64_t after, std::size_t max, NsId ns, HeldKeys& out) const {
  std::lock_guard lock(impl_->mutex);
  std::uint64_t at = after;
  for (std::size_t looked = 0; looked < max; ++looked, ++at) {
    at = next_used(*impl_, at);
    if (at == kNowhere) return 0;
    const bool in_files = at >= kFiles;
    const SlotInfo info = impl_->table(in_files ? Tier::kFile : Tier::kMemory).info(static_cast<SlotId>(at));
    const bool publishing = !in_files && info.state == SlotState::kReserved && info.parts_ready > 0;
    if ((info.state != SlotState::kSealed && !publishing) || (ns != kNoNamespace && info.ns != ns) || impl_->open_row(info.ns) == nullptr) continue;
    const Here found = here(*impl_, info.ns, info.key);
    // Once a key: by its lowest shard, in memory if any is there.
    if (in_files && found.memory != 0) continue;
    if (publishing && found.tier() != kPublishing) continue;  // by what of it is sealed
    const std::uint64_t lowest = publishing ? found.publishing : in_files ? found.file : found.memory;
    if ((lowest & ((1ull << info.shard) - 1)) != 0) continue;
    out.keys.push_back(info.key);
    out.ns.push_back(info.ns);
    out.shards.push_back(found.shards());
    out.tiers.push_back(found.tier());
  }
  return at;
}

Changes NodeCore::changes_since(std::uint64_t sequence, std::size_t max) const {
  std::lock_guard lock(impl_->mutex);
  Changes out;
  out.sequence = impl_->events.each_since(sequence, max, out.gap, [&](const Event& event) {
    if (event.kind == Event::Kind::kCleared) {
      out.cleared.push_back(event.ns);
      return;
    }
    out.keys.push_back(event.key);
    out.ns.push_back(event.ns);
  });
  return out;
}

std::optional<Key> NodeCore::namespace_digest(NsId ns) const {
  std::lock_guard lock(impl_->mutex);
  if (ns >= impl_->namespaces.size()) return std::nullopt;
  return impl_->namespaces[ns].spec.digest;
}

NsId NodeCore::namespaces_end() const {
  std::lock_guard lock(impl_->mutex);
  return static_cast<NsId>(impl_->namespaces.size());
}

}  // namespace kvstore
