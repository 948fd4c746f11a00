// Checksums and copies for Python: tests, benchmarks, and whatever moves bytes outside the native journeys.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <numeric>

#include "base/checksum.hpp"
#include "base/copy.hpp"
#include "base/kernels.hpp"
#include "buffers.hpp"

namespace kvstore::bind {
namespace {

constexpr std::size_t kShortBytes = 65'536;  // about 3 us

std::uint64_t hash_of(nb::handle data) {
  const Buffer buffer(data, "data");
  const MaybeRelease gil(buffer.size() > kShortBytes);
  return xxh3(buffer.data(), buffer.size());
}

std::uint64_t part_of(nb::handle data) {
  const Buffer buffer(data, "data");
  const MaybeRelease gil(buffer.size() > kShortBytes);
  return part_checksum(buffer.data(), buffer.size());
}

// The buffer holds whole blocks, each of parts of these sizes, one after the other.
nb::ndarray<nb::numpy, std::uint64_t, nb::ndim<1>> parts_of(nb::handle data, const std::vector<std::size_t>& part_bytes) {
  const Buffer buffer(data, "data");
  std::size_t block = 0;
  for (const std::size_t part : part_bytes) {
    if (__builtin_add_overflow(block, part, &block)) throw nb::value_error("part_bytes add up to more than memory");
  }
  if (block == 0 || buffer.size() % block != 0) {
    throw nb::value_error(("data is " + std::to_string(buffer.size()) + " bytes; it must be whole blocks of " +
                           std::to_string(block) + ", the sum of part_bytes").c_str());
  }
  std::vector<std::uint64_t> sums;
  sums.reserve(buffer.size() / block * part_bytes.size());
  {
    const MaybeRelease gil(buffer.size() > kShortBytes);
    for (std::size_t at = 0; at < buffer.size();) {
      for (const std::size_t part : part_bytes) {
        sums.push_back(part_checksum(buffer.data() + at, part));
        at += part;
      }
    }
  }
  return to_array(std::move(sums));
}

nb::ndarray<nb::numpy, std::uint64_t, nb::ndim<1>> leaves_of(nb::handle data) {
  const Buffer buffer(data, "data");
  std::vector<std::uint64_t> leaves;
  leaves.reserve(buffer.size() / kLeafBytes + 1);
  {
    const MaybeRelease gil(buffer.size() > kShortBytes);
    for (std::size_t at = 0; at < buffer.size(); at += kLeafBytes) {
      leaves.push_back(xxh3(buffer.data() + at, std::min(kLeafBytes, buffer.size() - at)));
    }
  }
  return to_array(std::move(leaves));
}

std::uint64_t combine(nb::ndarray<const std::uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> leaves) {
  return combine_leaves({leaves.data(), leaves.size()});
}

void copy_into(nb::handle to, nb::handle from) {
  const Buffer target(to, "to", Buffer::Access::kWrite), source(from, "source");
  if (target.size() != source.size()) throw nb::value_error("to and source must be of one size");
  const MaybeRelease gil(source.size() > kShortBytes);
  copy_bytes(target.data(), source.data(), source.size());
  store_fence();
}

// Lists of buffers as the pieces of one run of bytes.
class Pieces {
 public:
  Pieces(Objects buffers, const char* name, Buffer::Access access) {
    for (nb::handle buffer : buffers) {
      held_.push_back(std::make_unique<Buffer>(buffer, name, access));
      pieces_.push_back({held_.back()->data(), held_.back()->size()});
      bytes_ += held_.back()->size();
    }
  }
  std::span<const Piece> pieces() const noexcept { return pieces_; }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  std::vector<std::unique_ptr<Buffer>> held_;
  std::vector<Piece> pieces_;
  std::size_t bytes_ = 0;
};

nb::ndarray<nb::numpy, std::uint64_t, nb::ndim<1>> copy_parts(Objects to, Objects from,
                                                              const std::vector<std::size_t>& part_bytes) {
  const Pieces target(to, "to", Buffer::Access::kWrite), source(from, "source", Buffer::Access::kRead);
  const std::size_t bytes = std::accumulate(part_bytes.begin(), part_bytes.end(), std::size_t{0});
  if (target.bytes() != bytes || source.bytes() != bytes) {
    throw nb::value_error("to, source and part_bytes must be of one size");
  }
  std::vector<std::uint64_t> sums;
  sums.reserve(part_bytes.size());
  {
    const MaybeRelease gil(bytes > kShortBytes);
    PieceCursor reader(source.pieces()), writer(target.pieces());
    for (const std::size_t part : part_bytes) sums.push_back(copy_part(reader, writer, part));
    store_fence();
  }
  return to_array(std::move(sums));
}

// One batch of a benchmark: blocks listed by number, so that the memory is cold and the loop is native. "memcpy" is the C
// library's, "stream" the best non-temporal copy, "part" the checksummed one (one part a block).
std::uint64_t copy_blocks(const std::string& kind, nb::handle to, nb::handle from, std::size_t block_bytes,
                          const std::vector<std::size_t>& blocks) {
  const Buffer target(to, "to", Buffer::Access::kWrite), source(from, "source");
  const std::size_t held = block_bytes == 0 ? 0 : std::min(target.size(), source.size()) / block_bytes;
  for (const std::size_t block : blocks) {
    if (block >= held) throw nb::value_error("blocks names one that does not lie in both buffers");
  }
  if (kind != "memcpy" && kind != "stream" && kind != "part") throw nb::value_error("kind must be memcpy, stream or part");
  const MaybeRelease gil(true);
  std::uint64_t mixed = 0;
  for (const std::size_t block : blocks) {
    std::byte* const dst = target.data() + block * block_bytes;
    std::byte* const src = source.data() + block * block_bytes;
    if (kind == "memcpy") {
      std::memcpy(dst, src, block_bytes);
    } else if (kind == "stream") {
      copy_bytes(dst, src, block_bytes);
    } else {
      const Piece read{src, block_bytes}, write{dst, block_bytes};
      PieceCursor reader({&read, 1}), writer({&write, 1});
      mixed ^= copy_part(reader, writer, block_bytes);
    }
  }
  store_fence();
  return mixed;
}

}  // namespace

void bind_checksum(nb::module_& m) {
  m.attr("LEAF_BYTES") = kLeafBytes;
  m.attr("STREAM_BYTES_MIN") = kStreamBytesMin;
  m.def("kernels", [] { return kernels::chosen().names; }, "Which routines this CPU runs.");
  m.def("xxh3_64", hash_of, nb::arg("data"), "XXH3-64, seed 0, of any contiguous buffer.");
  m.def("part_checksum", part_of, nb::arg("data"), "XXH3-64 over the XXH3-64s of the buffer's 4 KiB leaves.");
  m.def("part_checksums", parts_of, nb::arg("data"), nb::arg("part_bytes"),
        "One checksum a part of each block in the buffer, in order.");
  m.def("leaf_digests", leaves_of, nb::arg("data"), "XXH3-64 of each 4 KiB leaf; the last may be short.");
  m.def("combine_leaves", combine, nb::arg("leaves"), "A part's checksum from its leaves' digests.");
  m.def("copy_bytes", copy_into, nb::arg("to"), nb::arg("source"), "Copies, past the caches where that is faster.");
  m.def("copy_parts", copy_parts, nb::arg("to"), nb::arg("source"), nb::arg("part_bytes"),
        "Copies a list of buffers over a list of buffers in one pass; the checksum of each part as it was stored.");
  m.def("copy_blocks", copy_blocks, nb::arg("kind"), nb::arg("to"), nb::arg("source"), nb::arg("block_bytes"),
        nb::arg("blocks"), "One batch of bench/copy.py.");
}

}  // namespace kvstore::bind
