// Any history of a slot table adds up: random verbs over two namespaces of two shards, restarts among them, and
// check_integrity() after every step. With a seed: that one alone.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "core/slot_table.hpp"

using namespace kvstore;

namespace {

Key key_of(std::uint64_t n) {
  std::mt19937_64 random(n * 7919 + 1);
  Key key;
  for (std::size_t i = 0; i < 4; ++i) {
    const std::uint64_t word = random();
    std::memcpy(key.bytes.data() + 8 * i, &word, 8);
  }
  return key;
}

struct Reservation {
  OwnerId owner;
  Ticket ticket;
  std::size_t parts;
};
struct Held1 {
  OwnerId owner;
  HoldId hold;
};

// One table and what its owners believe they have.
class Wanderer {
 public:
  explicit Wanderer(unsigned seed) : random_(seed) {
    config_.bytes = 4 * 32 * kSlotAlign;
    config_.slab_bytes = 32 * kSlotAlign;
    config_.header_bytes = seed % 2 == 0 ? 0 : kSlotAlign;
    config_.policy = seed % 3 == 0 ? "s3_fifo" : "leaf_lru";
    meta_.resize(SlotTable::meta_bytes(config_) / sizeof(Line) + 1);
    restart();
  }

  void step() {
    now_ += static_cast<Nanos>(below(50));
    switch (below(12)) {
      case 0: case 1: case 2: return reserve();
      case 3: case 4: case 5: return seal();
      case 6: return abort_or_publish();
      case 7: case 8: return hold();
      case 9: return release();
      case 10: return rarer();
      default: return table_->expire(now_);
    }
  }
  SlotTable& table() { return *table_; }
  std::uint64_t evicted = 0, recovered = 0, moved = 0, lapsed = 0, quarantined = 0;

 private:
  struct alignas(64) Line {
    std::uint8_t bytes[64];
  };
  std::uint64_t below(std::uint64_t n) { return random_() % n; }
  OwnerId owner() { return 1 + below(3); }

  void open() {
    for (NsId ns = 0; ns < 2; ++ns) {
      NamespaceSpec spec;
      spec.digest = key_of(1000 + ns);
      const std::uint32_t bytes = ns == 0 ? 4096 : 9000;
      spec.shards.push_back({bytes, {bytes}});
      spec.shards.push_back({3000, {1000, 2000}});
      table_->add_namespace(ns, spec);
    }
  }
  void restart() {
    const bool again = table_ != nullptr;
    if (again) count();
    table_.reset();
    table_ = std::make_unique<SlotTable>(config_, meta_.data(), meta_.size() * sizeof(Line));
    if (again) recovered += table_->recover();
    table_->check_integrity();
    open();
    reservations_.clear();
    holds_.clear();
  }
  void count() {
    const TableStats stats = table_->stats();
    evicted += stats.evicted_clean + stats.evicted_dirty;
    moved += stats.slabs_moved;
    lapsed += stats.lapsed_leases + stats.lapsed_reservations;
    quarantined += stats.quarantined;
  }
  std::vector<Key> chain() {
    from_ = below(6);
    base_ = below(4) * 100;
    std::vector<Key> keys;
    branch_ = 10 * below(3);
    for (std::uint64_t i = 0, n = 1 + below(10); i < n; ++i) keys.push_back(key_at(from_ + i));
    return keys;
  }
  // Chains part after their third block.
  Key key_at(std::uint64_t i) const { return key_of(base_ + i + (i < 3 ? 0 : branch_)); }

