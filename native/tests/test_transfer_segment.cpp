// A segment gives out no address beyond it, none to write through where it is mapped read-only, and is as large as was said.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <limits>
#include <stdexcept>
#include <system_error>

#include "check.hpp"
#include "transfer/mapped_segment.hpp"

using namespace kvstore::transfer;
using kvstore::test::throws;

namespace {

constexpr std::uint64_t kBytes = 3 * 4096;
constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();

int descriptors() {
  int open = 0;
  for (int fd = 0; fd < 256; ++fd) open += fcntl(fd, F_GETFD) >= 0 ? 1 : 0;
  return open;
}

void test_bounds() {
  CHECK(within(0, 0, 0) && within(0, kBytes, kBytes) && within(kBytes, 0, kBytes) && within(kBytes - 1, 1, kBytes));
  struct {
    std::uint64_t offset, count;
  } const beyond[] = {{0, kBytes + 1}, {kBytes, 1}, {kBytes + 1, 0}, {1, kBytes}, {kMost, 1}, {1, kMost}, {kMost, kMost}, {kMost - 4095, 4096}};
  const auto segment = MappedSegment::create(kBytes, "test");
  for (const auto& [offset, count] : beyond) {
    CHECK(!within(offset, count, kBytes));
    CHECK(!segment->contains(offset, count));
    CHECK(segment->readable(offset, count) == nullptr);
    CHECK(segment->writable(offset, count) == nullptr);
  }
  CHECK(segment->readable(kBytes - 1, 1) == segment->readable(0, kBytes) + kBytes - 1);
  CHECK(segment->writable(4096, kBytes - 4096) == segment->writable(0, 1) + 4096);
}

void test_two_mappings_of_the_same_bytes() {
  const auto segment = MappedSegment::create(kBytes, "test");
  const MappedSegment reader(segment->fd(), kBytes, Access::kRead, Populate::kAtOnce);
  CHECK(reader.writable(0, 1) == nullptr);
  std::memcpy(segment->writable(5000, 5), "hello", 5);
  CHECK(std::memcmp(segment->readable(5000, 5), "hello", 5) == 0);
  CHECK(std::memcmp(reader.readable(5000, 5), "hello", 5) == 0);
  // The read-only side is that for the system too, even of a segment that may be written.
  CHECK(segment->readable(0, 1) != segment->writable(0, 1));
  int pair[2];
  CHECK(pipe(pair) == 0);
  CHECK(write(pair[1], "x", 1) == 1);
  CHECK(read(pair[0], const_cast<std::byte*>(segment->readable(0, 1)), 1) < 0 && errno == EFAULT);
  close(pair[0]);
  close(pair[1]);
}

void test_size() {
  const auto segment = MappedSegment::create(kBytes, "test");
  const int before = descriptors();
  CHECK(throws<std::invalid_argument>([&] { MappedSegment(segment->fd(), kBytes + 1, Access::kRead); }));
  CHECK(throws<std::invalid_argument>([&] { MappedSegment(segment->fd(), 0, Access::kRead); }));
  CHECK(throws<std::invalid_argument>([] { MappedSegment::create(0, "test"); }));
  CHECK(throws<std::system_error>([] { MappedSegment(-1, kBytes, Access::kRead); }));
  CHECK(ftruncate(segment->fd(), 0) != 0 && ftruncate(segment->fd(), 2 * kBytes) != 0);
  const int fd = segment->read_only_fd();
  CHECK(throws<std::system_error>([&] { MappedSegment(fd, kBytes, Access::kReadWrite); }));
  {
    const MappedSegment reader(fd, kBytes, Access::kRead);
    CHECK(fcntl(reader.fd(), F_GETFD) == FD_CLOEXEC);
  }
  close(fd);
  CHECK(descriptors() == before);
}

}  // namespace

int main() {
  test_bounds();
  test_two_mappings_of_the_same_bytes();
  test_size();
  return kvstore::test::finish();
}
