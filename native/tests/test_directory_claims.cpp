// The claim table against plain maps, in a random walk: what is located, counted, digested and dropped; and homes.
#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "check.hpp"
#include "directory/claims.hpp"

using namespace kvstore;

namespace {

using Bytes = std::array<std::uint8_t, 16>;

Bytes key_of(std::uint64_t number) {
  std::mt19937_64 random(number);
  Bytes key;
  for (std::size_t i = 0; i < 2; ++i) {
    const std::uint64_t word = random();
    std::memcpy(key.data() + 8 * i, &word, 8);
  }
  return key;
}

struct Row {
  Bytes key;
  std::uint64_t shards;
  std::uint8_t tier;
};

ClaimRows rows_of(std::uint32_t ns, const Row& row) { return {ns, {row.key.data(), 1, 16}, {&row.shards, 1}, {&row.tier, 1}}; }

struct Model {
  std::map<std::pair<std::uint32_t, Bytes>, std::pair<std::uint64_t, std::uint8_t>> claims;
  Digests digests() const {
    Digests out{};
    for (const auto& [name, held] : claims) fold_digests(rows_of(name.first, {name.second, held.first, held.second}), out);
    return out;
  }
};

void walks_as_maps_do() {
  ClaimTable table({.claims_max = 100'000});
  std::mt19937_64 random(3);
  std::map<NodeNumber, Model> models;
  for (int i = 0; i < 300; ++i) models[static_cast<NodeNumber>(table.add_node())];  // more than one byte of number
  for (int step = 0; step < 60'000; ++step) {
    const auto node = static_cast<NodeNumber>(random() % (step % 3 == 0 ? 300 : 5));
    const auto ns = static_cast<std::uint32_t>(random() % 2);
    const Row row{key_of(random() % 500), random() % 4, static_cast<std::uint8_t>(1 + random() % 2)};
    auto& claims = models[node].claims;
    const auto name = std::pair(ns, row.key);
    const Applied done = table.apply(node, rows_of(ns, row));
    CHECK(done.evicted == 0);
    if (row.shards == 0) {
      CHECK(done.withdrawn == claims.erase(name) && done.withdrawn + done.unknown == 1);
    } else {
      CHECK(done.added == (claims.contains(name) ? 0u : 1u));
      claims[name] = {row.shards, row.tier};
    }
    if (step % 5'000 == 1) {
      CHECK(table.drop_node(node) == models[node].claims.size());
      models[node] = {};
      CHECK(table.add_node() == node);
    }
    if (step % 7'000 == 2) {
      std::uint64_t gone = 0;
      for (auto it = claims.begin(); it != claims.end();) it = it->first.first == ns ? (++gone, claims.erase(it)) : std::next(it);
      CHECK(table.drop_namespace(node, ns) == gone);
    }
  }
  table.check_integrity();
  std::size_t all = 0;
  for (const auto& [node, model] : models) {
    CHECK(table.claims_of(node) == model.claims.size());
    CHECK(table.digests(node) == model.digests());
    all += model.claims.size();
  }
  CHECK(table.size() == all);
  for (std::uint64_t number = 0; number < 500; ++number) {
    const Bytes key = key_of(number);
    std::set<NodeNumber> holders;
    for (const auto& [node, model] : models)
      if (model.claims.contains({1, key})) holders.insert(node);
    Located out;
    table.locate(1, {key.data(), 1, 16}, 255, 0, out);
    CHECK(std::set<NodeNumber>(out.nodes.begin(), out.nodes.end()) == holders && out.counts[0] == holders.size());
    Located few;
    table.locate(1, {key.data(), 1, 16}, 2, 0, few);
    CHECK(few.counts[0] == std::min<std::size_t>(2, holders.size()));
    std::uint64_t some = 0, every = 0;
    for (const std::uint64_t shards : few.shards) some |= shards;
    for (const std::uint64_t shards : out.shards) every |= shards;
    CHECK(some == every);  // of two shards, two holders have all that there is
  }
}

void telling_from_scratch() {
  ClaimTable table({.claims_max = 1'000});
  const auto node = static_cast<NodeNumber>(table.add_node());
  const auto other = static_cast<NodeNumber>(table.add_node());
  for (std::uint64_t i = 0; i < 200; ++i) table.apply(node, rows_of(1, {key_of(i), 1, 1}));
  table.apply(other, rows_of(1, {key_of(0), 1, 1}));
  table.begin(node, ~0ull);
  CHECK(table.claims_of(node) == 200);  // nothing goes before the end
  for (std::uint64_t i = 0; i < 50; ++i) table.apply(node, rows_of(1, {key_of(i), 1, 1}));
  CHECK(table.end(node, ~0ull) == 150 && table.claims_of(node) == 50 && table.claims_of(other) == 1);
  CHECK(table.end(node, ~0ull) == 0);
  // One bucket: the others stay, said or not.
  const Bytes first = key_of(0);
  const std::uint64_t bucket = 1ull << bucket_of(ShortKey::at(first.data()));
  table.begin(node, bucket);
  std::uint64_t in_bucket = 0;
  for (std::uint64_t i = 0; i < 50; ++i) {
    const Bytes key = key_of(i);
    in_bucket += 1ull << bucket_of(ShortKey::at(key.data())) == bucket;
  }
  CHECK(table.end(node, bucket) == in_bucket && table.claims_of(node) == 50 - in_bucket);
  table.check_integrity();
}

void who_claims_most_makes_room() {
  ClaimTable table({.claims_max = 1'000});
  const auto small = static_cast<NodeNumber>(table.add_node());
  const auto large = static_cast<NodeNumber>(table.add_node());
  for (std::uint64_t i = 0; i < 100; ++i) table.apply(small, rows_of(1, {key_of(i), 1, 1}));
  std::uint64_t evicted = 0;
  for (std::uint64_t i = 1'000; i < 3'000; ++i) {
    evicted += table.apply(large, rows_of(1, {key_of(i), 1, 1})).evicted;
    table.apply(large, rows_of(1, {key_of(1'000), 1, 1}));  // said again and again: the youngest
  }
  CHECK(table.size() <= 1'000 && table.claims_of(small) == 100 && table.evicted_of(small) == 0);
  CHECK(table.evicted_of(large) == evicted && evicted >= 1'100);
  Located out;
  const Bytes again = key_of(1'000), oldest = key_of(1'001);
  table.locate(1, {again.data(), 1, 16}, 4, 0, out);
  table.locate(1, {oldest.data(), 1, 16}, 4, 0, out);
  CHECK(out.counts[0] == 1 && out.counts[1] == 0);
  table.check_integrity();
}

void who_is_not_named_is_not_located() {
  ClaimTable table({.claims_max = 1'000});
  std::vector<NodeNumber> nodes;
  const Row row{key_of(1), 1, 2};
  for (int i = 0; i < 8; ++i) {
    nodes.push_back(static_cast<NodeNumber>(table.add_node()));
    table.apply(nodes.back(), rows_of(1, row));
  }
  table.apply(nodes[5], rows_of(1, {row.key, 1, 1}));
  std::set<NodeNumber> seconds;
  for (std::uint32_t spread = 0; spread < 65'536; spread += 1'009) {
    Located out;
    table.locate(1, {row.key.data(), 1, 16}, 2, spread, out);
    CHECK(out.nodes[0] == nodes[5] && out.tiers[0] == 1);  // the nearer tier first
    seconds.insert(out.nodes[1]);
  }
  CHECK(seconds.size() == 7);  // all equals are named to somebody
  table.set_named(nodes[5], false);
  Located out;
  table.locate(1, {row.key.data(), 1, 16}, 255, 0, out);
  CHECK(out.counts[0] == 7 && table.claims_of(nodes[5]) == 1);
}

void memory_is_bounded() {
  for (const std::uint64_t count : {1'000ull, 10'000ull, 300'000ull}) {
    ClaimTable table({});
    const auto node = static_cast<NodeNumber>(table.add_node());
    double worst = 0;
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::array<std::uint64_t, 2> words{mixed(i + 1), mixed(i + count)};
      Row row{{}, 1, 1};
      std::memcpy(row.key.data(), words.data(), 16);
      table.apply(node, rows_of(1, row));
      if (i > 950) worst = std::max(worst, static_cast<double>(table.memory_bytes()) / static_cast<double>(table.size()));
    }
    CHECK(worst <= 64.0);
  }
}

void homes_move_little_and_share_alike() {
  std::vector<std::uint64_t> nodes;
  for (std::uint64_t i = 0; i < 17; ++i) nodes.push_back(mixed(i + 100));
  std::vector<Bytes> keys;
  for (std::uint64_t i = 0; i < 20'000; ++i) keys.push_back(key_of(i));
  const KeyRows rows{keys[0].data(), keys.size(), 16};
  std::vector<std::int32_t> first(keys.size()), second(keys.size()), before(keys.size()), unused(keys.size());
  homes_of(rows, nodes, first, second);
  homes_of(rows, std::span(nodes).first(16), before, unused);
  std::vector<std::size_t> share(17);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    share[static_cast<std::size_t>(first[i])] += 1;
    CHECK(first[i] != second[i]);
    // Without node 16 its keys fall to their second homes, and nobody else's move.
    CHECK(before[i] == (first[i] == 16 ? second[i] : first[i]));
  }
  CHECK(static_cast<double>(*std::max_element(share.begin(), share.end())) < 1.15 * static_cast<double>(keys.size()) / 17);
  homes_of(rows, std::span(nodes).first(1), first, second);
  CHECK(first[0] == 0 && second[0] == kNoHome);
  const auto few = highest(7, nodes, 5);
  CHECK(few.size() == 5 && std::is_sorted(few.begin(), few.end()) && highest(7, nodes, 99).size() == 17);
  auto fewer = highest(7, nodes, 4);
  CHECK(std::includes(few.begin(), few.end(), fewer.begin(), fewer.end()));
}

}  // namespace

int main() {
  walks_as_maps_do();
  telling_from_scratch();
  who_claims_most_makes_room();
  who_is_not_named_is_not_located();
  memory_is_bounded();
  homes_move_little_and_share_alike();
  return kvstore::test::finish();
}
