// Known XXH3-64 values, the definition of a part checksum, and every variant that this CPU runs.
#include <algorithm>
#include <cstring>
#include <vector>

#include "base/checksum.hpp"
#include "base/kernels.hpp"
#include "check.hpp"

using namespace kvstore;

namespace {

std::vector<std::uint8_t> pattern(std::size_t bytes) {
  std::vector<std::uint8_t> data(bytes);
  std::uint64_t state = 0x9e3779b97f4a7c15;
  for (auto& byte : data) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    byte = static_cast<std::uint8_t>(state >> 56);
  }
  return data;
}

void known_values() {
  CHECK(xxh3(nullptr, 0) == 0x2d06800538d394c2);  // from the xxHash specification
  CHECK(part_checksum(nullptr, 0) == xxh3(nullptr, 0));
  CHECK(combine_leaves({}) == xxh3(nullptr, 0));
}

void a_part_is_the_hash_of_its_leaves() {
  const auto data = pattern(70 * kLeafBytes + 17);
  for (const std::size_t bytes : {std::size_t{1}, kLeafBytes - 1, kLeafBytes, kLeafBytes + 1, 2 * kLeafBytes,
                                  31 * kLeafBytes, 32 * kLeafBytes, 33 * kLeafBytes + 5, 64 * kLeafBytes, data.size()}) {
    std::vector<std::uint64_t> leaves;
    for (std::size_t at = 0; at < bytes; at += kLeafBytes) {
      leaves.push_back(xxh3(data.data() + at, std::min(kLeafBytes, bytes - at)));
    }
    const std::uint64_t expected = xxh3(leaves.data(), 8 * leaves.size());  // x86 is little-endian
    CHECK(part_checksum(data.data(), bytes) == expected);
    CHECK(combine_leaves(leaves) == expected);
    LeafFold fold;
    for (int again = 0; again < 2; ++again) {
      for (const std::uint64_t leaf : leaves) fold.add(leaf);
      CHECK(fold.finish() == expected);
    }
  }
}

void every_bit_counts() {
  auto data = pattern(2 * kLeafBytes + 100);
  const std::uint64_t before = part_checksum(data.data(), data.size());
  for (std::size_t at = 0; at < data.size(); at += 97) {
    data[at] ^= 1;
    CHECK(part_checksum(data.data(), data.size()) != before);
    data[at] ^= 1;
  }
}

void variants_agree() {
#if KVSTORE_X86
  if (!kernels::cpu().avx2) {
    std::puts("no AVX2 here: only the portable form was tested");
    return;
  }
  const auto data = pattern(3 * kLeafBytes);
  for (std::size_t bytes = 0; bytes < 1100; ++bytes) {
    CHECK(kernels::xxh3_portable(data.data() + bytes % 5, bytes) == kernels::xxh3_avx2(data.data() + bytes % 5, bytes));
  }
  for (std::size_t shift = 0; shift < 70; ++shift) {
    CHECK(kernels::xxh3_portable(data.data() + shift, kLeafBytes) == kernels::xxh3_avx2(data.data() + shift, kLeafBytes));
  }
#endif
}

}  // namespace

int main() {
  known_values();
  a_part_is_the_hash_of_its_leaves();
  every_bit_counts();
  variants_agree();
  return test::finish();
}
