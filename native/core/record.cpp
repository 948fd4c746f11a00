#include "record.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "base/checksum.hpp"

namespace kvstore {
namespace {

constexpr std::uint16_t kHasClean = 1;
constexpr std::size_t kAtVersion = 4, kAtFlags = 6, kAtLength = 8, kAtShard = 12, kAtParts = 14, kAtMetaBytes = 16,
                      kAtSpare = 18, kAtPosition = 20, kAtSequence = 24, kAtOffset = 32, kAtBytes = 40, kAtNs = 48, kAtKey = 80,
                      kAtParent = 112, kAtCheck = 144;

template <class T>
void put(std::uint8_t* at, T value) noexcept {
  std::memcpy(at, &value, sizeof value);  // little-endian machines only: types.hpp's neighbours assume it too
}
template <class T>
T get(const std::uint8_t* at) noexcept {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

bool all_zero(std::span<const std::uint8_t> bytes) noexcept {
  return std::all_of(bytes.begin(), bytes.end(), [](std::uint8_t b) { return b == 0; });
}

std::size_t padded(std::size_t bytes) noexcept { return (bytes + 7) / 8 * 8; }

// Of the record with zero in place of the checksum.
std::uint64_t checksum_of(std::span<const std::uint8_t> record) {
  std::uint8_t copy[kRecordBytesMax];
  std::memcpy(copy, record.data(), record.size());
  put<std::uint64_t>(copy + kAtCheck, 0);
  return xxh3(copy, record.size());
}

}  // namespace

void encode_record(const SlotRecord& record, std::vector<std::uint8_t>& out) {
  const std::size_t parts = record.checksums.size(), meta = record.meta.size();
  if (parts == 0 || parts > kPartsMax) throw std::invalid_argument("record: parts must be 1.." + std::to_string(kPartsMax));
  if (meta > kMetaBytesMax) throw std::invalid_argument("record: meta is longer than " + std::to_string(kMetaBytesMax));
  if (record.shard >= kShardsMax) throw std::invalid_argument("record: shard must be below " + std::to_string(kShardsMax));
  if (record.bytes == 0 || record.bytes > kBlockBytesMax) throw std::invalid_argument("record: bytes out of range");
  const std::size_t length = kRecordFixedBytes + 8 * parts + padded(meta), at = out.size();
  out.resize(at + length, 0);
  std::uint8_t* r = out.data() + at;
  put(r, kRecordMagic);
  put(r + kAtVersion, kRecordVersion);
  put<std::uint16_t>(r + kAtFlags, record.clean ? kHasClean : 0);
  put(r + kAtLength, static_cast<std::uint32_t>(length));
  put(r + kAtShard, record.shard);
  put(r + kAtParts, static_cast<std::uint16_t>(parts));
  put(r + kAtMetaBytes, static_cast<std::uint16_t>(meta));
  put(r + kAtPosition, record.position);
  put(r + kAtSequence, record.sequence);
  put(r + kAtOffset, record.offset);
  put(r + kAtBytes, record.bytes);
  put(r + kAtNs, record.ns.bytes);
  put(r + kAtKey, record.key.bytes);
  put(r + kAtParent, record.parent.bytes);
  std::memcpy(r + kRecordFixedBytes, record.checksums.data(), 8 * parts);
  if (meta > 0) std::memcpy(r + kRecordFixedBytes + 8 * parts, record.meta.data(), meta);
  put(r + kAtCheck, checksum_of({r, length}));
}

std::optional<RecordView> decode_record(std::span<const std::uint8_t> in) {
  if (in.size() < kRecordFixedBytes) return std::nullopt;
  const std::uint8_t* r = in.data();
  if (get<std::uint32_t>(r) != kRecordMagic || get<std::uint16_t>(r + kAtVersion) != kRecordVersion) return std::nullopt;
  const std::uint16_t flags = get<std::uint16_t>(r + kAtFlags);
  const std::size_t length = get<std::uint32_t>(r + kAtLength);
  const std::size_t parts = get<std::uint16_t>(r + kAtParts), meta = get<std::uint16_t>(r + kAtMetaBytes);
  if (parts == 0 || parts > kPartsMax || meta > kMetaBytesMax || (flags & ~kHasClean) != 0) return std::nullopt;
  if (length != kRecordFixedBytes + 8 * parts + padded(meta) || length > in.size()) return std::nullopt;
  if (!all_zero(in.subspan(kAtSpare, kAtPosition - kAtSpare))) return std::nullopt;
  if (get<std::uint64_t>(r + kAtCheck) != checksum_of(in.first(length))) return std::nullopt;
  RecordView view;
  view.ns.bytes = get<std::array<std::uint8_t, 32>>(r + kAtNs);
  view.key.bytes = get<std::array<std::uint8_t, 32>>(r + kAtKey);
  view.parent.bytes = get<std::array<std::uint8_t, 32>>(r + kAtParent);
  view.shard = get<std::uint16_t>(r + kAtShard);
  view.position = get<std::uint32_t>(r + kAtPosition);
  view.clean = (flags & kHasClean) != 0;
  view.bytes = get<std::uint64_t>(r + kAtBytes);
  view.offset = get<std::uint64_t>(r + kAtOffset);
  view.sequence = get<std::uint64_t>(r + kAtSequence);
  view.parts = static_cast<std::uint32_t>(parts);
  view.checksum_bytes = in.subspan(kRecordFixedBytes, 8 * parts);
  view.meta = in.subspan(kRecordFixedBytes + 8 * parts, meta);
  view.record_bytes = length;
  if (view.shard >= kShardsMax || view.bytes == 0 || view.bytes > kBlockBytesMax) return std::nullopt;
  if (!all_zero(in.subspan(kRecordFixedBytes + 8 * parts + meta, padded(meta) - meta))) return std::nullopt;
  return view;
}

}  // namespace kvstore
