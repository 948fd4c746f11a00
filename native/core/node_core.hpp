// A node's state and rules: namespaces, the memory and file tables, fetches that wait for a promotion, counters.
//
// Rules
// - Thread-safe: one mutex; every call is microseconds and none waits. The door's thread and Python both call in.
// - `now` is an argument everywhere (CLOCK_MONOTONIC in production).
// - A fetch is answered exactly once, through its callback, on whichever thread settled it; callbacks run after the mutex
//   is let go and must not block.
// - Nothing waits for a slot while holding one: a parked fetch holds nothing.
// - Python's part is fed by a work queue: `work_fd` (an eventfd) turns readable when take_work() has something.
// - What a caller got wrong is answered, never thrown: callers are peers. Throwing is for what the node itself got wrong.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "counters.hpp"
#include "slot_table.hpp"
#include "superblock.hpp"
#include "types.hpp"
#include "watches.hpp"

namespace kvstore {

struct CoreConfig {
  TableConfig memory;
  std::optional<TableConfig> file;
  std::uint64_t window_bytes = 256ull << 20;  // at most a quarter of memory is used, see window_bytes()
  std::uint64_t answer_bytes_max = 8ull << 20;  // a run is cut so that its answer (24 bytes a slot, 8 a part) fits
  Nanos reserve_lapse = 30'000'000'000;
  Nanos lease_max = 60'000'000'000;
  Nanos promote_retry = 10'000'000'000;  // a promotion not heard of for so long is asked for again
  std::uint32_t keys_per_call_max = 65'536;
  std::uint32_t holds_per_owner_max = 65'536;
  std::uint32_t namespaces_max = 4'096;
  std::uint32_t parked_max = 4'096;
  std::uint32_t watches_max = 4'096;
  std::uint32_t works_max = 16'384;  // beyond it, what nobody waits for is dropped
  std::uint32_t families_max = 1'000;
  std::uint32_t events_max = 65'536;
  std::uint64_t event_meta_bytes_max = 16ull << 20;
  std::uint64_t pinned_bytes_max = 0;  // 0: a quarter of memory
  std::uint64_t held_bytes_max = 0;    // that an owner holds open, each block once; 0: half of memory
  double free_share = 0.25;            // write-behind begins when less of memory is free
};

struct LookupAnswer {
  std::uint32_t blocks = 0;         // the boundary
  std::vector<std::uint8_t> tiers;  // a Tier per block before the boundary: the slowest that a need must read there
  Nanos estimate = 0;               // how long fetching what the needs read should take
};

enum class PacksGone : std::uint8_t {
  kForgotten = 0,  // they are there, and not known any more
  kSwept = 1,      // for room
  kLost = 2,       // missing, damaged, or deleted by an operator
};

enum class FetchStatus : std::uint8_t { kOk = 0, kStaleNamespace = 1, kRejected = 2, kBadInput = 3 };

// What a HOLD gives: the run that is up, which may be shorter than asked. hold == 0: nothing is held.
struct FetchAnswer {
  FetchStatus status = FetchStatus::kOk;
  const char* field = "";                // of a status that is not kOk
  std::uint64_t limit = 0;
  HoldId hold = 0;
  Nanos lease = 0;
  bool window_full = false;              // the run was cut by the window, ask again from its end
  std::uint64_t block_bytes = 0;
  std::vector<Held> slots;               // in chain order
  std::vector<std::uint8_t> tiers;       // where each was found when it was asked for
  std::vector<std::uint64_t> checksums;  // parts of each, in order (only parts_ready of them for a follower)
};
using FetchDone = std::function<void(FetchAnswer&&)>;

struct FetchRequest {
  OwnerId owner = 0;
  NsId ns = kNoNamespace;
  std::uint16_t shard = 0;
  HoldKind kind = HoldKind::kLease;
  bool following = false;
  bool held_open = false;  // for as long as its owner likes: counts towards held_bytes_max
  Hint hint;
  Nanos deadline = 0;
  Nanos lease = 0;  // 0: lease_max, which is the most for all but pins
};

struct Work {
  enum class Kind : std::uint8_t {
    kPromote = 0,      // these keys are wanted in memory (a parked fetch, or the rest of its prompt)
    kWriteBehind = 1,  // the memory tier has crossed its watermark: demote
    kCorrupt = 2,      // a client says that this memory slot does not verify: check it, retire it
    kProbe = 3,        // a chain ended at keys[0], which no tier is known to have: look for its packs
  } kind = Kind::kPromote;
  NsId ns = kNoNamespace;
  std::uint16_t shard = 0;
  bool wanted_now = false;  // a fetch is parked on it, or has ended at it
  std::uint32_t position = 0;  // kProbe: of keys[0] in its chain
  std::vector<Key> keys;
  std::vector<std::uint8_t> tiers;  // kPromote: where each was found
  Ticket ticket;
};

struct Event {  // for Watch
  std::uint64_t sequence = 0;
  enum class Kind : std::uint8_t { kStored = 0, kRemoved = 1, kCleared = 2 } kind = Kind::kStored;
  NsId ns = kNoNamespace;
  std::uint16_t shard = 0;
  Tier tier = Tier::kNone;
  Key key;
  Key parent;
  std::vector<std::uint8_t> meta;
};

// Slots as arrays, for movers, checkpoints and administration.
struct SlotRows {
  std::vector<Ticket> tickets;
  std::vector<Key> keys, parents;
  std::vector<NsId> ns;
  std::vector<std::uint16_t> shards;
  std::vector<std::uint8_t> states, clean, wanted;
  std::vector<std::uint64_t> offsets, bytes;
  std::vector<std::uint32_t> positions, holds, checksum_counts;
  std::vector<std::uint64_t> checksums;
  std::vector<std::vector<std::uint8_t>> metas;

