// Slot records, wherever they come from: a header, a checkpoint's rows, an object pack, a scanned medium. What is read is
// within bounds, and what is believed can be written again and reads the same. Nobody guesses a checksum, so an input is looked at
// twice: as it is, and as records whose lengths and checksums have been mended.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/checksum.hpp"
#include "core/record.hpp"
#include "core/slot_header.hpp"
#include "core/slot_table.hpp"

using namespace kvstore;

namespace {

template <class T>
T get(const std::uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
template <class T>
void put(std::uint8_t* at, T value) {
  std::memcpy(at, &value, sizeof value);
}

// docs/format/slot.md. What decides how far a reader gets is made good; all else is the fuzzer's.
std::vector<std::uint8_t> mended(std::span<const std::uint8_t> in) {
  std::vector<std::uint8_t> out(in.begin(), in.end());
  for (std::size_t at = 0; out.size() - at >= kRecordFixedBytes + 8;) {
    std::uint8_t* r = out.data() + at;
    const std::size_t room = out.size() - at - kRecordFixedBytes;
    const auto parts = static_cast<std::uint16_t>(1 + get<std::uint16_t>(r + 14) % std::min<std::size_t>(4, room / 8));
    const auto meta = static_cast<std::uint16_t>(get<std::uint16_t>(r + 16) % std::min<std::size_t>(64, (room - 8 * parts) / 8 * 8 + 1));
    const std::size_t length = kRecordFixedBytes + 8 * parts + (meta + 7) / 8 * 8;
    put(r, kRecordMagic);
    put(r + 4, kRecordVersion);
    put(r + 6, static_cast<std::uint16_t>(get<std::uint16_t>(r + 6) & 1));
    put(r + 8, static_cast<std::uint32_t>(length));
    put(r + 14, parts);
    put(r + 16, meta);
    put<std::uint16_t>(r + 18, 0);
    put(r + 32, get<std::uint64_t>(r + 32) % (5 << 18));  // the table below has 1 MiB
    put(r + 40, get<std::uint64_t>(r + 40) % (1 << 17));
    const std::size_t end = kRecordFixedBytes + 8 * parts + meta;
    std::memset(r + end, 0, length - end);
    put<std::uint64_t>(r + 144, 0);
    put(r + 144, xxh3(r, length));
    at += length;
  }
  return out;
}

void look(std::span<const std::uint8_t> in) {
  if (const auto view = decode_record(in)) {
    SlotRecord record;
    record.ns = view->ns;
    record.key = view->key;
    record.parent = view->parent;
    record.shard = view->shard;
    record.position = view->position;
    record.clean = view->clean;
    record.bytes = view->bytes;
    record.offset = view->offset;
    record.sequence = view->sequence;
    for (std::uint32_t i = 0; i < view->parts; ++i) record.checksums.push_back(view->checksum(i));
    record.meta.assign(view->meta.begin(), view->meta.end());
    std::vector<std::uint8_t> again;
    encode_record(record, again);
    if (again.size() != view->record_bytes || !std::equal(again.begin(), again.end(), in.begin())) std::abort();
  }
  std::size_t damaged = 0;
  whole_records(in, damaged);
  find_records(in, 0, kHeaderBytes);
  SlotTable table({1 << 20, 1 << 16, 4096, "leaf_lru", 1}, nullptr, 0);
  table.restore(in);
  table.check_integrity();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  look({data, size});
  look(mended({data, size}));
  return 0;
}
