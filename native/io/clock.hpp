// The one place where the engines read a clock: deadlines are kept by those who act.
#pragma once
#include <ctime>

#include "engine.hpp"

namespace kvstore::io {

inline Nanos read_clock(clockid_t which) noexcept {
  timespec t{};
  clock_gettime(which, &t);
  return Nanos{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}
inline Nanos monotonic_now() noexcept { return read_clock(CLOCK_MONOTONIC); }
inline Nanos thread_cpu_now() noexcept { return read_clock(CLOCK_THREAD_CPUTIME_ID); }

}  // namespace kvstore::io
