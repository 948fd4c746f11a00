// One tier's slots: which blocks it has, where they lie, who holds them, and which goes next.
//
// The life of a slot
//
//   FREE -reserve-> RESERVED -seal-> SEALED -retire/evict-> RETIRED -last release-> FREE
//                       |  abort, lapse                         ^
//                       +--> FREE, or RETIRED while somebody still holds it or may still write it
//
// Rules
// - Only SEALED slots, and RESERVED ones that have published parts, can be held. Only SEALED ones are listed by find().
// - A RETIRED slot is unlisted at once and freed at its last release. Nothing held is ever reused.
// - A reservation that lapses while its writer may still write (in_place) is quarantined: RETIRED, and freed only when
//   that owner is gone (owner_gone) or says that it writes no more (abort, which still answers kStale). A late landing
//   thus never hits a slot that somebody else owns.
// - A lease lapses by time; a view and a pin's owner never do. Pins lapse by time too but refuse eviction meanwhile.
// - Entries are the slot headers. They lie in memory given by the caller; over shared memory they outlive the process
//   and recover() finds the sealed ones again. state is written last, so that a kill at any instruction leaves a
//   valid table. Slots that were viewed or reserved at the kill stay quarantined until former_clients_gone().
// - Decides, never moves a byte, never reads a clock, never locks: its owner (NodeCore, or a test) serialises.
// - An eviction is the owner's to decide: reserve() takes victims by the policy, hands each to `on_evict` before it is
//   unlisted, and never waits.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "policy.hpp"
#include "types.hpp"

namespace kvstore {

struct TableConfig {
  std::uint64_t bytes = 0;              // of the medium, a multiple of slab_bytes
  std::uint64_t slab_bytes = 64 << 20;  // a slab serves one size class at a time
  std::uint32_t header_bytes = 0;       // in front of each payload on the medium: 0 for memory, 4096 for files
  std::string policy = "leaf_lru";
  std::uint64_t hash_seed = 0x9e3779b97f4a7c15ull;  // of the index; random in production, so that nobody can aim keys
};

enum class SlotState : std::uint8_t { kFree = 0, kReserved = 1, kSealed = 2, kRetired = 3 };

enum class ReserveStatus : std::uint8_t {
  kGranted = 0,
  kHeld = 1,     // sealed already: putting what is held is a no-op
  kPending = 2,  // another owner is writing it
  kFull = 3,     // only pins and holds are left
  kTooLarge = 4, // a slot of this size does not fit a slab
};

// Which dirty slots are asked for.
enum class Dirty : std::uint8_t {
  kAll = 0,
  kFresh = 1,  // neither sunk nor passed over since they were last touched
  kLost = 2,   // sunk, not passed over, and not below any more
};

// Names one tenancy of a slot; a later tenancy of the same slot has another `tenancy`.
struct Ticket {
  SlotId slot = kNoSlot;
  std::uint32_t tenancy = 0;
};

struct Reserved {
  ReserveStatus status = ReserveStatus::kFull;
  Ticket ticket;
  std::uint64_t offset = 0;  // of the payload, in the medium
};

struct Found {
  SlotId slot = kNoSlot;     // kNoSlot: not here
};

struct Held {
  Ticket ticket;
  std::uint64_t offset = 0;
  std::uint32_t parts_ready = 0;
};

// What became of a reservation; of kPart, `parts_ready` says how many are there now, of kAbandoned how many were.
enum class Progress : std::uint8_t { kPart = 0, kSealed = 1, kAbandoned = 2 };
struct ProgressOf {
  NsId ns = kNoNamespace;
  std::uint16_t shard = 0;
  Key key;
  Progress progress = Progress::kPart;
  std::uint32_t parts_ready = 0;
};

enum class Outcome : std::uint8_t { kOk = 0, kStale = 1 /* lapsed, retired, or never so */, kBadInput = 2 };

// What is to be known of one sealed slot, for a mover, a checkpoint or an event. Spans are valid until the next call.
struct SlotInfo {
  Key key;
  Key parent;  // all zero: none known
  NsId ns = kNoNamespace;
  std::uint16_t shard = 0;
  std::uint32_t position = 0;  // in its chain
  SlotState state = SlotState::kFree;
  bool clean = false;   // a lower tier has it too
  bool sunk = false;    // went down since it was last touched
  bool passed = false;  // write-behind did not want it since it was last touched
  bool wanted = false;  // fetched or put again since it came, or hinted to be: evidence for a lower tier's admission
  Ticket ticket;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  std::uint32_t holds = 0;
  std::uint32_t parts_ready = 0;             // published; all of them once sealed
  std::span<const std::uint64_t> checksums;  // of the parts that are ready
  std::span<const std::uint8_t> meta;
};

struct TableStats {
  std::uint64_t slots_reserved = 0, slots_sealed = 0, slots_retired = 0;  // now
  std::uint64_t payload_bytes_sealed = 0;                                // now
  std::uint64_t bytes_free = 0;                                          // slabs without class, and free cells
  std::uint64_t holds = 0, pinned_bytes = 0;                             // now
  std::uint64_t evicted_clean = 0, evicted_dirty = 0, slabs_moved = 0, lapsed_reservations = 0, lapsed_leases = 0,
                quarantined = 0, aborted = 0, recovered = 0, recovered_rejected = 0;  // ever
  std::uint64_t index_bytes = 0;  // all memory beyond payload
};

class SlotTable {
 public:
  // `meta`: zeroed or recovered memory for entries and their checksums, at least meta_bytes(config) long, kept by the
  // caller while the table lives; nullptr: private memory. Sparse is fine: it is touched as it fills.
  SlotTable(const TableConfig& config, void* meta, std::size_t meta_bytes);
  ~SlotTable();
  SlotTable(const SlotTable&) = delete;
  SlotTable& operator=(const SlotTable&) = delete;
  static std::size_t meta_bytes(const TableConfig& config);

