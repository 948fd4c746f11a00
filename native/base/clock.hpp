// Clocks, for those at the edge who act: nothing that decides reads one.
#pragma once
#include <cstdint>
#include <ctime>

namespace kvstore {

inline std::int64_t read_clock(clockid_t which) noexcept {
  timespec t{};
  clock_gettime(which, &t);
  return std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}
inline std::int64_t monotonic_now() noexcept { return read_clock(CLOCK_MONOTONIC); }
inline std::int64_t thread_cpu_now() noexcept { return read_clock(CLOCK_THREAD_CPUTIME_ID); }

}  // namespace kvstore
