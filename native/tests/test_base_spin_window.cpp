// A window opens for short waits, closes for long ones, and never passes its limit.
#include <sched.h>

#include "base/spin_window.hpp"
#include "check.hpp"

using kvstore::SpinWindow;

namespace {

constexpr std::int64_t kLongest = 100'000;

void opens_for_short_waits() {
  SpinWindow spin(kLongest);
  CHECK(spin.window() == 0);
  std::int64_t before = 0;
  for (int i = 0; i < 8; ++i) {
    spin.waited(kLongest);  // slept through, and not for long
    CHECK(spin.window() >= before && spin.window() <= kLongest);
    before = spin.window();
  }
  CHECK(before == kLongest);
  spin.waited(5'000);  // answered while it looked
  CHECK(spin.window() == kLongest);
}

void closes_for_long_waits() {
  SpinWindow spin(kLongest);
  for (int i = 0; i < 8; ++i) spin.waited(kLongest);
  spin.waited(kLongest + 1);
  CHECK(spin.window() == kLongest / 2);  // one pause between two bursts does not send it to sleep
  for (int i = 0; i < 8; ++i) spin.waited(1'000'000'000);
  CHECK(spin.window() == 0);
}

void shies_from_a_crowded_core() {
  SpinWindow spin(kLongest);
  for (int i = 0; i < 8; ++i) spin.waited(kLongest);
  spin.crowded();
  for (int i = 0; i < 64; ++i) {
    CHECK(spin.window() == 0);
    spin.waited(kLongest);
  }
  spin.waited(kLongest);
  CHECK(spin.window() > 0);
}

void never_where_it_is_off_or_alone() {
  SpinWindow off(0);
  for (int i = 0; i < 8; ++i) off.waited(1);
  CHECK(off.window() == 0);
  cpu_set_t all, one;
  CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &all)) continue;
    CPU_SET(cpu, &one);
    break;
  }
  CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
  SpinWindow alone(kLongest);
  for (int i = 0; i < 8; ++i) alone.waited(kLongest);
  CHECK(alone.window() == 0);
  sched_setaffinity(0, sizeof all, &all);
}

}  // namespace

int main() {
  opens_for_short_waits();
  closes_for_long_waits();
  shies_from_a_crowded_core();
  never_where_it_is_off_or_alone();
  return kvstore::test::finish();
}