  void reserve() {
    const NsId ns = static_cast<NsId>(below(2));
    const auto shard = static_cast<std::uint16_t>(below(2));
    const std::vector<Key> keys = chain();
    const Key parent = from_ > 0 ? key_at(from_ - 1) : Key{};
    const std::vector<std::uint8_t> bytes(below(100), 7);
    const std::vector<std::span<const std::uint8_t>> meta(keys.size(), bytes);
    Hint hint;
    hint.end = below(4) == 0;
    hint.priority = static_cast<std::int8_t>(static_cast<int>(below(3)) - 1);
    hint.expected_return_ms = static_cast<std::uint32_t>(below(100));
    const OwnerId who = owner();
    std::vector<Reserved> out(keys.size());
    table_->reserve(who, ns, shard, keys, from_ > 0 ? &parent : nullptr, meta, hint, below(2) == 1, now_,
                    100 + static_cast<Nanos>(below(400)), out);
    for (const Reserved& one : out) {
      if (one.status == ReserveStatus::kGranted) reservations_.push_back({who, one.ticket, shard + 1u});
    }
  }
  void seal() {
    for (int i = 0; i < 6 && !reservations_.empty(); ++i) {
      const std::size_t at = below(reservations_.size());
      const std::uint64_t checksums[2] = {1, 2};
      const Reservation one = reservations_[at];
      table_->seal(one.owner, one.ticket, {checksums, one.parts});
      reservations_.erase(reservations_.begin() + static_cast<std::ptrdiff_t>(at));
    }
  }
  void abort_or_publish() {
    if (reservations_.empty()) return;
    const Reservation one = reservations_[below(reservations_.size())];
    if (below(2) == 0) {
      table_->abort(one.owner, one.ticket);
    } else {
      table_->publish_part(one.owner, one.ticket, 0, 1);
    }
  }
  void hold() {
    std::vector<Held> run;
    const std::vector<Key> keys = chain();
    const OwnerId who = owner();
    const HoldId id = table_->hold(who, static_cast<NsId>(below(2)), static_cast<std::uint16_t>(below(2)), keys,
                                   static_cast<HoldKind>(below(3)), below(2) == 1, {}, now_,
                                   50 + static_cast<Nanos>(below(300)), run, below(2) * (1 + below(6)) * kSlotAlign);
    if (id != 0) holds_.push_back({who, id});
  }
  void release() {
    if (holds_.empty()) return;
    const std::size_t at = below(holds_.size());
    table_->release(holds_[at].owner, holds_[at].hold);
    holds_.erase(holds_.begin() + static_cast<std::ptrdiff_t>(at));
  }
  void rarer() {
    std::vector<Ticket> dirty;
    std::vector<std::uint8_t> rows;
    std::vector<std::uint64_t> freed;
    switch (below(8)) {
      case 0: return table_->owner_gone(owner());
      case 1: return void(table_->retire(static_cast<SlotId>(below(40))));
      case 2: return void(table_->retire_keys(static_cast<NsId>(below(2)), chain()));
      case 3: table_->drop_namespace(static_cast<NsId>(below(2))); return open();
      case 4:
        table_->dirty_victims(10 * kSlotAlign, dirty);
        for (const Ticket ticket : dirty) table_->mark_clean(ticket);
        return;
      case 5: return table_->drain_changes(5, rows, freed);
      case 6: return restart();
      default: return table_->former_clients_gone();
    }
  }

  std::mt19937_64 random_;
  TableConfig config_;
  std::vector<Line> meta_;
  std::unique_ptr<SlotTable> table_;
  std::vector<Reservation> reservations_;
  std::vector<Held1> holds_;
  std::uint64_t from_ = 0, base_ = 0, branch_ = 0;
  Nanos now_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  const unsigned first = argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : 1, runs = argc > 1 ? 1 : 150;
  std::uint64_t evicted = 0, recovered = 0, moved = 0, lapsed = 0, quarantined = 0;
  for (unsigned seed = first; seed < first + runs; ++seed) {
    Wanderer wanderer(seed);
    for (int step = 0; step < 400; ++step) {
      try {
        wanderer.step();
        wanderer.table().check_integrity();
      } catch (const std::logic_error& error) {
        std::fprintf(stderr, "seed %u, step %d: %s\n", seed, step, error.what());
        return 1;
      }
    }
    evicted += wanderer.evicted, recovered += wanderer.recovered, moved += wanderer.moved;
    lapsed += wanderer.lapsed, quarantined += wanderer.quarantined;
  }
  if (argc == 1) {  // they went where they were meant to go
    CHECK(evicted > 1000);
    CHECK(recovered > 1000);
    CHECK(moved > 50);
    CHECK(lapsed > 100);
    CHECK(quarantined > 100);
  }
  return kvstore::test::finish();
}
