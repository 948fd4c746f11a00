// The limit beside the index: a bare table of 32-byte keys, nothing else. One array, linear probing at half load, the
// key's own first bytes for a hash, no state, no name but the key, lookups fetched ahead like ours.
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

struct Entry {
  std::uint64_t key[4];
};

struct Table {
  Entry* entries;
  std::uint64_t mask;
};

constexpr std::uint64_t kAhead = 32;

std::uint64_t first_word(const std::uint8_t* key) {
  std::uint64_t word;
  std::memcpy(&word, key, 8);
  return word;
}

bool holds(const Table* table, const std::uint8_t* key) {
  for (std::uint64_t at = first_word(key) & table->mask;; at = (at + 1) & table->mask) {
    if (std::memcmp(table->entries[at].key, key, 32) == 0) return true;
    if (table->entries[at].key[0] == 0) return false;
  }
}

}  // namespace

extern "C" {

void* bare_make(const std::uint8_t* keys, std::uint64_t count) {
  std::uint64_t size = 1;
  while (size < 2 * count) size *= 2;
  auto* table = static_cast<Table*>(std::malloc(sizeof(Table)));
  *table = {static_cast<Entry*>(std::calloc(size, sizeof(Entry))), size - 1};
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint64_t at = first_word(keys + 32 * i) & table->mask;
    while (table->entries[at].key[0] != 0) at = (at + 1) & table->mask;
    std::memcpy(table->entries[at].key, keys + 32 * i, 32);
  }
  return table;
}

void bare_longest_each(const void* handle, const std::uint8_t* keys, std::uint64_t chains, std::uint64_t per_chain,
                       std::uint32_t* out) {
  const auto* table = static_cast<const Table*>(handle);
  for (std::uint64_t chain = 0; chain < chains; ++chain, keys += 32 * per_chain) {
    std::uint32_t run = 0;
    for (std::uint64_t from = 0; from < per_chain && run == from; from += kAhead) {
      const std::uint64_t end = from + kAhead < per_chain ? from + kAhead : per_chain;
      for (std::uint64_t i = from; i < end; ++i) {
        __builtin_prefetch(&table->entries[first_word(keys + 32 * i) & table->mask]);
      }
      while (run < end && holds(table, keys + 32 * run)) ++run;
    }
    out[chain] = run;
  }
}

void bare_free(void* handle) {
  std::free(static_cast<Table*>(handle)->entries);
  std::free(handle);
}

}  // extern "C"
