// What lies in the object tier is found last, parks a fetch as any lower tier does, and ends with its namespace; holes ask for
// one probe until probes are forgotten.
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "check.hpp"
#include "core/node_core.hpp"

using namespace kvstore;

namespace {

Key key_of(std::uint64_t number) {
  std::mt19937_64 random(number);
  Key key;
  for (std::size_t i = 0; i < 4; ++i) {
    const std::uint64_t word = random();
    std::memcpy(key.bytes.data() + 8 * i, &word, 8);
  }
  return key;
}

std::vector<Key> chain(std::size_t blocks, std::uint64_t seed = 1'000) {
  std::vector<Key> keys;
  for (std::size_t i = 0; i < blocks; ++i) keys.push_back(key_of(seed + i));
  return keys;
}

struct Bench {
  CoreConfig config;
  std::unique_ptr<std::byte[], void (*)(std::byte*)> meta{nullptr, [](std::byte* p) { ::operator delete[](p, std::align_val_t{4096}); }};
  std::optional<NodeCore> core;
  NsId ns;
  Bench() {
    config.memory = {.bytes = 1 << 20, .slab_bytes = 1 << 17};
    const std::size_t bytes = MetaSegment::bytes(config.memory);
    meta.reset(static_cast<std::byte*>(::operator new[](bytes, std::align_val_t{4096})));
    std::memset(meta.get(), 0, bytes);
    core.emplace(config, meta.get(), bytes, 7);
    core->set_object_tier(1'000);
    ns = core->open_namespace(spec(200));
  }
  static NamespaceSpec spec(std::uint8_t name) {
    NamespaceSpec spec;
    spec.digest.bytes.fill(name);
    spec.block_tokens = 16;
    spec.shards = {{4096, {4096}}, {4096, {4096}}};
    return spec;
  }
  LookupAnswer lookup(std::span<const Key> keys, std::span<const Need> needs = {}) {
    LookupAnswer answer;
    CHECK(core->lookup(ns, keys, needs, answer) == FetchStatus::kOk);
    return answer;
  }
  void put(std::span<const Key> keys) {
    std::vector<Reserved> out(keys.size());
    const OwnerId owner = core->new_owner();
    CHECK(core->reserve(Tier::kMemory, owner, ns, 0, keys, nullptr, {}, {}, false, 0, out) == FetchStatus::kOk);
    for (const Reserved& one : out) {
      const std::uint64_t checksum[] = {7};
      Outcome outcome[1];
      core->seal(Tier::kMemory, owner, {&one.ticket, 1}, checksum, outcome, MovePath::kPutMapped, 0);
      CHECK(outcome[0] == Outcome::kOk);
    }
  }
  std::vector<Work> probes() {
    std::vector<Work> out;
    for (Work& work : core->take_work(1'000))
      if (work.kind == Work::Kind::kProbe) out.push_back(std::move(work));
    return out;
  }
};

void memory_comes_first_and_objects_last() {
  Bench b;
  const auto keys = chain(6);
  b.put(std::span(keys).first(2));
  b.core->object_known(b.ns, 0, std::span(keys).subspan(1, 4));
  const LookupAnswer found = b.lookup(keys);
  CHECK(found.blocks == 5);
  CHECK((found.tiers == std::vector<std::uint8_t>{1, 1, 3, 3, 3}));
  const Need of_other_shard[] = {{.shard = 1, .kind = NeedKind::kAll, .blocks = 0}};
  CHECK(b.lookup(keys, of_other_shard).blocks == 0);
  b.core->object_gone(b.ns, 0, std::span(keys).subspan(3, 1), PacksGone::kForgotten);
  CHECK(b.lookup(keys).blocks == 3);
  b.core->object_answers(false);
  CHECK(b.lookup(keys).blocks == 2);
  b.core->object_answers(true);
  CHECK(b.lookup(keys).blocks == 3);
}

void a_hole_asks_for_one_probe() {
  Bench b;
  const auto keys = chain(300);
  b.put(std::span(keys).first(3));
  for (int i = 0; i < 10; ++i) b.lookup(keys);
  auto asked = b.probes();
  CHECK(asked.size() == 1);
  CHECK(asked[0].position == 3 && asked[0].keys.size() == 297 && asked[0].keys[0] == keys[3] && !asked[0].wanted_now);
  b.core->forget_probes();
  b.lookup(keys);
  CHECK(b.probes().size() == 1);
  b.lookup(std::span(keys).first(3));  // ends with its chain, at no hole
  CHECK(b.probes().empty());
  for (std::uint64_t seed = 0; seed < 500; ++seed) b.lookup(chain(2, 1'000'000 + 10 * seed));
  CHECK(b.probes().size() == 64);
}

void a_fetch_tells_where_its_hole_is() {
  Bench b;
  const auto keys = chain(8);
  b.put(std::span(keys).first(2));
  FetchRequest request;
  request.owner = b.core->new_owner();
  request.ns = b.ns;
  request.hint.position = 32;
  bool answered = false;
  b.core->fetch(request, keys, 0, [&](FetchAnswer&& answer) { answered = answer.slots.size() == 2; });
  CHECK(answered);
  const auto asked = b.probes();
  CHECK(asked.size() == 1 && asked[0].position == 34 && asked[0].wanted_now && asked[0].keys.size() == 6);
}

void a_fetch_of_what_lies_there_is_parked_until_it_is_up() {
  Bench b;
  const auto keys = chain(4);
  b.core->object_known(b.ns, 0, keys);
  FetchRequest request;
  request.owner = b.core->new_owner();
  request.ns = b.ns;
  request.deadline = 1'000;
  std::size_t got = 99;
  b.core->fetch(request, keys, 0, [&](FetchAnswer&& answer) { got = answer.slots.size(); });
  CHECK(got == 99);
  bool promote = false;
  for (const Work& work : b.core->take_work(10)) promote = promote || (work.kind == Work::Kind::kPromote && work.tiers[0] == 3);
  CHECK(promote);
  b.put(keys);
  b.core->promoted(b.ns, 0, keys, 10);
  CHECK(got == 4);
}

void a_cleared_namespace_knows_nothing() {
  Bench b;
  const auto keys = chain(4);
  b.core->object_known(b.ns, 0, keys);
  CHECK(b.core->drop_namespace(b.ns));
  LookupAnswer answer;
  CHECK(b.core->lookup(b.ns, keys, {}, answer) == FetchStatus::kStaleNamespace);
  b.ns = b.core->open_namespace(Bench::spec(201));
  CHECK(b.lookup(keys).blocks == 0);
}

void without_an_object_tier_nothing_is_known_or_asked() {
  Bench b;
  b.core->set_object_tier(0);
  const auto keys = chain(4);
  b.core->object_known(b.ns, 0, keys);
  CHECK(b.lookup(keys).blocks == 0);
  CHECK(b.probes().empty());
  CHECK(b.core->object_blocks() == 0);
}

}  // namespace

int main() {
  memory_comes_first_and_objects_last();
  a_hole_asks_for_one_probe();
  a_fetch_tells_where_its_hole_is();
  a_fetch_of_what_lies_there_is_parked_until_it_is_up();
  a_cleared_namespace_knows_nothing();
  without_an_object_tier_nothing_is_known_or_asked();
  return kvstore::test::finish();
}
