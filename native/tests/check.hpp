// A test is a plain executable: CHECK what must hold, return finish() from main.
#pragma once
#include <cstdio>
#include <cstdlib>

namespace kvstore::test {

inline int& failures() {
  static int count = 0;
  return count;
}

inline void report(const char* file, int line, const char* what) {
  std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
  if (++failures() >= 20) {
    std::fprintf(stderr, "giving up after 20 failures\n");
    std::exit(1);
  }
}

inline int finish() {
  if (failures() == 0) std::puts("ok");
  return failures() == 0 ? 0 : 1;
}

template <typename Error, typename Call>
bool throws(Call call) {
  try {
    call();
  } catch (const Error&) {
    return true;
  }
  return false;
}

}  // namespace kvstore::test

#define CHECK(condition)                                                    \
  do {                                                                      \
    if (!(condition)) kvstore::test::report(__FILE__, __LINE__, #condition); \
  } while (false)
