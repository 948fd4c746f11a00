// Header pages: whatever is altered, the slot is not believed.
#include <vector>

#include "base/checksum.hpp"
#include "check.hpp"
#include "core/slot_header.hpp"

using namespace kvstore;

namespace {

struct Sample {
  RunShape shape;
  SlotRecord record;
  std::vector<std::uint8_t> payload, page = std::vector<std::uint8_t>(kHeaderBytes);

  Sample() {
    shape.ns.bytes[3] = 9;
    shape.shard = 2;
    shape.part_bytes = {5000, 4096, 300, 9000};
    payload.resize(shape.bytes());
    for (std::size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<std::uint8_t>(i * 131 + (i >> 7));
    record.ns = shape.ns;
    record.key.bytes[0] = 7;
    record.shard = shape.shard;
    record.bytes = shape.bytes();
    record.offset = 12 * 4096;
    record.sequence = 5;
    record.meta = {1, 2, 3};
    std::size_t at = 0;
    for (const auto part : shape.part_bytes) {
      record.checksums.push_back(part_checksum(payload.data() + at, part));
      at += part;
    }
    set_header(record);
  }
  void set_header(const SlotRecord& of) {
    std::vector<std::uint8_t> row;
    encode_record(of, row);
    fill_header(row, page);
  }
  SlotVerdict check(std::size_t split) const {
    const std::span<const std::uint8_t> all(payload);
    return check_slot(shape, record.key, record.offset, record.checksums, page, all.first(split), all.subspan(split));
  }
};

void test_good_wherever_it_is_split() {
  const Sample s;
  for (std::size_t split = 0; split <= s.payload.size(); split += 4096) CHECK(s.check(split) == SlotVerdict::kGood);
  for (std::size_t split = 4990; split < 5010; ++split) CHECK(s.check(split) == SlotVerdict::kGood);
}

void test_every_flip_is_seen() {
  Sample s;
  const std::size_t used = kRecordFixedBytes + 8 * 4 + 8;
  for (std::size_t at = 0; at < used; ++at) {
    s.page[at] ^= 4;
    CHECK(s.check(16384) == SlotVerdict::kHeader);
    s.page[at] ^= 4;
  }
  for (std::size_t at = 0; at < s.payload.size(); at += 37) {
    s.payload[at] ^= 1;
    CHECK(s.check(16384) == SlotVerdict::kPayload);
    s.payload[at] ^= 1;
  }
  CHECK(s.check(16384) == SlotVerdict::kGood);
}

void test_another_slots_header() {
  auto header_of = [](auto change) {
    Sample s;
    SlotRecord other = s.record;
    change(other);
    s.set_header(other);
    return s.check(16384);
  };
  CHECK(header_of([](SlotRecord&) {}) == SlotVerdict::kGood);
  CHECK(header_of([](SlotRecord& r) { r.key.bytes[31] ^= 1; }) == SlotVerdict::kHeader);
  CHECK(header_of([](SlotRecord& r) { r.ns.bytes[31] ^= 1; }) == SlotVerdict::kHeader);
  CHECK(header_of([](SlotRecord& r) { r.shard = 3; }) == SlotVerdict::kHeader);
  CHECK(header_of([](SlotRecord& r) { r.offset += 4096; }) == SlotVerdict::kHeader);
  CHECK(header_of([](SlotRecord& r) { r.bytes += 1; }) == SlotVerdict::kHeader);
  CHECK(header_of([](SlotRecord& r) { r.checksums[1] ^= 1; }) == SlotVerdict::kHeader);
  CHECK(header_of([](SlotRecord& r) { r.checksums.pop_back(); }) == SlotVerdict::kHeader);
}

void test_finding() {
  Sample s;
  std::vector<std::uint8_t> stretch(64 * kHeaderBytes);
  std::copy(s.page.begin(), s.page.end(), stretch.begin() + 3 * 4096);
  const std::uint64_t base = s.record.offset - 4096 - 3 * 4096;
  auto found = find_records(stretch, base, 4096);
  CHECK(found.size() == 1 && found[0].at == base + 3 * 4096 && found[0].bytes == s.shape.bytes());
  CHECK(found[0].sequence == 5 && found[0].record_bytes == kRecordFixedBytes + 32 + 8);
  CHECK(find_records(stretch, base + 4096, 4096).empty());  // a copy of it elsewhere is nothing
  CHECK(find_records(stretch, base, 2 * 4096).empty());
  CHECK(find_records(stretch, base, 0).empty());
}

void test_whole_records() {
  const Sample s;
  std::vector<std::uint8_t> row;
  encode_record(s.record, row);
  std::vector<std::uint8_t> framed;
  const auto add = [&framed](const std::vector<std::uint8_t>& one) {
    const auto length = static_cast<std::uint32_t>(one.size());
    const auto* raw = reinterpret_cast<const std::uint8_t*>(&length);
    framed.insert(framed.end(), raw, raw + 4);
    framed.insert(framed.end(), one.begin(), one.end());
  };
  std::vector<std::uint8_t> bad = row;
  bad[60] ^= 1;
  add(row);
  add(bad);
  add({});
  add(row);
  std::size_t damaged = 0;
  CHECK(whole_records(framed, damaged).size() == 2 * row.size() && damaged == 2);
  framed.pop_back();
  CHECK(whole_records(framed, damaged).size() == row.size() && damaged == 3);
}

}  // namespace

int main() {
  test_good_wherever_it_is_split();
  test_every_flip_is_seen();
  test_another_slots_header();
  test_finding();
  test_whole_records();
  return kvstore::test::finish();
}
