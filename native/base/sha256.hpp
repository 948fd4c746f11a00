// SHA-256 (FIPS 180-4) and HMAC-SHA-256 (RFC 2104), with SHA-NI where the CPU has it; and chains of block keys.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvstore {

using Digest = std::array<std::uint8_t, 32>;

class Sha256 {
 public:
  Sha256() noexcept;
  void update(const void* data, std::size_t bytes) noexcept;
  Digest finish() noexcept;

 private:
  std::uint32_t state_[8];
  std::uint64_t length_ = 0;
  std::uint8_t buffer_[64];
  std::size_t buffered_ = 0;
};

Digest sha256(const void* data, std::size_t bytes) noexcept;
Digest hmac_sha256(std::span<const std::uint8_t> secret, std::span<const std::uint8_t> message) noexcept;

}  // namespace kvstore
