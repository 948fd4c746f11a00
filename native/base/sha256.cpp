// FIPS 180-4, sections 5.1.1 (padding), 5.3.3 (initial value) and 6.2.2 (compression); RFC 2104 for HMAC.
#include "sha256.hpp"

#include <bit>
#include <cstring>

#include "kernels.hpp"
#include "sha256_rounds.hpp"

namespace kvstore {
namespace {

constexpr std::size_t kBlock = 64;

using kernels::kRound;

std::uint32_t load_be32(const std::uint8_t* p) noexcept {
  return std::uint32_t{p[0]} << 24 | std::uint32_t{p[1]} << 16 | std::uint32_t{p[2]} << 8 | std::uint32_t{p[3]};
}

void store_be32(std::uint8_t* p, std::uint32_t v) noexcept {
  for (int i = 0; i < 4; ++i) p[i] = static_cast<std::uint8_t>(v >> (24 - 8 * i));
}

void compress_one(std::uint32_t* state, const std::uint8_t* block) noexcept {
  std::uint32_t w[64];
  for (int t = 0; t < 16; ++t) w[t] = load_be32(block + 4 * t);
  for (int t = 16; t < 64; ++t) {
    const std::uint32_t s0 = std::rotr(w[t - 15], 7) ^ std::rotr(w[t - 15], 18) ^ (w[t - 15] >> 3);
    const std::uint32_t s1 = std::rotr(w[t - 2], 17) ^ std::rotr(w[t - 2], 19) ^ (w[t - 2] >> 10);
    w[t] = w[t - 16] + s0 + w[t - 7] + s1;
  }
  std::uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
  std::uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
  for (int t = 0; t < 64; ++t) {
    const std::uint32_t t1 =
        h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) + ((e & f) ^ (~e & g)) + kRound[t] + w[t];
    const std::uint32_t t2 = (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
  }
  state[0] += a, state[1] += b, state[2] += c, state[3] += d;
  state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

}  // namespace

namespace kernels {
void sha256_blocks_portable(std::uint32_t* state, const std::uint8_t* blocks, std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i) compress_one(state, blocks + kBlock * i);
}
}  // namespace kernels

Sha256::Sha256() noexcept
    : state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {}

void Sha256::update(const void* data, std::size_t bytes) noexcept {
  if (bytes == 0) return;
  const auto* from = static_cast<const std::uint8_t*>(data);
  const auto compress = kernels::chosen().sha256_blocks;
  length_ += bytes;
  if (buffered_ > 0) {
    const std::size_t room = kBlock - buffered_;
    const std::size_t step = bytes < room ? bytes : room;
    std::memcpy(buffer_ + buffered_, from, step);
    buffered_ += step;
    from += step;
    bytes -= step;
    if (buffered_ < kBlock) return;
    compress(state_, buffer_, 1);
    buffered_ = 0;
  }
  if (const std::size_t whole = bytes / kBlock; whole > 0) {
    compress(state_, from, whole);
    from += whole * kBlock;
    bytes -= whole * kBlock;
  }
  if (bytes > 0) std::memcpy(buffer_, from, bytes);
  buffered_ = bytes;
}

Digest Sha256::finish() noexcept {
  // The message, a one bit, zeros to 8 bytes before the end of a block, the length in bits.
  std::uint8_t tail[2 * kBlock] = {};
  if (buffered_ > 0) std::memcpy(tail, buffer_, buffered_);
  tail[buffered_] = 0x80;
  const std::size_t blocks = buffered_ + 9 <= kBlock ? 1 : 2;
  const std::uint64_t bits = length_ * 8;
  store_be32(tail + blocks * kBlock - 8, static_cast<std::uint32_t>(bits >> 32));
  store_be32(tail + blocks * kBlock - 4, static_cast<std::uint32_t>(bits));
  kernels::chosen().sha256_blocks(state_, tail, blocks);
  Digest out;
  for (std::size_t i = 0; i < 8; ++i) store_be32(out.data() + 4 * i, state_[i]);
  *this = Sha256();
  return out;
}

Digest sha256(const void* data, std::size_t bytes) noexcept {
  Sha256 hash;
  hash.update(data, bytes);
  return hash.finish();
}

Digest hmac_sha256(std::span<const std::uint8_t> secret, std::span<const std::uint8_t> message) noexcept {
  std::uint8_t key[kBlock] = {};
  if (secret.size() > kBlock) {
    const Digest digest = sha256(secret.data(), secret.size());
    std::memcpy(key, digest.data(), digest.size());
  } else if (!secret.empty()) {
    std::memcpy(key, secret.data(), secret.size());
  }
  std::uint8_t pad[kBlock];
  Sha256 hash;
  for (std::size_t i = 0; i < kBlock; ++i) pad[i] = key[i] ^ 0x36;
  hash.update(pad, kBlock);
  hash.update(message.data(), message.size());
  const Digest inner = hash.finish();
  for (std::size_t i = 0; i < kBlock; ++i) pad[i] = key[i] ^ 0x5c;
  hash.update(pad, kBlock);
  hash.update(inner.data(), inner.size());
  return hash.finish();
}

}  // namespace kvstore
