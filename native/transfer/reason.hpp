// Why bytes did not move. One number in native code, in Python (transfer.base.Reason) and on the wire.
#pragma once
#include <cstdint>

namespace kvstore::transfer {

enum class Reason : std::uint8_t {
  kNone = 0,          // not moved yet
  kLanded = 1,
  kRevoked = 2,       // the grant was taken back, or its region deregistered, by the peer
  kExpired = 3,       // the grant's time is over
  kPeerGone = 4,      // the connection to the peer has ended
  kLate = 5,          // our deadline
  kCancelled = 6,
  kDeregistered = 7,  // our own region is being taken back
  kOutOfBounds = 8,   // beyond a region, or beyond what was granted
  kNotAllowed = 9,    // a write into what may only be read
};

}  // namespace kvstore::transfer
