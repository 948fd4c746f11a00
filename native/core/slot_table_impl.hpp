// The state of a SlotTable, shared by its files:
//   slot_table.cpp          set-up, namespaces, finding, what is to be known
//   slot_table_publish.cpp  reserve, publish, seal, abort
//   slot_table_room.cpp     eviction: making room for a reservation
//   slot_table_marks.cpp    what write-behind asks and says of slots
//   slot_table_hold.cpp     holds, leases, owners, time
//   slot_table_leave.cpp    retire, and the way back to FREE
//   slot_table_restart.cpp  recover, restore, changes
//   slot_table_check.cpp    check_integrity
//
// Rules
// - A slot is listed (in the index and ranked by the policy) exactly while it is RESERVED or SEALED.
// - It is busy (counted at its slab) exactly while it is not FREE and must not be evicted.
// - In meta memory a slot is FREE until all else of it is written, and FREE again before anything of it is reused.
#pragma once
#include <array>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "entry.hpp"
#include "holds.hpp"
#include "index.hpp"
#include "lazy_array.hpp"
#include "record.hpp"
#include "slabs.hpp"
#include "slot_table.hpp"
#include "tail_pool.hpp"

namespace kvstore {

inline constexpr std::uint32_t kNamespaceRowsMax = 8192;  // open ones, and closed ones that still have slots
inline constexpr std::uint16_t kNoRow = 0xffff;

struct NamespaceRow {  // in meta memory: names a digest across restarts
  std::uint64_t check;  // XXH3-64 of digest and row number; 0: unused
  Key digest;
};
static_assert(sizeof(NamespaceRow) == 40);

// Where each thing lies in the meta memory.
struct MetaLayout {
  std::size_t rows = 0, slab_rows = 0, entries = 0, parents = 0, tails = 0, end = 0;
  std::uint32_t ids = 0, tail_units = 0;
  explicit MetaLayout(const TableConfig& config);  // throws std::invalid_argument naming the field
};

// Digests and keys are uniform already, or seeded again in the index.
struct KeyHash {
  std::size_t operator()(const Key& key) const noexcept { return key.word(0); }
};

struct SlotTable::Impl {
  struct RowState {
    Key digest;
    NsId ns = kNoNamespace;  // kNoNamespace: not open
    std::vector<ShardSpec> shards;
    std::uint64_t slots = 0;  // in any state but FREE
  };
  // Victims asked for by one reserve(), used one after the other.
  struct Victims {
    std::vector<SlotId> ids;
    std::size_t next = 0, asked = 0, used = 0, passed_over = 0;
  };
  // What one reserve() knows of its request.
  struct Request {
    OwnerId owner;
    std::uint16_t row, shard;
    std::uint32_t bytes, parts, units;
    bool in_place;
    Nanos deadline;
    Hint hint;
    Victims victims;
    SlotId above = kNoSlot;            // the block before the first
    std::vector<SlotId> last_resorts;  // the next to go is the last
    std::unordered_set<SlotId> ancestors;
    std::uint32_t position = 0;  // of the key at hand
    std::size_t left = 0;        // keys not answered yet
  };

  Impl(const TableConfig& config, void* memory, std::size_t bytes);

  // Names.
  std::uint64_t hash(std::uint16_t row, std::uint16_t shard, const Key& key) const noexcept;
  static std::uint32_t tag(std::uint64_t hash) noexcept { return static_cast<std::uint32_t>(hash >> 32); }
  bool named(SlotId slot, std::uint16_t row, std::uint16_t shard, const Key& key) const noexcept {
    const Entry& e = entries[slot];
    return ((e.key.word(0) ^ key.word(0)) | (e.key.word(1) ^ key.word(1)) | (e.key.word(2) ^ key.word(2)) |
            (e.key.word(3) ^ key.word(3)) | static_cast<std::uint64_t>(e.row ^ row) | static_cast<std::uint64_t>(e.shard() ^ shard)) == 0;
  }
  SlotId lookup(std::uint16_t row, std::uint16_t shard, const Key& key) const;
  std::uint16_t row_of(NsId ns) const;  // kNoRow: not open
  std::uint16_t take_row(const Key& digest);
  void leave_row(std::uint16_t row);
  // visit(i, slot or kNoSlot) for each key in order, until it says false. Buckets and entries are fetched ahead.
  template <class Visit>
  void find_each(std::uint16_t row, std::uint16_t shard, std::span<const Key> keys, Visit&& visit) const;

  // What is to be known.
  bool listed(const Entry& e) const noexcept {
    return e.state() == SlotState::kReserved || e.state() == SlotState::kSealed;
  }
  std::uint32_t parts_ready(const Entry& e) const noexcept;
  bool followable(const Entry& e) const noexcept { return e.state() == SlotState::kReserved && parts_ready(e) > 0; }
  template <class Wanted>
  std::uint64_t shards_of(NsId ns, const Key& key, const Wanted& wanted) const;
  SlotInfo info(SlotId slot) const;
  bool names(Ticket ticket) const noexcept {
    return ticket.slot < layout.ids && ticket.tenancy != 0 && entries[ticket.slot].tenancy == ticket.tenancy;
  }
  std::uint64_t sequence(SlotId slot) const noexcept {
    return static_cast<std::uint64_t>(slabs.epoch(slabs.slab_of(slot))) << 32 | entries[slot].tenancy;
  }
  void encode(SlotId slot, std::span<const std::uint64_t> checksums, std::vector<std::uint8_t>& out) const;
  std::uint64_t entry_checksum(SlotId slot) const;

