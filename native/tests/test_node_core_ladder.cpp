// What memory and files know of each other, and what goes when a chain is longer than a tier.
#include "core_rig.hpp"

using namespace kvstore;
using namespace kvstore::test;

namespace {

// What a tier has been asked to write, by key.
std::vector<Key> dirty(Core& node, Tier tier, Dirty which) {
  std::vector<Ticket> tickets;
  const auto ask = [&](SlotTable& table) { table.dirty_victims(1ull << 40, tickets, which); };
  tier == Tier::kFile ? void(node.core->with_file(ask)) : node.core->with_memory(ask);
  SlotRows rows;
  node.core->info(tier, tickets, rows);
  return rows.keys;
}

void mark(Core& node, Tier tier, NsId ns, const std::vector<Key>& keys, void (SlotTable::*as)(Ticket)) {
  const auto all = [&](SlotTable& table) {
    std::vector<Found> found(keys.size());
    table.find(ns, 0, keys, found);
    for (const Found& one : found)
      if (one.slot != kNoSlot) (table.*as)(table.info(one.slot).ticket);
  };
  tier == Tier::kFile ? void(node.core->with_file(all)) : node.core->with_memory(all);
}

constexpr std::uint32_t kSlabful = (1u << 20) - 4096;  // a block a slab, in memory and in files: 16 each

void what_files_let_go_is_dirty_in_memory() {
  Core node;
  node.core->set_object_tier(1'000);
  const NsId ns = node.core->open_namespace(spec_of(1, {kSlabful}));
  const auto keys = chain_of(1, 4), others = chain_of(100, 16);
  for (const Key& key : keys) {
    node.store(Tier::kMemory, ns, 0, {key});
    node.store(Tier::kFile, ns, 0, {key});
  }
  CHECK(dirty(node, Tier::kMemory, Dirty::kFresh).size() == 4);
  mark(node, Tier::kMemory, ns, keys, &SlotTable::mark_clean);
  CHECK(dirty(node, Tier::kMemory, Dirty::kAll).empty());
  mark(node, Tier::kFile, ns, {keys[0]}, &SlotTable::mark_clean);  // in a pack
  node.core->object_known(ns, 0, std::array{keys[1]});             // in a pack, and files were not told yet
  for (const Key& key : others) node.store(Tier::kFile, ns, 0, {key});  // files are 16 blocks: all four go
  const std::vector<Key> last = {keys[2], keys[3]};
  CHECK(dirty(node, Tier::kMemory, Dirty::kLost) == last);
  CHECK(dirty(node, Tier::kMemory, Dirty::kAll) == last);
  CHECK(dirty(node, Tier::kMemory, Dirty::kFresh).empty());
  CHECK(node.core->counters().totals.demotions_dropped == 0);
  // Whoever asks for it makes it worth another look.
  const auto got = node.fetch(ns, {keys[2]}, 0, 0);
  node.core->release(Tier::kMemory, node.owner, (*got)[0].hold);
  CHECK(dirty(node, Tier::kMemory, Dirty::kFresh) == std::vector<Key>({keys[2]}));
  CHECK(dirty(node, Tier::kMemory, Dirty::kLost) == std::vector<Key>({keys[3]}));
  // A damaged copy is no copy, and says nothing of how often its block is wanted.
  node.core->drop_namespace(ns);
  const NsId again = node.core->open_namespace(spec_of(2, {kSlabful}));
  node.store(Tier::kMemory, again, 0, {keys[0]});
  node.store(Tier::kFile, again, 0, {keys[0]});
  mark(node, Tier::kMemory, again, {keys[0]}, &SlotTable::mark_clean);
  SlotRows rows;
  node.core->scan(Tier::kFile, 0, 10, rows);
  CHECK(node.core->retire(Tier::kFile, rows.tickets, true) == 1);
  CHECK(dirty(node, Tier::kMemory, Dirty::kFresh) == std::vector<Key>({keys[0]}));
  // So is one that a start does not find.
  mark(node, Tier::kMemory, again, {keys[0]}, &SlotTable::mark_clean);
  CHECK(node.core->recheck_clean(true) == 1 && node.core->recheck_clean(true) == 0);
  node.core->with_memory([](SlotTable& table) { table.check_integrity(); });
}

// What makes a file slot clean is a pack. When it goes, that depends on why; what memory has of it goes by files, or where
// they have not got it, by the pack.
void what_a_pack_leaves_behind() {
  for (const PacksGone why : {PacksGone::kForgotten, PacksGone::kSwept, PacksGone::kLost}) {
    Core node;
    node.core->set_object_tier(1'000);
    const NsId ns = node.core->open_namespace(spec_of(1, {kSlabful}));
    const auto keys = chain_of(1, 4);  // 0, 1: in files and in memory; 2, 3: in memory alone. 1 and 3 are touched once below
    for (const Key& key : keys) node.store(Tier::kMemory, ns, 0, {key});
    for (const Key& key : {keys[0], keys[1]}) node.store(Tier::kFile, ns, 0, {key});
    mark(node, Tier::kMemory, ns, keys, &SlotTable::mark_clean);
    mark(node, Tier::kFile, ns, keys, &SlotTable::mark_clean);
    node.core->object_known(ns, 0, keys);
    const auto got = node.fetch(ns, {keys[3]}, 0, 0);
    node.core->release(Tier::kMemory, node.owner, (*got)[0].hold);
    node.core->with_file([&](SlotTable& table) { table.touch(ns, 0, {&keys[1], 1}, {}, 0); });
    node.core->object_gone(ns, 0, keys, why);
    CHECK(node.core->object_blocks() == 0);
    using Keys = std::vector<Key>;
    const bool gone = why != PacksGone::kForgotten, lost = why == PacksGone::kLost;
    CHECK(dirty(node, Tier::kFile, Dirty::kAll) == (gone ? Keys{keys[0], keys[1]} : Keys{}));
    CHECK(dirty(node, Tier::kFile, Dirty::kFresh) == (lost ? Keys{keys[0], keys[1]} : gone ? Keys{keys[1]} : Keys{}));
    CHECK(dirty(node, Tier::kMemory, Dirty::kAll) == (gone ? Keys{keys[2], keys[3]} : Keys{}));
    CHECK(dirty(node, Tier::kMemory, Dirty::kFresh) == (lost ? Keys{keys[2], keys[3]} : gone ? Keys{keys[3]} : Keys{}));
    CHECK(dirty(node, Tier::kMemory, Dirty::kLost).empty());
    if (why != PacksGone::kSwept) continue;
    // Files let go of both: what was passed over there is in memory too, what was not is the object tier's work from there.
    for (const Key& key : chain_of(100, 16)) node.store(Tier::kFile, ns, 0, {key});
    CHECK(dirty(node, Tier::kMemory, Dirty::kLost) == Keys{keys[1]});
    const auto again = node.fetch(ns, {keys[0]}, 0, 0);  // until somebody asks for it
    node.core->release(Tier::kMemory, node.owner, (*again)[0].hold);
    CHECK(dirty(node, Tier::kMemory, Dirty::kFresh) == (Keys{keys[3], keys[0]}));
  }
}

// A store that is smaller than what lies above it: each pack pushes out another, and that is not written again for it.
void sweeps_come_to_rest() {
  for (const std::size_t room : {1u, 5u, 15u}) {
    Core node;
    node.core->set_object_tier(1'000);
    const NsId ns = node.core->open_namespace(spec_of(1, {kSlabful}));
    for (std::uint32_t chain = 0; chain < 4; ++chain) {
      for (const Key& key : chain_of(100 * chain, 4)) node.store(Tier::kFile, ns, 0, {key});
    }
    std::vector<Key> stored;
    std::size_t writes = 0;
    const auto settle = [&] {
      for (std::vector<Key> fresh; !(fresh = dirty(node, Tier::kFile, Dirty::kFresh)).empty() && writes < 1'000;) {
        stored.push_back(fresh[0]);
        writes += 1;
        node.core->object_known(ns, 0, {&fresh[0], 1});
        mark(node, Tier::kFile, ns, {fresh[0]}, &SlotTable::mark_clean);
        if (stored.size() <= room) continue;
        node.core->object_gone(ns, 0, {&stored[0], 1}, PacksGone::kSwept);
        stored.erase(stored.begin());
      }
    };
    settle();
    CHECK(writes == 16);
    node.core->object_gone(ns, 0, {&stored[0], 1}, PacksGone::kLost);
    settle();
    CHECK(writes == 17);
    node.core->with_file([&](SlotTable& table) { table.touch(ns, 0, chain_of(0, 4), {}, 0); });
    settle();
    CHECK(writes <= 21);
  }
}

// What made a slot clean may not be below any more when a node starts again.
void a_start_without_a_tier_makes_its_copies_dirty() {
  Core node;
  const NsId ns = node.core->open_namespace(spec_of(1, {kSlabful}));
  const auto keys = chain_of(1, 3);
  node.store(Tier::kMemory, ns, 0, {keys[0]});
  for (const Key& key : {keys[1], keys[2]}) node.store(Tier::kFile, ns, 0, {key});
  mark(node, Tier::kMemory, ns, {keys[0]}, &SlotTable::mark_clean);
  mark(node, Tier::kFile, ns, {keys[1]}, &SlotTable::mark_clean);
  CHECK(node.core->recheck_clean(true) == 1);
  CHECK(dirty(node, Tier::kMemory, Dirty::kFresh) == std::vector<Key>({keys[0]}));
  CHECK(dirty(node, Tier::kFile, Dirty::kFresh) == std::vector<Key>({keys[2]}));
  CHECK(node.core->recheck_clean(false) == 1);
  CHECK(dirty(node, Tier::kFile, Dirty::kFresh).size() == 2);
}

// Files that are smaller than the cold part of memory, and lose with each write what is to be written next.
void write_behind_comes_to_rest() {
  for (const std::uint32_t slots : {1u, 3u, 8u, 15u}) {
    CoreConfig config;
    Core node(config, slots);
    const NsId ns = node.core->open_namespace(spec_of(1, {kSlabful}));
    for (std::uint32_t chain = 0; chain < 4; ++chain) node.store(Tier::kMemory, ns, 0, chain_of(100 * chain, 4));
    std::size_t writes = 0;
    const auto settle = [&] {
      for (std::vector<Key> fresh; !(fresh = dirty(node, Tier::kMemory, Dirty::kFresh)).empty() && writes < 1'000;) {
        for (const Key& key : fresh) {
          Reserved slot;
          CHECK(node.core->reserve(Tier::kFile, node.owner, ns, 0, {&key, 1}, nullptr, {}, {}, true, 0, {&slot, 1}) == FetchStatus::kOk);
          if (slot.status == ReserveStatus::kGranted) {
            std::vector<Outcome> out(1);
            node.core->seal(Tier::kFile, node.owner, std::array{slot.ticket}, std::array{std::uint64_t{7}}, out, MovePath::kPutMapped, 0);
            writes += 1;
          }
          mark(node, Tier::kMemory, ns, {key}, &SlotTable::mark_clean);
        }
      }
    };
    settle();
    CHECK(writes == 16);
    CHECK(dirty(node, Tier::kMemory, Dirty::kLost).size() == 16 - slots);  // and the marks say what is where
    const auto got = node.fetch(ns, chain_of(0, 4), 0, 0);
    node.core->release(Tier::kMemory, node.owner, (*got)[0].hold);
    settle();
    CHECK(writes <= 20);
  }
}

void what_is_dropped_is_counted_once() {
  const auto dropped = [](Core& node) { return node.core->counters().totals.demotions_dropped; };
  for (const bool objects : {false, true}) {
    Core node;
    if (objects) node.core->set_object_tier(1'000);
    const NsId ns = node.core->open_namespace(spec_of(1, {kSlabful}));
    const auto keys = chain_of(1, 6);
    for (const Key& key : keys) node.store(Tier::kMemory, ns, 0, {key});
    node.store(Tier::kFile, ns, 0, {keys[1]});                                         // there, and memory not told
    mark(node, Tier::kMemory, ns, {keys[2]}, &SlotTable::mark_passed);                 // not wanted below
    mark(node, Tier::kMemory, ns, {keys[3]}, &SlotTable::mark_clean);
    mark(node, Tier::kMemory, ns, {keys[4]}, &SlotTable::mark_lost);                   // files had it
    node.core->object_known(ns, 0, std::array{keys[5]});
    for (std::uint64_t i = 0; i < 10; ++i) node.store(Tier::kMemory, ns, 0, chain_of(100 + i, 1));
    CHECK(dropped(node) == 0);
    for (std::uint64_t i = 10; i < 16; ++i) node.store(Tier::kMemory, ns, 0, chain_of(100 + i, 1));
    // keys[0] was late in either case. Where there is an object tier, what files lost was; where not, keys[5] was.
    CHECK(dropped(node) == 2);
    for (std::uint64_t i = 0; i < 16; ++i) node.store(Tier::kFile, ns, 0, chain_of(200 + i, 1));
    CHECK(dropped(node) == (objects ? 3 : 2));  // keys[1], which is in no pack
  }
  Core alone({}, 0);
  const NsId ns = alone.core->open_namespace(spec_of(1, {kSlabful}));
  for (std::uint64_t i = 0; i < 20; ++i) alone.store(Tier::kMemory, ns, 0, chain_of(10 * i, 1));
  CHECK(dropped(alone) == 0);  // there is no lower tier
}

// A get parks for its first window. Until it comes to the last one, files evict others, however long ago it was put.
void what_a_get_will_come_to_stays_in_files() {
  CoreConfig config;
  config.window_bytes = 2 * kSlabful;
  Core node(config, 8);
  const NsId ns = node.core->open_namespace(spec_of(1, {kSlabful}));
  const auto wanted = chain_of(1, 4), other = chain_of(100, 4);
  node.store(Tier::kFile, ns, 0, wanted);
  node.store(Tier::kFile, ns, 0, other);
  const auto got = node.fetch(ns, wanted, 0, 1'000'000'000);
  CHECK(got->empty());  // it waits
  node.store(Tier::kFile, ns, 0, chain_of(200, 4));
  LookupAnswer out;
  node.core->lookup(ns, wanted, {}, out);
  CHECK(out.blocks == 4);
}

// Stores blocks first..first + count of a chain in memory, one after the other. Returns how many found room.
std::size_t put_chain(Core& node, NsId ns, std::span<const Key> keys, std::size_t first, std::size_t count, bool from_below = false) {
  std::vector<Reserved> slots(count);
  Hint hint;
  hint.position = static_cast<std::uint32_t>(first);
  hint.from_below = from_below;
  CHECK(node.core->reserve(Tier::kMemory, node.owner, ns, 0, keys.subspan(first, count), first > 0 ? &keys[first - 1] : nullptr, {},
                           hint, true, 0, slots) == FetchStatus::kOk);
  std::size_t stored = 0;
  for (const Reserved& slot : slots) {
    if (slot.status != ReserveStatus::kGranted) break;
    std::vector<Outcome> out(1);
    node.core->seal(Tier::kMemory, node.owner, std::array{slot.ticket}, std::array{std::uint64_t{7}}, out, MovePath::kPutMapped, 0);
    stored += 1;
  }
  return stored;
}

// A chain that is longer than memory: it is stored as far as there is room for it without losing its own beginning.
void a_chain_longer_than_memory_keeps_its_beginning() {
  Core node;
  const NsId ns = node.core->open_namespace(spec_of(1, {kSlabful}));
  const auto keys = chain_of(1, 24);
  const auto put = [&](std::size_t first, std::size_t count) { return put_chain(node, ns, keys, first, count); };
  const auto prefix = [&] {
    LookupAnswer out;
    node.core->lookup(ns, keys, {}, out);
    return out.blocks;
  };
  CHECK(put(0, 16) == 16);
  node.core->take_work(10);
  CHECK(put(16, 4) == 0 && prefix() == 16);
  const auto work = node.core->take_work(10);
  CHECK(work.size() == 1 && work[0].kind == Work::Kind::kWriteBehind);
  // Write-behind is offered the beginning now; what it has saved makes way.
  std::vector<Key> offered = dirty(node, Tier::kMemory, Dirty::kFresh);
  CHECK(offered.size() == 16);
  offered.resize(3);
  CHECK(offered == head(keys, 3));
  for (const Key& key : offered) node.store(Tier::kFile, ns, 0, {key});
  mark(node, Tier::kMemory, ns, offered, &SlotTable::mark_clean);
  CHECK(put(16, 4) == 3 && prefix() == 19);
  node.core->with_memory([](SlotTable& table) {
    CHECK(table.stats().evicted_clean == 3 && table.stats().evicted_dirty == 0);
    table.check_integrity();
  });
  // Nobody else is refused for it: its end goes.
  node.store(Tier::kMemory, ns, 0, chain_of(100, 1));
  CHECK(prefix() == 18);
}

// What is brought up has a reader, who has had the beginning: a get may be longer than memory.
void a_promotion_takes_the_place_of_its_own_beginning() {
  Core node;
  const NsId ns = node.core->open_namespace(spec_of(1, {kSlabful}));
  const auto keys = chain_of(1, 24);
  CHECK(put_chain(node, ns, keys, 0, 16) == 16);
  CHECK(put_chain(node, ns, keys, 16, 4) == 0);
  CHECK(put_chain(node, ns, keys, 16, 4, true) == 4);
  node.core->with_memory([&](SlotTable& table) {
    CHECK(table.stats().evicted_dirty == 4);
    table.check_integrity();
  });
}

}  // namespace

int main() {
  what_files_let_go_is_dirty_in_memory();
  what_a_pack_leaves_behind();
  sweeps_come_to_rest();
  a_start_without_a_tier_makes_its_copies_dirty();
  write_behind_comes_to_rest();
  what_is_dropped_is_counted_once();
  what_a_get_will_come_to_stays_in_files();
  a_chain_longer_than_memory_keeps_its_beginning();
  a_promotion_takes_the_place_of_its_own_beginning();
  return test::finish();
}
