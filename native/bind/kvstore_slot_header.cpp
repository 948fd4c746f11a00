// Slot records of a file tier, in batches: checked after a read, found where the index was lost.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <deque>
#include <stdexcept>

#include "buffers.hpp"
#include "core/slot_header.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore {
namespace {

using bind::Buffer;
using Buffers = nb::typed<nb::list, nb::any>;
using KeyRows = nb::ndarray<const std::uint8_t, nb::shape<-1, 32>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const std::uint64_t, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using WordRows = nb::ndarray<const std::uint64_t, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;

Key key_at(const KeyRows& rows, std::size_t index) {
  Key key;
  std::memcpy(key.bytes.data(), rows.data() + 32 * index, 32);
  return key;
}

Key key_of(const nb::bytes& raw, const char* name) {
  Key key;
  if (raw.size() != 32) throw std::invalid_argument(std::string(name) + ": 32 bytes");
  std::memcpy(key.bytes.data(), raw.data(), 32);
  return key;
}

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

nb::bytes check_slots(const nb::bytes& digest, std::uint16_t shard, std::vector<std::uint32_t> part_bytes,
                      const KeyRows& keys, const Words& offsets, const WordRows& checksums, const Buffers& pages,
                      const Buffers& bodies, const Buffers& tails) {
  const std::size_t n = pages.size();
  require(keys.shape(0) == n && offsets.shape(0) == n && checksums.shape(0) == n && bodies.size() == n && tails.size() == n,
          "keys, offsets, checksums, pages, bodies and tails: as many of each");
  RunShape shape;
  shape.ns = key_of(digest, "digest");
  shape.shard = shard;
  shape.part_bytes = std::move(part_bytes);
  std::deque<Buffer> held;  // buffers do not move
  for (std::size_t i = 0; i < n; ++i) {
    require(held.emplace_back(pages[i], "pages").size() == kHeaderBytes, "pages: 4096 bytes each");
    held.emplace_back(bodies[i], "bodies");
    held.emplace_back(tails[i], "tails");
  }
  const std::size_t parts = checksums.shape(1);
  std::vector<std::uint8_t> verdicts(n);
  {
    const nb::gil_scoped_release released;
    for (std::size_t i = 0; i < n; ++i) {
      verdicts[i] = static_cast<std::uint8_t>(
          check_slot(shape, key_at(keys, i), offsets.data()[i], {checksums.data() + i * parts, parts},
                     held[3 * i].bytes(), held[3 * i + 1].bytes(), held[3 * i + 2].bytes()));
    }
  }
  return nb::bytes(verdicts.data(), verdicts.size());
}

nb::list find(nb::handle stretch, std::uint64_t offset, std::uint64_t stride) {
  const Buffer buffer(stretch, "stretch");
  std::vector<FoundRecord> found;
  {
    const nb::gil_scoped_release released;
    found = find_records(buffer.bytes(), offset, stride);
  }
  nb::list out;
  for (const FoundRecord& one : found) {
    const auto row = buffer.bytes().subspan(one.at - offset, one.record_bytes);
    out.append(nb::make_tuple(one.at, one.bytes, one.sequence, nb::bytes(row.data(), row.size())));
  }
  return out;
}

nb::tuple whole(const nb::bytes& framed) {
  std::size_t damaged = 0;
  std::vector<std::uint8_t> records;
  {
    const nb::gil_scoped_release released;
    records = whole_records({static_cast<const std::uint8_t*>(framed.data()), framed.size()}, damaged);
  }
  return nb::make_tuple(nb::bytes(records.data(), records.size()), damaged);
}

}  // namespace

void bind_slot_header(nb::module_& m) {
  m.def("check_slots", &check_slots, "digest"_a, "shard"_a, "part_bytes"_a, "keys"_a, "offsets"_a, "checksums"_a,
        "pages"_a, "bodies"_a, "tails"_a,
        "A verdict a slot: 0 good, 1 the header is damaged or another slot's, 2 the payload does not verify. "
        "Payload i is bodies[i] then tails[i].");
  m.def("whole_records", &whole, "framed"_a, nb::sig("def whole_records(framed: bytes) -> tuple[bytes, int]"),
        "Of rows that each come behind their length (4 bytes), the whole records end to end; and how many were damaged.");
  m.def("find_records", &find, "stretch"_a, "offset"_a, "stride"_a,
        nb::sig("def find_records(stretch: memoryview, offset: int, stride: int) -> list[tuple[int, int, int, bytes]]"),
        "(header's offset, payload bytes, sequence, record) of the slots whose headers lie at every stride-th byte.");
}

}  // namespace kvstore
