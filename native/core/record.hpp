// The slot record: what a slot says of itself outside memory. One form for three places: the 4 KiB header in front of a
// payload on a file, a row of the checkpointed index, and a row of an object pack's index. docs/format/slot.md.
//
// Rules
// - Decoding trusts nothing: every length is checked before it is used, and the checksum before anything is believed.
// - A record says how long it is, so rows can be laid end to end; padding is zero and is checked.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "types.hpp"

namespace kvstore {

inline constexpr std::uint32_t kRecordMagic = 0x53564b01u;  // 01 'K' 'V' 'S'
inline constexpr std::uint16_t kRecordVersion = 1;
inline constexpr std::size_t kRecordFixedBytes = 152;
inline constexpr std::size_t kRecordBytesMax = kRecordFixedBytes + 8 * kPartsMax + kMetaBytesMax;
static_assert(kRecordBytesMax <= kSlotAlign);

struct SlotRecord {
  Key ns;  // the namespace's digest
  Key key;
  Key parent;  // all zero: none known
  std::uint16_t shard = 0;
  std::uint32_t position = 0;  // in its chain
  bool clean = false;          // rows only: a lower tier has it too
  std::uint64_t bytes = 0;
  std::uint64_t offset = 0;    // of the payload in its medium
  std::uint64_t sequence = 0;  // of two claims on the same bytes the greater is the later
  std::vector<std::uint64_t> checksums;
  std::vector<std::uint8_t> meta;
};

// What decode() gives: spans into its input. checksum(i) may be read for i < parts.
struct RecordView {
  Key ns, key, parent;
  std::uint16_t shard = 0;
  std::uint32_t position = 0;
  bool clean = false;
  std::uint64_t bytes = 0, offset = 0, sequence = 0;
  std::uint32_t parts = 0;
  std::span<const std::uint8_t> checksum_bytes;
  std::span<const std::uint8_t> meta;
  std::size_t record_bytes = 0;
  std::uint64_t checksum(std::uint32_t i) const noexcept {
    std::uint64_t value;
    std::memcpy(&value, checksum_bytes.data() + 8 * i, 8);
    return value;
  }
};

// Appends the record. Throws std::invalid_argument for what no slot can be (parts, meta, shard, bytes out of range).
void encode_record(const SlotRecord& record, std::vector<std::uint8_t>& out);
// The record at the start of `in`, or nothing: too short, another magic, a newer version, a length out of range, a
// checksum that does not agree. What follows it is not looked at.
std::optional<RecordView> decode_record(std::span<const std::uint8_t> in);

}  // namespace kvstore