  void add(const SlotInfo& info);
};

struct HeldKeys {
  std::vector<Key> keys;
  std::vector<NsId> ns;
  std::vector<std::uint64_t> shards;
  std::vector<std::uint8_t> tiers;
};

struct Changes {
  std::uint64_t sequence = 0;  // up to here
  bool gap = false;
  std::vector<Key> keys;
  std::vector<NsId> ns;
  std::vector<NsId> cleared;  // namespaces, after which none of their keys is listed
};

struct CountersCopy {
  CoreCounters totals;
  std::vector<NamespaceCounts> namespaces;  // index: NsId of those that are listed in `ns`
  std::vector<NsId> ns;
  std::vector<FamilyCounts> families;
  std::uint64_t parked = 0, works = 0, namespaces_open = 0;
};

// Shards, parts and sizes within the limits of types.hpp.
bool namespace_is_good(const NamespaceSpec& spec);

class NodeCore {
 public:
  // `meta`: the memory tier's meta segment (superblock.hpp), kept by the caller while the core lives. Throws
  // std::invalid_argument if it is of another format or geometry.
  NodeCore(const CoreConfig& config, void* meta, std::size_t meta_bytes, std::uint64_t incarnation);
  ~NodeCore();
  NodeCore(const NodeCore&) = delete;
  NodeCore& operator=(const NodeCore&) = delete;

  const CoreConfig& config() const noexcept;
  std::uint64_t window_bytes() const noexcept;  // as clamped
  std::uint64_t incarnation() const noexcept;
  std::uint64_t former_incarnation() const noexcept;
  std::size_t recovered() const noexcept;
  OwnerId new_owner();

  // Clients of the segment (superblock.hpp). When no former client is left, what they kept is freed.
  bool client_joined(OwnerId owner, std::uint32_t pid, std::uint64_t start);
  void client_left(OwnerId owner);
  std::vector<ClientEntry> former_clients() const;
  bool former_client_gone(std::uint32_t pid, std::uint64_t session, std::uint64_t incarnation);
  bool quarantine_left() const;

  NsId open_namespace(const NamespaceSpec& spec);  // the same digest gives the same handle; kNoNamespace: limit, or a bad spec
  bool drop_namespace(NsId ns);                    // clear: later calls with the handle answer kStaleNamespace
  std::optional<NamespaceSpec> namespace_spec(NsId ns) const;
  std::vector<NsId> namespaces() const;  // those open
  // There is an object tier, of which at most so many blocks are known (0: there is none). Write-behind is asked for even if
  // there is no file tier. Not while others call in.
  void set_object_tier(std::size_t blocks_max);
  void object_answers(bool answers);  // false: what lies there is not counted on, as its store does not answer
  void object_known(NsId ns, std::uint16_t shard, std::span<const Key> keys);
  void object_gone(NsId ns, std::uint16_t shard, std::span<const Key> keys, PacksGone why);
  std::size_t object_blocks() const;  // how many are known
  void forget_probes();               // holes asked about once may be asked about again

  FetchStatus lookup(NsId ns, std::span<const Key> keys, std::span<const Need> needs, LookupAnswer& out);
  FetchStatus reserve(Tier tier, OwnerId owner, NsId ns, std::uint16_t shard, std::span<const Key> keys, const Key* parent,
                      std::span<const std::span<const std::uint8_t>> meta, const Hint& hint, bool in_place, Nanos now,
                      std::span<Reserved> out);
  Outcome publish_part(OwnerId owner, Ticket ticket, std::uint32_t part, std::uint64_t checksum);
  // One outcome per ticket; checksums are those of all tickets, concatenated, each without the parts it has published.
  void seal(Tier tier, OwnerId owner, std::span<const Ticket> tickets, std::span<const std::uint64_t> checksums,
            std::span<Outcome> out, MovePath path, Nanos elapsed);
  void abort(Tier tier, OwnerId owner, std::span<const Ticket> tickets);
  void fetch(const FetchRequest& request, std::span<const Key> keys, Nanos now, FetchDone done);
  Outcome release(Tier tier, OwnerId owner, HoldId hold);
  void fetched(const FetchedReport& report);
  void put_took(MovePath path, std::uint64_t bytes, Nanos elapsed);  // of a put whose blocks were sealed one by one
  void report_corrupt(OwnerId owner, Ticket ticket);
  void owner_gone(OwnerId owner);  // its parked fetches are answered empty
  void tick(Nanos now);            // lapses leases and reservations, answers fetches past their deadline
  std::optional<Nanos> next_deadline() const;
  // Called after next_deadline() has come nearer, on the thread that did it. One hook; not while others call in.
  void on_earlier_deadline(std::function<void()> hook);

