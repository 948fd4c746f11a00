// A table built from more than it can take: what does not fit is dropped and counted.
#include <cstring>

#include "check.hpp"
#include "core/record.hpp"
#include "core/slot_table.hpp"

using namespace kvstore;

namespace {

constexpr std::uint32_t kHeader = 4096, kSlab = 1 << 20;

// A disk that nobody has looked at for many clears: each slot is of another generation, and so of another digest.
void more_digests_than_rows() {
  constexpr std::uint32_t kBlocks = 8'192 + 10;
  const std::uint32_t slabs = kBlocks / (kSlab / 8192) + 1;
  SlotTable table({std::uint64_t{slabs} * kSlab, kSlab, kHeader, "leaf_lru", 1}, nullptr, 0);
  std::vector<std::uint8_t> rows;
  for (std::uint32_t i = 0; i < kBlocks; ++i) {
    SlotRecord record;
    record.bytes = 4096;
    record.offset = std::uint64_t{i / 128} * kSlab + std::uint64_t{i % 128} * 8192 + kHeader;
    record.sequence = i + 1;
    record.checksums = {7};
    record.key.bytes.fill(1);
    std::memcpy(record.ns.bytes.data(), &i, sizeof i);
    encode_record(record, rows);
  }
  CHECK(table.restore(rows) == 8'192);
  CHECK(table.stats().recovered_rejected == 10);
  table.check_integrity();
}

}  // namespace

int main() {
  more_digests_than_rows();
  return kvstore::test::finish();
}
