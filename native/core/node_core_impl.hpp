// The state behind NodeCore, and what its files share. Included by node_core*.cpp only.
//
// Rules
// - Every member function expects the mutex to be held, unless it says otherwise.
// - Answers to fetches are collected in `Settled` and given after the mutex is let go.
#pragma once
#include <atomic>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "asked_probes.hpp"
#include "events.hpp"
#include "node_core.hpp"
#include "object_index.hpp"
#include "parked.hpp"

namespace kvstore {

using Settled = std::vector<std::pair<FetchDone, FetchAnswer>>;
inline void give(Settled& settled) {
  for (auto& [done, answer] : settled) done(std::move(answer));
}

struct KeyHash {
  std::size_t operator()(const Key& key) const noexcept { return key.word(0); }
};

struct NodeCore::Impl {
  Impl(const CoreConfig& config, void* meta_memory, std::size_t meta_bytes, std::uint64_t incarnation);
  ~Impl();

  struct Namespace {
    NamespaceSpec spec;
    NamespaceCounts counts;
    bool open = false;
    bool counted = true;  // false: its row made way
  };

  // ---- node_core.cpp: namespaces
  Namespace* open_row(NsId ns) { return ns < namespaces.size() && namespaces[ns].open ? &namespaces[ns] : nullptr; }
  FetchStatus check(NsId ns, std::uint32_t shard, std::size_t keys, FetchAnswer* why = nullptr);
  SlotTable& table(Tier tier) { return tier == Tier::kFile ? *file : memory; }
  const SlotTable& table(Tier tier) const { return tier == Tier::kFile ? *file : memory; }
  SlotInfo live(const SlotTable& of, Ticket ticket) const;  // state kFree if the ticket is stale
  void stored(Tier tier, const SlotInfo& info);
  void removed(Tier tier, const SlotInfo& info);
  void want_write_behind();
  bool push(Work&& work, bool may_drop);  // and wakes

  // ---- node_core_marks.cpp
  void evicted(Tier tier, const SlotInfo& info);
  void pack_gone(NsId ns, std::uint16_t shard, std::span<const Key> keys, bool swept);
  void file_copy_gone(const SlotInfo& info, bool in_its_turn);  // of a sealed slot, but for a clear
  bool in_packs(const SlotInfo& info) const;

  // ---- node_core_progress.cpp
  void progressed(const ProgressOf& told);  // of memory
  void wake_watchers();

  // ---- node_core_objects.cpp
  // keys[0], at `position` of its chain, was found nowhere. Once a hole, until probes are forgotten.
  void ask_probe(NsId ns, std::uint16_t shard, std::span<const Key> keys, std::uint64_t position, bool wanted);

  // ---- node_core_lookup.cpp: where blocks are
  // Appends the tier of keys[i] for i from tiers.size() on, until the first that is nowhere. True: none was nowhere.
  bool probe(NsId ns, std::uint16_t shard, std::span<const Key> keys, std::vector<std::uint8_t>& tiers) const;
  // The same for all keys, holes and all.
  void probe_all(NsId ns, std::uint16_t shard, std::span<const Key> keys, std::vector<std::uint8_t>& tiers) const;
  void probe_group(NsId ns, std::uint16_t shard, std::span<const Key> keys, std::uint8_t* tiers) const;

  // ---- node_core_fetch.cpp
  std::size_t cut(const FetchRequest& request, const ShardSpec& shard, std::size_t keys) const;
  // whole: the chain as asked for, beyond the window, when it is new.
  void start_fetch(Parked&& fetch, Nanos now, Settled& out, std::span<const Key> whole = {});
  FetchAnswer take_hold(const Parked& fetch, Nanos now);
  void finish(Parked&& fetch, FetchAnswer&& answer, Nanos now, Settled& out);
  void settle(std::vector<Parked>&& fetches, Nanos now, bool may_wait, Settled& out);
  void ask_promotion(const Parked& fetch, std::span<const std::uint32_t> indices, bool wanted_now);
  void prefetch_rest(const Parked& fetch, std::span<const Key> rest, std::size_t before);
  std::optional<Nanos> next_deadline_locked() const;

  const CoreConfig config;
  const std::uint64_t window;
  const std::uint64_t pinned_max;
  const std::uint64_t held_max;
  mutable std::mutex mutex;
  MetaSegment meta;
  SlotTable memory;
  std::optional<SlotTable> file;
  std::size_t recovered = 0;
  bool object_tier = false;
  bool object_answers = false;
  std::optional<ObjectIndex> objects;
  AskedProbes asked_probes;
  std::size_t probes_queued = 0;
  std::atomic<OwnerId> next_owner{1};

  std::vector<Namespace> namespaces;
  std::unordered_map<Key, NsId, KeyHash> by_digest;
  std::deque<NsId> closed_rows;  // cleared namespaces whose counts are still kept

  ParkedFetches parked;
  std::deque<Work> works;
  bool write_behind_queued = false;
  std::unordered_set<std::uint64_t> corrupt_queued;
  int work_event = -1;
  std::function<void()> earlier;

  Watches watches;
  int watch_event = -1;
  std::deque<std::pair<NsId, Key>> begun_keys;
  std::uint64_t begun_first = 0;  // the sequence of the first of them

  EventRing events;
  CoreCounters counters;
  FamilyTable families;
  RateEstimate rates;
};

inline std::uint64_t as_word(Ticket ticket) noexcept { return ticket.slot | std::uint64_t{ticket.tenancy} << 32; }

}  // namespace kvstore
