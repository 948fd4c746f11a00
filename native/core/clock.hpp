// The monotonic clock, for those at the edge who act: nothing that decides reads it.
#pragma once
#include <ctime>

#include "types.hpp"

namespace kvstore {

inline Nanos monotonic_now() noexcept {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return Nanos{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

}  // namespace kvstore
