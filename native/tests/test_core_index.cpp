// The index against a multimap, the tail pool against a map of what is taken, records against flips and cuts.
#include <algorithm>
#include <map>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "core/index.hpp"
#include "core/record.hpp"
#include "core/tail_pool.hpp"

using namespace kvstore;

namespace {

// Few different tags: long runs, many alike, and runs at the very end of the array.
void index_equals_multimap(unsigned seed, std::uint32_t tags, std::size_t items_max) {
  std::mt19937_64 random(seed);
  Index index(items_max);
  std::multimap<std::uint32_t, SlotId> model;
  const auto any_tag = [&] { return 0xffffffffu - static_cast<std::uint32_t>(random() % tags * ((1ull << 32) / tags)); };
  SlotId next = 0;
  for (int step = 0; step < 20'000; ++step) {
    const std::uint32_t tag = any_tag();
    if (random() % 5 < 3 && model.size() < items_max) {
      index.insert(tag, next);
      model.emplace(tag, next++);
    } else if (const auto one = model.find(tag); one != model.end()) {
      CHECK(index.erase(tag, one->second));
      CHECK(!index.erase(tag, one->second));
      model.erase(one);
    }
    const std::uint32_t asked = any_tag();
    std::vector<SlotId> seen, wanted;
    index.find(asked, [&seen](SlotId slot) {
      seen.push_back(slot);
      return false;
    });
    for (auto [at, end] = model.equal_range(asked); at != end; ++at) wanted.push_back(at->second);
    std::sort(seen.begin(), seen.end());
    std::sort(wanted.begin(), wanted.end());
    CHECK(seen == wanted);
    if (step % 1000 == 0) index.check_integrity();
  }
  CHECK(index.size() == model.size());
  CHECK(model.size() < 2000 || index.memory_bytes() < 12 * model.size() + 16'384);
}

void tails_never_overlap() {
  std::vector<std::uint64_t> memory(4 * TailPool::kPageUnits);
  TailPool pool(memory.data(), 4 * TailPool::kPageUnits);
  std::mt19937_64 random(3);
  const auto below = [&random](std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); };
  std::map<std::uint32_t, std::uint32_t> taken;  // where -> units
  bool was_full = false;
  for (int step = 0; step < 30'000; ++step) {
    if (below(100) < 55) {
      const std::uint32_t units = step % 7 == 0 ? 1 + below(TailPool::kUnitsMax) : 1 + below(3);
      const std::uint32_t at = pool.take(units);
      was_full = was_full || at == TailPool::kNone;
      if (at == TailPool::kNone) continue;
      const auto after = taken.lower_bound(at);
      CHECK(after == taken.end() || at + units <= after->first);
      CHECK(after == taken.begin() || std::prev(after)->first + std::prev(after)->second <= at);
      std::fill_n(pool.data(at), units, ~0ull);  // links must not lie in what is taken
      taken[at] = units;
    } else if (!taken.empty()) {
      auto one = taken.lower_bound(below(4 * TailPool::kPageUnits));
      if (one == taken.end()) one = taken.begin();
      pool.give(one->first, one->second);
      taken.erase(one);
    }
    if (step % 500 == 0) pool.check_integrity();
  }
  CHECK(was_full);
  TailPool again(memory.data(), 4 * TailPool::kPageUnits);
  for (const auto& [at, units] : taken) CHECK(again.claim(at, units));
  if (!taken.empty()) CHECK(!again.claim(taken.begin()->first + 1, TailPool::kUnitsMax));
  CHECK(!again.claim(4 * TailPool::kPageUnits, 1));
  again.rebuild();
  again.check_integrity();
  while (true) {
    const std::uint32_t at = again.take(1);
    if (at == TailPool::kNone) break;
    const auto after = taken.upper_bound(at);
    CHECK(after == taken.begin() || std::prev(after)->first + std::prev(after)->second <= at);
  }
}

SlotRecord example() {
  SlotRecord record;
  record.ns.bytes.fill(1);
  record.key.bytes.fill(2);
  record.parent.bytes.fill(3);
  record.shard = 5;
  record.position = 77;
  record.bytes = 123'456;
  record.offset = 4096;
  record.sequence = 99;
  record.checksums = {1, 2, 3};
  record.meta = {9, 8, 7, 6, 5};
  return record;
}

void records_survive_and_refuse() {
  std::vector<std::uint8_t> bytes;
  encode_record(example(), bytes);
  CHECK(bytes.size() == 152 + 24 + 8);
  const auto view = decode_record(bytes);
  CHECK(view && view->shard == 5 && view->position == 77 && view->bytes == 123'456 && view->offset == 4096);
  CHECK(view && view->sequence == 99 && view->parts == 3 && view->checksum(2) == 3 && view->meta.size() == 5);
  CHECK(view && view->key == example().key && view->parent == example().parent && view->ns == example().ns);
  for (std::size_t cut = 0; cut < bytes.size(); ++cut) CHECK(!decode_record({bytes.data(), cut}));
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] ^= static_cast<std::uint8_t>(1u << bit % 8);
    CHECK(!decode_record(bytes));
    bytes[bit / 8] ^= static_cast<std::uint8_t>(1u << bit % 8);
  }
  const auto refused = [](auto&& change) {
    SlotRecord record = example();
    change(record);
    std::vector<std::uint8_t> out;
    try {
      encode_record(record, out);
    } catch (const std::invalid_argument&) {
      return out.empty();
    }
    return false;
  };
  CHECK(refused([](SlotRecord& r) { r.checksums.clear(); }));
  CHECK(refused([](SlotRecord& r) { r.checksums.resize(257); }));
  CHECK(refused([](SlotRecord& r) { r.meta.resize(1025); }));
  CHECK(refused([](SlotRecord& r) { r.shard = 64; }));
  CHECK(refused([](SlotRecord& r) { r.bytes = (64ull << 20) + 1; }));
}

}  // namespace

int main() {
  index_equals_multimap(1, 1u << 31, 30'000);
  index_equals_multimap(2, 50, 2'000);
  index_equals_multimap(3, 3, 3'000);  // runs longer than the array's tail
  index_equals_multimap(4, 1000, 30'000);
  tails_never_overlap();
  records_survive_and_refuse();
  return kvstore::test::finish();
}
