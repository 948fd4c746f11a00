#include "slot_header.hpp"

#include <algorithm>
#include <cstring>

#include "base/checksum.hpp"

namespace kvstore {
namespace {

// A part's checksum where its bytes lie in two pieces, the first a whole number of leaves long.
std::uint64_t checksum_of(std::span<const std::uint8_t> body, std::span<const std::uint8_t> tail, std::uint64_t at,
                          std::uint64_t bytes) noexcept {
  if (at + bytes <= body.size()) return part_checksum(body.data() + at, bytes);
  if (at >= body.size()) return part_checksum(tail.data() + (at - body.size()), bytes);
  LeafFold fold;  // leaves of a part are counted from its start, so one may lie across the border
  for (std::uint64_t done = 0; done < bytes; done += kLeafBytes) {
    const std::uint64_t from = at + done, length = std::min<std::uint64_t>(kLeafBytes, bytes - done);
    if (from + length <= body.size()) {
      fold.add(xxh3(body.data() + from, length));
    } else if (from >= body.size()) {
      fold.add(xxh3(tail.data() + (from - body.size()), length));
    } else {
      std::uint8_t leaf[kLeafBytes];
      const std::uint64_t here = body.size() - from;
      std::memcpy(leaf, body.data() + from, here);
      std::memcpy(leaf + here, tail.data(), length - here);
      fold.add(xxh3(leaf, length));
    }
  }
  return fold.finish();
}

}  // namespace

void fill_header(std::span<const std::uint8_t> record, std::span<std::uint8_t> page) noexcept {
  std::memcpy(page.data(), record.data(), record.size());
  std::memset(page.data() + record.size(), 0, page.size() - record.size());
}

SlotVerdict check_slot(const RunShape& shape, const Key& key, std::uint64_t payload_offset,
                       std::span<const std::uint64_t> checksums, std::span<const std::uint8_t> page,
                       std::span<const std::uint8_t> body, std::span<const std::uint8_t> tail) noexcept {
  const auto record = decode_record(page);
  const std::uint64_t bytes = shape.bytes();
  if (!record || !(record->ns == shape.ns) || !(record->key == key) || record->shard != shape.shard ||
      record->offset != payload_offset || record->bytes != bytes || record->parts != shape.part_bytes.size() ||
      checksums.size() != record->parts || body.size() + tail.size() != bytes) {
    return SlotVerdict::kHeader;
  }
  std::uint64_t at = 0;
  for (std::uint32_t part = 0; part < record->parts; ++part) {
    const std::uint64_t said = record->checksum(part);
    if (said != checksums[part]) return SlotVerdict::kHeader;
    if (checksum_of(body, tail, at, shape.part_bytes[part]) != said) return SlotVerdict::kPayload;
    at += shape.part_bytes[part];
  }
  return SlotVerdict::kGood;
}

std::vector<std::uint8_t> whole_records(std::span<const std::uint8_t> framed, std::size_t& damaged) {
  std::vector<std::uint8_t> out;
  out.reserve(framed.size());
  damaged = 0;
  while (framed.size() >= 4) {
    std::uint32_t length;
    std::memcpy(&length, framed.data(), 4);
    framed = framed.subspan(4);
    if (length > framed.size()) {
      ++damaged;
      break;
    }
    const auto row = framed.first(length);
    const auto record = decode_record(row);
    if (record && record->record_bytes == length) {
      out.insert(out.end(), row.begin(), row.end());
    } else {
      ++damaged;
    }
    framed = framed.subspan(length);
  }
  return out;
}

std::vector<FoundRecord> find_records(std::span<const std::uint8_t> stretch, std::uint64_t offset, std::uint64_t stride) {
  std::vector<FoundRecord> found;
  if (stride == 0) return found;
  for (std::uint64_t at = 0; at + kHeaderBytes <= stretch.size(); at += stride) {
    const auto record = decode_record(stretch.subspan(at, kHeaderBytes));
    if (!record || record->offset != offset + at + kHeaderBytes) continue;
    found.push_back({offset + at, record->bytes, record->sequence, static_cast<std::uint32_t>(record->record_bytes)});
  }
  return found;
}

}  // namespace kvstore
