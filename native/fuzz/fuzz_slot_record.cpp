// Slot records, wherever they come from: a header, a checkpoint's rows, an object pack, a scanned medium. What is read is
// within bounds, and what is believed can be written again and reads the same.
#include <cstdlib>

#include "core/record.hpp"
#include "core/slot_header.hpp"
#include "core/slot_table.hpp"

using namespace kvstore;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::uint8_t> in(data, size);
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
    if (again.size() != view->record_bytes || !std::equal(again.begin(), again.end(), data)) std::abort();
  }
  std::size_t damaged = 0;
  whole_records(in, damaged);
  find_records(in, 0, kHeaderBytes);
  SlotTable table({1 << 20, 1 << 16, 4096, "leaf_lru", 1}, nullptr, 0);
  table.restore(in);
  table.check_integrity();
  return 0;
}