  // Shards and parts by namespace. `ns` is the caller's handle; `digest` names it across restarts.
  void add_namespace(NsId ns, const NamespaceSpec& spec);
  // Unlists everything of it at once; what is held goes at its last release.
  std::uint64_t drop_namespace(NsId ns);

  // Publishing. keys are consecutive blocks of a chain; `parent` is the key before keys[0], or nullptr at its start.
  // `meta[i]` may be empty. out.size() == keys.size(). Never grants past the first kFull of a call.
  // on_evict is called for each victim while it is still sealed.
  void reserve(OwnerId owner, NsId ns, std::uint16_t shard, std::span<const Key> keys, const Key* parent,
               std::span<const std::span<const std::uint8_t>> meta, const Hint& hint, bool in_place, Nanos now,
               Nanos lapse_after, std::span<Reserved> out);
  // Parts are published in order, each with its checksum; sealing takes those not yet published.
  Outcome publish_part(OwnerId owner, Ticket ticket, std::uint32_t part, std::uint64_t checksum);
  Outcome seal(OwnerId owner, Ticket ticket, std::span<const std::uint64_t> checksums);
  Outcome abort(OwnerId owner, Ticket ticket);  // the owner says that it will not write any more

  // Finding. Neither touches nor changes anything.
  void find(NsId ns, std::uint16_t shard, std::span<const Key> keys, std::span<Found> out) const;
  // How many of keys[0..) are sealed before the first that is not.
  std::size_t longest(NsId ns, std::uint16_t shard, std::span<const Key> keys) const;
  std::uint64_t shards_of(NsId ns, const Key& key) const;      // bitmap of sealed shards
  std::uint64_t publishing_of(NsId ns, const Key& key) const;  // of those reserved, with parts to be followed
  SlotInfo info(SlotId slot) const;  // state kFree for an id that is not in use
  SlotId slots_end() const;          // every id in use is below it; costs a look at each empty slab behind them
  SlotId next_used(SlotId from) const;  // the first id from there on that may be in use; kNoSlot: there is none
  // The row and header (record.hpp) that a RESERVED slot will have once sealed with these checksums; of a SEALED slot,
  // what it has (checksums empty). Appended. Sequences order two claims on the same bytes: the greater is the later.
  Outcome record(Ticket ticket, std::span<const std::uint64_t> checksums, std::vector<std::uint8_t>& out) const;
  void for_each_sealed(const std::function<void(const SlotInfo&)>& visit) const;