  // For the mover. tables are reached under the core's mutex through with_memory / with_file.
  int work_fd() const;
  std::vector<Work> take_work(std::size_t max);
  // The keys asked to be promoted have ended (up, or not to be had): settle the fetches parked on them.
  void promoted(NsId ns, std::uint16_t shard, std::span<const Key> keys, Nanos now);
  void with_memory(const std::function<void(SlotTable&)>& use);
  bool with_file(const std::function<void(SlotTable&)>& use);  // false: there is none
  bool has(Tier tier) const noexcept;
  // The run from keys[0] that is sealed in the tier, held for the mover.
  HoldId hold_run(Tier tier, OwnerId owner, NsId ns, std::uint16_t shard, std::span<const Key> keys, Nanos now, SlotRows& out);
  HoldId hold_slots(Tier tier, OwnerId owner, std::span<const Ticket> tickets, SlotRows& out);
  void info(Tier tier, std::span<const Ticket> tickets, SlotRows& out);  // stale ones are left out
  // The headers (record.hpp) of reserved slots that will be sealed with these checksums, each in a page of its own.
  Outcome headers(Tier tier, std::span<const Ticket> tickets, std::span<const std::uint64_t> checksums,
                  std::span<std::uint8_t> pages) const;
  SlotId scan(Tier tier, SlotId after, std::size_t max, SlotRows& out);  // sealed ones; kNoSlot: the end
  std::size_t retire(Tier tier, std::span<const Ticket> tickets, bool corrupt);
  std::size_t retire_keys(NsId ns, std::span<const Key> keys);  // all shards, memory and file
  // After a start, with what each tier has listed: clean memory slots of which no tier below has a copy are dirty again. So are
  // those of files where the packs that made them clean are not what lies below now (packs_below false).
  std::size_t recheck_clean(bool packs_below);
  NsId ticket_namespace(Ticket ticket) const;                   // of a memory slot; kNoNamespace: stale

  void count_failed_reads(Tier tier, std::uint64_t blocks);
  void count_moved(Tier from, Tier to, std::uint64_t blocks);
  CountersCopy counters() const;

  // Events after `sequence`. gap: some of them are not kept any more.
  std::vector<Event> events_since(std::uint64_t sequence, std::size_t max, bool& gap) const;
  std::uint64_t event_sequence() const;

  // For those who follow what is being published (node_core_progress.cpp): woken by parts and seals of these keys in memory,
  // by reservations of them that end without a seal, and by the end of the namespace. 0: there are too many, or it is not
  // open. watch_fd (an eventfd) turns readable when take_woken() has something.
  std::uint64_t watch(NsId ns, std::uint16_t shard, std::span<const Key> keys);
  void unwatch(std::uint64_t watch);
  int watch_fd() const;
  std::vector<Woken> take_woken();

  // For the directory (node_core_claims.cpp): which shards of each key memory and files hold, and the nearest tier of any
  // (0: none). Of a key of which neither holds anything: which shards are being published, and kPublishing. A namespace that
  // is not open holds nothing.
  static constexpr std::uint8_t kPublishing = 4;
  void held(NsId ns, std::span<const Key> keys, std::span<std::uint64_t> shards, std::span<std::uint8_t> tiers) const;
  // The same of one tier alone, for whoever tells it apart.
  void held_in(Tier tier, NsId ns, std::span<const Key> keys, std::span<std::uint64_t> shards) const;
  // All that is held, each key once, from where the last call ended (0: the beginning). `ns`: of that namespace only. At
  // most `max` keys, and as many slots are looked at. 0: the end.
  std::uint64_t scan_held(std::uint64_t after, std::size_t max, NsId ns, HeldKeys& out) const;
  // Keys that came or went after `sequence`, as often as they did. gap: some are not known any more.
  Changes changes_since(std::uint64_t sequence, std::size_t max) const;
  // Keys whose first part was published, or that were given up after it: those after `sequence` that are still known.
  Changes begun_since(std::uint64_t sequence, std::size_t max) const;
  std::uint64_t begun_sequence() const;
  std::optional<Key> namespace_digest(NsId ns) const;  // also once it is cleared
  NsId namespaces_end() const;                         // every handle is below it

  struct Impl;  // node_core_impl.hpp

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvstore
