// The 4 KiB page in front of each payload on a file: a slot record (record.hpp) and zeros. Batches of them are made before
// a write, checked after a read, and looked for where the index was lost. docs/format/slot.md, docs/format/files.md.
//
// Rules
// - A read is believed only if the page names the same namespace, shard, key, length and place, and if the payload has the
//   checksums that the page and the index both say. A stale index row, a torn or a lost write fail one of these.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "record.hpp"
#include "types.hpp"

namespace kvstore {

inline constexpr std::size_t kHeaderBytes = 4096;

// What is common to a run of blocks of one shard.
struct RunShape {
  Key ns;  // the namespace's digest
  std::uint16_t shard = 0;
  std::vector<std::uint32_t> part_bytes;
  std::uint64_t bytes() const noexcept {
    std::uint64_t sum = 0;
    for (const std::uint32_t part : part_bytes) sum += part;
    return sum;
  }
};

// A page of kHeaderBytes from an encoded record.
void fill_header(std::span<const std::uint8_t> record, std::span<std::uint8_t> page) noexcept;

enum class SlotVerdict : std::uint8_t { kGood = 0, kHeader = 1 /* damaged, or another slot's */, kPayload = 2 };

// `checksums`: what the index says, one a part. `body` and `tail` together are the payload.
SlotVerdict check_slot(const RunShape& shape, const Key& key, std::uint64_t payload_offset,
                       std::span<const std::uint64_t> checksums, std::span<const std::uint8_t> page,
                       std::span<const std::uint8_t> body, std::span<const std::uint8_t> tail) noexcept;

// Of rows that each come behind their length (4 bytes), those that are whole records, end to end. A damaged row is left
// out; a length that cannot be ends it.
std::vector<std::uint8_t> whole_records(std::span<const std::uint8_t> framed, std::size_t& damaged);

// A record found in a stretch of a medium by its own word: `at` is where its header begins.
struct FoundRecord {
  std::uint64_t at = 0, bytes = 0, sequence = 0;
  std::uint32_t record_bytes = 0;
};
// Looks at every `stride`-th page of `stretch`, which lies at `offset` of the medium. Records of other places are not it.
std::vector<FoundRecord> find_records(std::span<const std::uint8_t> stretch, std::uint64_t offset, std::uint64_t stride);

}  // namespace kvstore