  // Holding: the longest run keys[0..n) that is here; one hold for all of it. n == 0: no hold is made.
  // following: RESERVED slots with published parts count as here (their run ends the hold).
  // open_max: the hold counts towards what its owner holds open, and the run ends before that is more bytes. 0: it does not count.
  HoldId hold(OwnerId owner, NsId ns, std::uint16_t shard, std::span<const Key> keys, HoldKind kind, bool following,
              const Hint& hint, Nanos now, Nanos lapse_after, std::vector<Held>& out, std::uint64_t open_max = 0);
  // What is about to be read, whatever is missing between: as a hold that is released at once.
  void touch(NsId ns, std::uint16_t shard, std::span<const Key> keys, const Hint& hint, Nanos now);
  // A hold of given slots, for the mover: not touched in the policy. Stale tickets are left out.
  HoldId hold_slots(OwnerId owner, std::span<const Ticket> tickets, std::vector<Held>& out);
  Outcome release(OwnerId owner, HoldId hold);
  void owner_gone(OwnerId owner);        // releases all it had; lifts its quarantine
  void expire(Nanos now);                // lapses what is due
  std::optional<Nanos> next_expiry() const;
  std::size_t holds_of(OwnerId owner) const;  // now in force

  // Leaving.
  Outcome retire(SlotId slot);                                     // by corruption, by an operator, by a clear
  std::size_t retire_keys(NsId ns, std::span<const Key> keys);     // all shards; returns slots unlisted
  void on_evict(std::function<void(const SlotInfo&)> observer);    // one observer
  // Called for each part that is published, each seal, and each reservation that ends without one. One observer.
  void on_progress(std::function<void(const ProgressOf&)> observer);
  // Of the first `bytes` that reserve() would evict, in its order, those that are not clean: the write-behind's work. What
  // is warmer is left alone, and so a full tier comes to rest.
  void dirty_victims(std::uint64_t bytes, std::vector<Ticket>& out, Dirty which = Dirty::kAll) const;
  // Marks of sealed slots; stale tickets are left out. A touch (a hold by name, a put of what is held) ends sunk and passed.
  void mark_clean(Ticket ticket);   // it is below now: clean and sunk
  void mark_lost(Ticket ticket);    // it went down, and is not there any more: sunk, and not clean
  void mark_dirty(Ticket ticket);   // it is not below: write-behind is to look at it as if it had just come
  void mark_passed(Ticket ticket);  // write-behind does not want it
  void mark_swept(Ticket ticket);   // it had to go below, for room: dirty, and passed over unless it was touched since it went down

  // Restart. `resolve` gives the handle of a namespace digest once it is open; recovered slots of namespaces not yet
  // open wait, unlisted but kept, until add_namespace. Entries that do not check are dropped and counted.
  std::size_t recover();
  bool quarantine_left() const;
  void former_clients_gone();
  // A file tier's start: one row a slot (docs/format/slot.md). Rows that overlap or do not check are dropped. `epochs`: up
  // to where former processes may have counted; whatever is written from now on wins over all that they left.
  std::size_t restore(std::span<const std::uint8_t> rows, std::uint32_t epochs = 0);
  // How often a slab was given a cell size: nothing was written under a later epoch yet. What a checkpoint must outlive.
  std::uint32_t epochs() const;
  // Changes since the last call, for the checkpoint: rows of slots sealed (or marked clean), and payload offsets freed.
  // At most `max` of both together, frees first; apply the frees of a call before its rows. Fewer than `max`: there are
  // no more. Kept only where there are headers (header_bytes > 0).
  void drain_changes(std::size_t max, std::vector<std::uint8_t>& sealed_rows, std::vector<std::uint64_t>& freed_offsets);

  TableStats stats() const;
  // All slots are in exactly one list, holds and states agree, slabs add up. Throws std::logic_error naming what is not.
  void check_integrity() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvstore
