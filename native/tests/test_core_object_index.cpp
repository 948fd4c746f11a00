// The object tier's presence hints against a set: nothing known is denied, nothing unknown is claimed, memory is bounded.
#include <random>
#include <set>

#include "check.hpp"
#include "core/object_index.hpp"

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

void agrees_with_a_set() {
  ObjectIndex index(1 << 20);
  std::set<std::uint64_t> truth;
  std::mt19937_64 random(7);
  for (int step = 0; step < 60'000; ++step) {
    const std::uint64_t number = random() % 5'000;
    const Key key = key_of(number);
    if (random() % 3 != 0) {
      index.add(1, 2, {&key, 1});
      truth.insert(number);
    } else {
      index.remove(1, 2, {&key, 1});
      truth.erase(number);
    }
  }
  CHECK(index.size() == truth.size());
  for (std::uint64_t number = 0; number < 5'000; ++number) {
    CHECK(index.has(1, 2, key_of(number)) == truth.contains(number));
    CHECK(!index.has(2, 2, key_of(number)));
    CHECK(!index.has(1, 3, key_of(number)));
  }
}

void forgets_the_oldest_half() {
  ObjectIndex index(2'000);
  for (std::uint64_t number = 0; number < 10'000; ++number) {
    const Key key = key_of(number);
    index.add(0, 0, {&key, 1});
    CHECK(index.size() <= 2'000);
  }
  for (std::uint64_t number = 9'000; number < 10'000; ++number) CHECK(index.has(0, 0, key_of(number)));
  CHECK(!index.has(0, 0, key_of(0)));
  CHECK(index.memory_bytes() <= 2 * 8 * 8'192);
}

}  // namespace

int main() {
  agrees_with_a_set();
  forgets_the_oldest_half();
  return kvstore::test::finish();
}
