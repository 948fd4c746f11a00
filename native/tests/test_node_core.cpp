// NodeCore without sockets: lookups by need, parked fetches, clear, restart, counters, limits. Time is a number here.
#include "core/parked.hpp"
#include "core_rig.hpp"

using namespace kvstore;
using namespace kvstore::test;

namespace {

void needs() {
  Core node;
  NamespaceSpec spec = spec_of(1, {4096});
  spec.shards.push_back(spec.shards[0]);
  spec.shards.push_back(spec.shards[0]);
  const NsId ns = node.core->open_namespace(spec);
  const auto keys = chain_of(1, 10);
  node.store(Tier::kMemory, ns, 0, head(keys, 9));                                  // full attention: 0..9
  node.store(Tier::kFile, ns, 1, {keys[4], keys[5], keys[6], keys[7]});             // window: 4..8
  node.store(Tier::kMemory, ns, 2, {keys[2], keys[6]});                             // state after 2 and after 6
  LookupAnswer out;
  const auto boundary = [&](std::vector<Need> needs) {
    CHECK(node.core->lookup(ns, keys, needs, out) == FetchStatus::kOk);
    return out.blocks;
  };
  CHECK(boundary({}) == 9);
  CHECK(boundary({{0, NeedKind::kAll, 0}, {1, NeedKind::kLast, 3}}) == 8);
  CHECK(out.tiers == std::vector<std::uint8_t>({1, 1, 1, 1, 1, 2, 2, 2}));
  CHECK(boundary({{0, NeedKind::kAll, 0}, {1, NeedKind::kLast, 3}, {2, NeedKind::kState, 0}}) == 7);
  CHECK(boundary({{1, NeedKind::kLast, 5}}) == 0);
  CHECK(boundary({{1, NeedKind::kLast, 4}}) == 8 && out.tiers == std::vector<std::uint8_t>({0, 0, 0, 0, 2, 2, 2, 2}));
  CHECK(boundary({{2, NeedKind::kState, 0}}) == 7);
  CHECK(boundary({{1, NeedKind::kAll, 0}}) == 0);
  CHECK(node.core->lookup(ns, keys, std::array{Need{3, NeedKind::kAll, 0}}, out) == FetchStatus::kBadInput);
  CHECK(node.core->lookup(ns + 1, keys, {}, out) == FetchStatus::kStaleNamespace);
  CHECK(node.core->lookup(ns, std::vector<Key>(65'537), {}, out) == FetchStatus::kRejected);
  const CountersCopy counts = node.core->counters();
  CHECK(counts.totals.lookups == 7 && counts.totals.lookup_found == 9 + 8 + 7 + 0 + 8 + 7 + 0);
}

void parked() {
  Core node;
  const NsId ns = node.core->open_namespace(spec_of(1, {4096}));
  const auto keys = chain_of(1, 8);
  node.store(Tier::kMemory, ns, 0, head(keys, 3));
  node.store(Tier::kFile, ns, 0, {keys[3], keys[4]});
  const auto early = node.fetch(ns, keys, 0, 0);  // no time to wait: what is up
  CHECK(early->size() == 1 && (*early)[0].slots.size() == 3);
  const auto first = node.fetch(ns, keys, 0, 1'000);
  const auto second = node.fetch(ns, keys, 10, 500);
  CHECK(first->empty() && second->empty());
  node.core->with_memory([](SlotTable& table) { CHECK(table.stats().holds == 1); });  // parked ones hold nothing
  auto work = node.core->take_work(10);
  CHECK(work.size() == 1 && work[0].wanted_now && work[0].keys == std::vector<Key>({keys[3], keys[4]}));
  CHECK(node.core->next_deadline() == 500);
  node.core->tick(499);
  CHECK(second->empty());
  node.core->tick(500);
  CHECK(second->size() == 1 && (*second)[0].slots.size() == 3 && first->empty());
  node.store(Tier::kMemory, ns, 0, {keys[3], keys[4]});
  node.core->promoted(ns, 0, std::array{keys[3]}, 600);
  CHECK(first->empty());
  node.core->promoted(ns, 0, std::array{keys[4]}, 600);
  CHECK(first->size() == 1 && (*first)[0].slots.size() == 5 && !(*first)[0].window_full);
  CHECK((*first)[0].tiers == std::vector<std::uint8_t>({1, 1, 1, 2, 2}));
  CHECK((*first)[0].checksums == std::vector<std::uint64_t>(5, 7));
  // Promoted, and evicted again before it could be held: asked for once more, at most three times.
  const auto lost = chain_of(100, 1);
  node.store(Tier::kFile, ns, 0, lost);
  const auto never = node.fetch(ns, lost, 700, 10'000);
  for (int i = 0; i < 3; ++i) {
    CHECK(never->empty() && node.core->take_work(10).size() == 1);
    node.core->promoted(ns, 0, lost, 800);
  }
  CHECK(never->size() == 1 && (*never)[0].slots.empty() && (*never)[0].hold == 0);
  // Whoever leaves is answered empty, and nothing is kept of it.
  const auto gone = node.fetch(ns, lost, 900, 10'000);
  node.core->owner_gone(node.owner);
  CHECK(gone->size() == 1 && (*gone)[0].hold == 0);
  node.core->with_memory([](SlotTable& table) { CHECK(table.stats().holds == 0); });
  CHECK(node.core->counters().parked == 0);
}

void asked_again_without_news() {
  CoreConfig config;
  config.promote_retry = 100;
  Core node(config);
  const NsId ns = node.core->open_namespace(spec_of(1, {4096}));
  const auto keys = chain_of(1, 1);
  node.store(Tier::kFile, ns, 0, keys);
  const auto first = node.fetch(ns, keys, 0, 10'000);
  const auto second = node.fetch(ns, keys, 99, 10'000);
  CHECK(node.core->take_work(10).size() == 1);
  const auto third = node.fetch(ns, keys, 100, 10'000);
  CHECK(node.core->take_work(10).size() == 1);
  node.core->promoted(ns, 0, keys, 200);
  node.core->tick(10'000);
  CHECK(first->size() == 1 && second->size() == 1 && third->size() == 1);
}

// What an owner holds open has a limit, in which a block counts once however often it is held.
void held_open() {
  CoreConfig config;
  config.held_bytes_max = 4 * 8192;
  Core node(config);
  const NsId ns = node.core->open_namespace(spec_of(1, {5000}));  // two pages each
  const auto keys = chain_of(1, 6), other = chain_of(50, 6);
  node.store(Tier::kMemory, ns, 0, keys);
  node.store(Tier::kMemory, ns, 0, other);
  const auto hold = [&](const std::vector<Key>& of, OwnerId owner, bool open = true) {
    FetchRequest request;
    request.owner = owner;
    request.ns = ns;
    request.kind = HoldKind::kView;
    request.held_open = open;
    FetchAnswer told;
    node.core->fetch(request, of, 0, [&](FetchAnswer&& answer) { told = std::move(answer); });
    return told;
  };
  const OwnerId one = node.core->new_owner(), two = node.core->new_owner();
  const FetchAnswer first = hold(keys, one);
  CHECK(first.hold != 0 && first.slots.size() == 4 && !first.window_full);
  const FetchAnswer again = hold(keys, one);
  CHECK(again.slots.size() == 4);
  CHECK(hold(other, one).slots.empty());
  CHECK(hold(other, one, false).slots.size() == 6);
  CHECK(hold(other, two).slots.size() == 4);
  node.core->release(Tier::kMemory, one, first.hold);
  CHECK(hold(other, one).slots.empty());  // the other hold has them still
  node.core->release(Tier::kMemory, one, again.hold);
  const FetchAnswer after = hold(other, one);
  CHECK(after.slots.size() == 4);
  node.core->owner_gone(one);
  CHECK(hold(keys, one).slots.size() == 4);
  node.core->with_memory([](SlotTable& table) { table.check_integrity(); });
}

void windows_and_limits() {
  CoreConfig config;
  config.window_bytes = 1ull << 40;  // clamped to a quarter of memory
  config.pinned_bytes_max = 3 * 4096;
  config.parked_max = 1;
  config.holds_per_owner_max = 2;
  config.namespaces_max = 2;
  Core node(config);
  CHECK(node.core->window_bytes() == kBytes / 4);
  const NsId ns = node.core->open_namespace(spec_of(1, {4096}));
  const NsId big = node.core->open_namespace(spec_of(2, {1u << 20}));
  CHECK(node.core->open_namespace(spec_of(1, {4096})) == ns);
  CHECK(node.core->open_namespace(spec_of(3, {4096})) == kNoNamespace);
  CHECK(node.core->open_namespace(spec_of(4, {4000})) == kNoNamespace);  // smaller than any block
  const auto keys = chain_of(1, 6);
  node.store(Tier::kMemory, big, 0, keys);
  const auto run = node.fetch(big, keys, 0, 0);
  CHECK((*run)[0].slots.size() == 4 && (*run)[0].window_full);
  node.core->release(Tier::kMemory, node.owner, (*run)[0].hold);
  const auto small = chain_of(50, 5);
  node.store(Tier::kMemory, ns, 0, small);
  const auto pinned = node.fetch(ns, small, 0, 0, HoldKind::kPin);
  CHECK((*pinned)[0].slots.size() == 3);
  const auto refused = node.fetch(ns, {small[4]}, 0, 0, HoldKind::kPin);
  CHECK((*refused)[0].status == FetchStatus::kRejected && std::string((*refused)[0].field) == "pinned_bytes_max");
  const auto second = node.fetch(ns, {small[4]}, 0, 0);
  const auto third = node.fetch(ns, {small[4]}, 0, 0);
  CHECK((*second)[0].hold != 0 && (*third)[0].status == FetchStatus::kRejected);
  node.core->owner_gone(node.owner);
  const auto below = chain_of(90, 2);
  node.store(Tier::kFile, ns, 0, below);
  const auto waits = node.fetch(ns, {below[0]}, 0, 100);
  const auto full = node.fetch(ns, {below[1]}, 0, 100);
  CHECK(waits->empty() && full->size() == 1 && (*full)[0].slots.empty());
  CHECK(node.core->drop_namespace(ns) && !node.core->drop_namespace(ns));
  CHECK(waits->size() == 1 && (*waits)[0].status == FetchStatus::kStaleNamespace);
  CHECK(node.core->open_namespace(spec_of(1, {4096})) != ns);
}

void events_and_corruption() {
  CoreConfig config;
  config.events_max = 4;
  Core node(config);
  const NsId ns = node.core->open_namespace(spec_of(1, {4096}));
  const auto keys = chain_of(1, 3);
  node.store(Tier::kMemory, ns, 0, keys);
  bool gap = true;
  auto events = node.core->events_since(0, 10, gap);
  CHECK(!gap && events.size() == 3 && events[2].sequence == 3 && events[2].key == keys[2]);
  SlotRows rows;
  node.core->scan(Tier::kMemory, 0, 10, rows);
  node.core->report_corrupt(node.owner, rows.tickets[0]);
  node.core->report_corrupt(node.owner, rows.tickets[0]);  // once is enough
  node.core->report_corrupt(node.owner, {rows.tickets[0].slot, rows.tickets[0].tenancy + 1});
  CHECK(node.core->take_work(10).size() == 1);
  CHECK(node.core->retire(Tier::kMemory, rows.tickets, true) == 3);
  CHECK(node.core->retire(Tier::kMemory, rows.tickets, true) == 0);
  CHECK(node.core->counters().totals.corrupt[1] == 3);
  events = node.core->events_since(0, 10, gap);
  CHECK(gap && events.size() == 4 && events[0].sequence == 3 && events[3].kind == Event::Kind::kRemoved);
  events = node.core->events_since(5, 10, gap);
  CHECK(!gap && events.size() == 1);
}

void restart() {
  Core node({}, 0);
  const NamespaceSpec spec = spec_of(1, {4096});
  NsId ns = node.core->open_namespace(spec);
  const auto keys = chain_of(1, 4);
  node.store(Tier::kMemory, ns, 0, head(keys, 3));
  const OwnerId client = node.core->new_owner();
  CHECK(node.core->client_joined(client, 4242, 17));
  std::vector<Reserved> slot(1);
  node.core->reserve(Tier::kMemory, client, ns, 0, std::array{keys[3]}, nullptr, {}, {}, true, 0, slot);
  CHECK(MetaSegment::inspect(node.meta.data(), node.meta.size(), node.kept.memory) == MetaState::kUsable);
  TableConfig other = node.kept.memory;
  other.slab_bytes *= 2;
  CHECK(MetaSegment::inspect(node.meta.data(), node.meta.size(), other) == MetaState::kForeign);
  node.core.reset();
  node.core = std::make_unique<NodeCore>(node.kept, node.meta.data(), node.meta.size(), 12);
  CHECK(node.core->former_incarnation() == 11 && node.core->recovered() == 3);
  CHECK(node.core->former_clients().size() == 1 && node.core->quarantine_left());
  ns = node.core->open_namespace(spec);
  LookupAnswer out;
  CHECK(node.core->lookup(ns, keys, {}, out) == FetchStatus::kOk && out.blocks == 3);
  CHECK(!node.core->former_client_gone(4242, client, 12));
  CHECK(!node.core->former_client_gone(4241, client, 11));
  CHECK(node.core->former_client_gone(4242, client, 11));
  CHECK(!node.core->quarantine_left() && node.core->former_clients().empty());
  node.core->with_memory([](SlotTable& table) { table.check_integrity(); });
}

void counting() {
  CoreConfig config;
  config.families_max = 2;
  Core node(config);
  const NsId ns = node.core->open_namespace(spec_of(1, {4096}));
  const auto got = [&](std::uint64_t family, std::uint32_t asked, std::uint32_t memory, std::uint32_t file, std::uint32_t failed) {
    FetchedReport report;
    report.ns = ns;
    report.hint.family = family;
    report.blocks_asked = asked;
    report.blocks_by_tier = {0, memory, file, 0};
    report.blocks_failed = failed;
    report.elapsed = 5'000;
    node.core->fetched(report);
  };
  got(1, 10, 6, 1, 1);
  got(2, 4, 4, 0, 0);
  got(1, 10, 10, 0, 0);
  got(3, 1, 0, 0, 0);   // takes the place of family 2, and inherits its count as error
  got(9, 5, 6, 0, 0);   // more found than asked for: not counted
  const CountersCopy counts = node.core->counters();
  CHECK(counts.totals.blocks.gets == 4 && counts.totals.blocks.asked == 25);
  CHECK(counts.totals.blocks.by_tier[1] == 20 && counts.totals.blocks.by_tier[2] == 1 && counts.totals.blocks.failed == 1);
  CHECK(counts.totals.tokens_asked == 25 * 16 && counts.totals.tokens_by_tier[1] == 20 * 16);
  CHECK(counts.totals.paths[0].counts[3] == 4);  // 5 us: below 8, not below 4
  CHECK(counts.families.size() == 2);
  for (const FamilyCounts& family : counts.families) {
    if (family.family == 1) CHECK(family.blocks.asked == 20 && family.error == 0);
    else CHECK(family.family == 3 && family.blocks.asked == 5 && family.error == 4);
  }
  CHECK(counts.namespaces.size() == 1 && counts.namespaces[0].blocks.asked == 25);
}

void write_behind() {
  CoreConfig config;
  config.free_share = 0.5;
  Core node(config);
  const NsId ns = node.core->open_namespace(spec_of(1, {1u << 20}));
  node.store(Tier::kMemory, ns, 0, chain_of(1, 8));
  CHECK(node.core->take_work(10).empty());
  node.store(Tier::kMemory, ns, 0, chain_of(20, 2));
  auto work = node.core->take_work(10);
  CHECK(work.size() == 1 && work[0].kind == Work::Kind::kWriteBehind);  // once, however many seals
  node.store(Tier::kMemory, ns, 0, chain_of(30, 1));
  CHECK(node.core->take_work(10).size() == 1);
}

}  // namespace

int main() {
  needs();
  parked();
  asked_again_without_news();
  held_open();
  windows_and_limits();
  events_and_corruption();
  restart();
  counting();
  write_behind();
  return test::finish();
}
