// How long a thread looks again before it sleeps. Waking a sleeping thread costs more than a short wait is worth (on a virtual
// machine a halted core costs tens of microseconds), but a thread that only looks burns a core.
//
// Rules
// - After halt polling, as KVM does it for its guests (Linux, Documentation/virt/kvm/halt-polling.rst): a wait that was short
//   and was slept through doubles the window; one longer than the largest window halves it, and soon closes it. So whoever
//   asks in quick succession is answered by a thread that is awake, and an idle one costs nothing.
// - Who looks gives way between two looks, since what it waits for may have been woken on its own core. Where somebody else
//   kept that core for long, looking is over at once, and not tried again for a while.
// - One thread at a time.
#pragma once
#include <sched.h>

#include <algorithm>
#include <cstdint>

#include "clock.hpp"

namespace kvstore {

class SpinWindow {
 public:
  // `longest` in nanoseconds; none where this process has one core only, since what is waited for needs that core.
  explicit SpinWindow(std::int64_t longest) noexcept : longest_(cores() > 1 ? longest : 0) {}

  std::int64_t window() const noexcept { return window_; }

  // Between two looks. False: the core is wanted, go to sleep.
  bool give_way() noexcept {
    const std::int64_t before = monotonic_now();
    sched_yield();
    if (monotonic_now() - before < kCrowded) return true;
    crowded();
    return false;
  }
  void crowded() noexcept {
    window_ = 0;
    shy_ = kShy;
  }

  // A wait has ended after so long, asleep or not.
  void waited(std::int64_t time) noexcept {
    if (shy_ > 0) {
      --shy_;
      return;
    }
    if (time <= window_) return;
    if (time <= longest_) {
      window_ = std::min(longest_, std::max(kFirst, 2 * window_));
    } else {
      window_ = window_ / 2 < kFirst ? 0 : window_ / 2;
    }
  }

 private:
  static constexpr std::int64_t kFirst = 10'000;
  static constexpr std::int64_t kCrowded = 1'000'000;  // nearer to a scheduler's slice than to a frame's handling
  static constexpr int kShy = 64;                      // waits
  static int cores() noexcept {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 2;
  }

  std::int64_t longest_;
  std::int64_t window_ = 0;
  int shy_ = 0;
};

}  // namespace kvstore
