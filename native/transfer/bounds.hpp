// Whether a range lies in memory of a length. The one place where transfer and the door look at that.
#pragma once
#include <cstdint>

namespace kvstore::transfer {

// No sum that could wrap around: both numbers may come from a peer.
constexpr bool within(std::uint64_t offset, std::uint64_t length, std::uint64_t bytes) noexcept {
  return length <= bytes && offset <= bytes - length;
}

}  // namespace kvstore::transfer
