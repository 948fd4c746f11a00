// Copies at every alignment and piece boundary: the right bytes, nothing around them, the right checksum.
#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "base/checksum.hpp"
#include "base/copy.hpp"
#include "base/kernels.hpp"
#include "check.hpp"

using namespace kvstore;

namespace {

constexpr std::size_t kGuard = 128;

std::vector<std::byte> noise(std::size_t bytes, unsigned seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> data(bytes);
  for (auto& byte : data) byte = static_cast<std::byte>(random());
  return data;
}

void copy_bytes_at_every_alignment() {
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{255}, kStreamBytesMin - 1, kStreamBytesMin,
                                  kStreamBytesMin + 1, kStreamBytesMin + 63, kStreamBytesMin + 4097}) {
    const auto source = noise(bytes + kGuard, 1);
    for (std::size_t shift = 0; shift < 64; shift += shift < 20 ? 1 : 11) {
      std::vector<std::byte> target(bytes + 2 * kGuard, std::byte{0xee});
      copy_bytes(target.data() + kGuard + shift - 64, source.data() + shift / 3, bytes);
      store_fence();
      const std::byte* got = target.data() + kGuard + shift - 64;
      CHECK(bytes == 0 || std::memcmp(got, source.data() + shift / 3, bytes) == 0);
      CHECK(std::all_of(target.data(), const_cast<std::byte*>(got), [](std::byte b) { return b == std::byte{0xee}; }));
      CHECK(std::all_of(const_cast<std::byte*>(got) + bytes, target.data() + target.size(),
                        [](std::byte b) { return b == std::byte{0xee}; }));
    }
  }
}

// Cuts `bytes` into pieces of `buffer`, with gaps between them that must stay as they are.
std::vector<Piece> cut(std::vector<std::byte>& buffer, std::size_t bytes, std::mt19937_64& random, std::size_t piece_max) {
  std::vector<Piece> pieces;
  std::size_t at = random() % 70;
  while (bytes > 0) {
    if (random() % 5 == 0) pieces.push_back({buffer.data() + at, 0});
    const std::size_t step = std::min<std::size_t>(bytes, 1 + random() % piece_max);
    pieces.push_back({buffer.data() + at, step});
    at += step + random() % 70;
    bytes -= step;
  }
  CHECK(at <= buffer.size());
  return pieces;
}

std::vector<std::byte> join(const std::vector<Piece>& pieces) {
  std::vector<std::byte> all;
  for (const Piece& piece : pieces) all.insert(all.end(), piece.data, piece.data + piece.bytes);
  return all;
}

// What the target buffer must look like: its pieces filled, the rest untouched.
std::vector<std::byte> expected(const std::vector<std::byte>& before, const std::vector<Piece>& pieces,
                                const std::vector<std::byte>& payload) {
  std::vector<std::byte> after = before;
  std::size_t at = 0;
  for (const Piece& piece : pieces) {
    std::memcpy(after.data() + (piece.data - before.data()), payload.data() + at, piece.bytes);
    at += piece.bytes;
  }
  return after;
}

void pieces_of_any_size(unsigned seed) {
  std::mt19937_64 random(seed);
  const std::size_t bytes = 1 + random() % (5 * kLeafBytes);
  const std::size_t from_max = random() % 2 ? 64 * kLeafBytes : 1 + random() % 6000;
  const std::size_t to_max = random() % 2 ? 64 * kLeafBytes : 1 + random() % 6000;
  auto source = noise(bytes * 72 + 1000, seed);
  std::vector<std::byte> target(bytes * 72 + 1000, std::byte{0xee});
  const auto untouched = target;
  const auto from = cut(source, bytes, random, from_max);
  const auto to = cut(target, bytes, random, to_max);
  const auto payload = join(from);
  std::vector<Piece> shadow;  // the same pieces, over the copy of the target as it was
  for (const Piece& piece : to) {
    shadow.push_back({const_cast<std::byte*>(untouched.data()) + (piece.data - target.data()), piece.bytes});
  }
  const auto wanted = expected(untouched, shadow, payload);

  PieceCursor reader(from), writer(to);
  const std::size_t first = random() % (bytes + 1);  // two parts, one after the other
  const std::uint64_t sums[2] = {copy_part(reader, writer, first), copy_part(reader, writer, bytes - first)};
  store_fence();
  CHECK(target == wanted);
  CHECK(sums[0] == part_checksum(payload.data(), first));
  CHECK(sums[1] == part_checksum(payload.data() + first, bytes - first));
  CHECK(reader.contiguous() == 0 && writer.contiguous() == 0);

  target = untouched;
  PieceCursor again(from), into(to);
  copy_pieces(again, into, first);
  copy_pieces(again, into, bytes - first);
  store_fence();
  CHECK(target == wanted);
}

void whole_blocks_at_every_alignment() {
  const std::size_t bytes = 6 * kLeafBytes + 123;
  auto source = noise(bytes + kGuard, 9);
  for (std::size_t shift = 0; shift < 65; ++shift) {
    std::vector<std::byte> target(bytes + 2 * kGuard, std::byte{0xee});
    const Piece from{source.data() + shift % 17, bytes}, to{target.data() + kGuard + shift - 65, bytes};
    PieceCursor reader({&from, 1}), writer({&to, 1});
    const std::uint64_t sum = copy_part(reader, writer, bytes);
    store_fence();
    CHECK(std::memcmp(to.data, from.data, bytes) == 0);
    CHECK(sum == part_checksum(from.data, bytes));
    CHECK(to.data[-1] == std::byte{0xee} && to.data[bytes] == std::byte{0xee});
  }
}

void variants_agree() {
  alignas(64) std::byte target[2 * kLeafBytes];
  const auto source = noise(2 * kLeafBytes, 4);
  for (std::size_t shift = 0; shift < 64; ++shift) {
    std::memset(target, 0, sizeof target);
    kernels::stream_portable(target, source.data() + shift, kLeafBytes);
    store_fence();
    CHECK(std::memcmp(target, source.data() + shift, kLeafBytes) == 0);
#if KVSTORE_X86
    if (!kernels::cpu().avx2) continue;
    std::memset(target, 0, sizeof target);
    kernels::stream_avx2(target, source.data() + shift, kLeafBytes - 64);
    store_fence();
    CHECK(std::memcmp(target, source.data() + shift, kLeafBytes - 64) == 0 && target[kLeafBytes - 64] == std::byte{0});
    for (const std::size_t to : {std::size_t{0}, std::size_t{16}, std::size_t{32}, std::size_t{48}}) {
      std::memset(target, 0, sizeof target);
      const std::uint64_t digest = kernels::stream_leaf_avx2(target + to, source.data() + shift);
      store_fence();
      CHECK(std::memcmp(target + to, source.data() + shift, kLeafBytes) == 0 && target[to + kLeafBytes] == std::byte{0});
      CHECK(digest == kernels::xxh3_portable(source.data() + shift, kLeafBytes));
    }
#endif
  }
}

}  // namespace

int main() {
  copy_bytes_at_every_alignment();
  whole_blocks_at_every_alignment();
  for (unsigned seed = 0; seed < 400; ++seed) pieces_of_any_size(seed);
  variants_agree();
  return test::finish();
}
