// FIPS 180-4 and RFC 4231 vectors, every variant that this CPU runs, and all ways of cutting an update.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "base/kernels.hpp"
#include "base/sha256.hpp"
#include "check.hpp"

using namespace kvstore;

namespace {

std::string hex(const Digest& digest) {
  std::string out;
  for (const std::uint8_t byte : digest) {
    char two[3];
    std::snprintf(two, sizeof two, "%02x", byte);
    out += two;
  }
  return out;
}

std::span<const std::uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

void nist_vectors() {
  const auto hash = [](const std::string& text) { return hex(sha256(text.data(), text.size())); };
  CHECK(hash("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(hash("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(hash("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrst"
             "u") == "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  CHECK(hash(std::string(1'000'000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

void rfc4231_vectors() {
  const auto mac = [](const std::string& key, const std::string& text) {
    return hex(hmac_sha256(bytes_of(key), bytes_of(text)));
  };
  CHECK(mac(std::string(20, '\x0b'), "Hi There") == "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
  CHECK(mac("Jefe", "what do ya want for nothing?") ==
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  CHECK(mac(std::string(131, '\xaa'), "Test Using Larger Than Block-Size Key - Hash Key First") ==
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

void any_cut_gives_the_same() {
  std::vector<std::uint8_t> data(300);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::uint8_t>(i * 37 + 11);
  for (std::size_t size = 0; size <= data.size(); ++size) {
    const Digest whole = sha256(data.data(), size);
    for (const std::size_t cut : {std::size_t{1}, std::size_t{7}, std::size_t{63}, std::size_t{64}, std::size_t{65}}) {
      Sha256 hash;
      for (std::size_t at = 0; at < size; at += cut) hash.update(data.data() + at, std::min(cut, size - at));
      CHECK(hash.finish() == whole);
      hash.update(data.data(), size);  // finish() starts anew
      CHECK(hash.finish() == whole);
    }
  }
}

void variants_agree() {
#if KVSTORE_X86
  if (!kernels::cpu().sha) {
    std::puts("no SHA extensions here: only the portable form was tested");
    return;
  }
  std::vector<std::uint8_t> blocks(64 * 9 + 3);
  for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<std::uint8_t>(i * i + 3 * i);
  for (std::size_t shift = 0; shift < 3; ++shift) {
    for (std::size_t count = 0; count <= 9; ++count) {
      std::uint32_t a[8] = {1, 2, 3, 0xffffffff, 5, 6, 0x80000000, 8}, b[8];
      std::memcpy(b, a, sizeof a);
      kernels::sha256_blocks_portable(a, blocks.data() + shift, count);
      kernels::sha256_blocks_shani(b, blocks.data() + shift, count);
      CHECK(std::memcmp(a, b, sizeof a) == 0);
    }
  }
#endif
}

}  // namespace

int main() {
  nist_vectors();
  rfc4231_vectors();
  any_cut_gives_the_same();
  variants_agree();
  return test::finish();
}