  // Publishing.
  Request request(OwnerId owner, NsId ns, std::uint16_t shard, const Hint& hint, bool in_place, Nanos deadline) const;
  Reserved grant(Request& request, const Key& key, const Key* parent, SlotId parent_slot,
                 std::span<const std::uint8_t> meta);
  std::uint64_t writer_of(OwnerId owner, Ticket ticket);  // the record's number, or 0
  void tell(SlotId slot, Progress progress, std::uint32_t parts_ready) const;

  // Room.
  SlotId make_room(Request& request);
  SlotId next_victim(Request& request);
  static void pass_over(Request& request);  // what next_victim() gave is of no use now
  SlotId last_resort(Request& request);
  bool may_go(SlotId slot, std::uint32_t units) const noexcept;
  SlotId parent_of(SlotId slot) const;
  void find_ancestors(Request& request) const;
  std::optional<std::int64_t> last_rank(SlotId slot, const Request& request) const;
  bool evictable(SlotId slot);
  void evict(SlotId slot);
  void add_beginnings(std::uint64_t bytes, std::span<const SlotId> but, Dirty which, std::vector<Ticket>& out) const;
  std::uint64_t add_coldest(std::uint64_t bytes, std::vector<SlotId>& ids, Dirty which, std::vector<Ticket>& out);  // returns what is left
  void mark(Ticket ticket, std::uint32_t on, std::uint32_t off);
  void empty_slab(std::uint32_t slab);
  std::uint32_t take_tail(Request& request, std::uint32_t units);

  // Holds.
  bool can_hold(SlotId slot, HoldKind kind) const noexcept;
  void hold_one(SlotId slot, HoldKind kind);
  void release_one(SlotId slot, HoldKind kind);
  void release(std::uint64_t hold);
  void offer_again(SlotId slot);
  Hint in_touches(const Hint& hint, Nanos now);

  // Leaving.
  bool retire(SlotId slot);
  void unlist(SlotId slot);
  void drop_reservation(std::uint64_t writer);       // listed no more; quarantined if its owner may still write
  void end_writer(std::uint64_t writer);             // its owner can write no more
  void free_if_unused(SlotId slot);
  void free_slot(SlotId slot);

  // Restart.
  bool seems_sealed(SlotId slot, std::uint32_t units) const;
  bool recover_one(SlotId slot, std::uint32_t units);  // false: dropped
  bool recover_sealed(SlotId slot, std::uint32_t units);
  void recover_unsealed(SlotId slot);
  void load_rows();
  bool restore_one(const RecordView& row);
  void rank(std::span<const SlotId> slots);
  void log_change(SlotId slot);
  void log_free(std::uint64_t offset);

  void check() const;

  TableConfig config;
  MetaLayout layout;
  LazyArray<std::uint8_t> own_memory;  // where the caller gave none
  std::uint8_t* base;                  // the meta memory
  NamespaceRow* ns_rows;
  Entry* entries;
  Key* parents;
  Index index;
  Slabs slabs;
  TailPool tails;
  std::unique_ptr<Policy> policy;
  Holds holds;
  std::unordered_map<OwnerId, OpenBytes> open_bytes;  // of owners that have counted holds
  Writers writers;

  std::vector<RowState> rows;  // by row number
  std::vector<std::uint16_t> rows_free;
  std::unordered_map<NsId, std::uint16_t> rows_by_ns;
  std::unordered_map<Key, std::uint16_t, KeyHash> rows_by_digest;

  std::vector<SlotId> former;  // slots kept for clients of a former process
  std::vector<SlotId> changed;
  std::vector<std::uint64_t> freed;
  std::size_t freed_compact_at = 1024;
  TableStats counts;
  std::function<void(const SlotInfo&)> observer;
  std::function<void(const ProgressOf&)> progress_observer;
  bool crowded = false;  // the last resort was needed: write-behind is to make room there

  // Touches a second, in sixteenths, from the `now` of calls: what turns milliseconds into touches.
  Nanos rate_since = 0;
  std::uint64_t rate_touches = 0, rate_16ths = 0;
};

template <class Visit>
void SlotTable::Impl::find_each(std::uint16_t row, std::uint16_t shard, std::span<const Key> keys,
                                Visit&& visit) const {
  // Three steps, kAhead keys apart: fetch the bucket, fetch the entry it names, compare. Loads in flight are about as many
  // as a core keeps, and there is little to waste where the run ends early.
  constexpr std::size_t kAhead = 16, kRing = 32;
  std::array<std::uint32_t, kRing> tags;
  std::array<SlotId, kRing> candidates;
  for (std::size_t step = 0; step < keys.size() + 2 * kAhead; ++step) {
    if (step < keys.size()) {
      tags[step % kRing] = tag(hash(row, shard, keys[step]));
      index.prefetch(tags[step % kRing]);
    }
    if (const std::size_t i = step - kAhead; step >= kAhead && i < keys.size()) {
      candidates[i % kRing] = index.candidate(tags[i % kRing]);
      if (candidates[i % kRing] != kNoSlot) __builtin_prefetch(&entries[candidates[i % kRing]]);
    }
    if (step < 2 * kAhead) continue;
    const std::size_t i = step - 2 * kAhead;
    SlotId slot = candidates[i % kRing];
    if (slot != kNoSlot && !named(slot, row, shard, keys[i])) {  // two tags alike: look further
      slot = lookup(row, shard, keys[i]);
    }
    if (!visit(i, slot)) return;
  }
}

}  // namespace kvstore
