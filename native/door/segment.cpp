#include "segment.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14; refused by older kernels, which then fault as they go
#define MADV_POPULATE_WRITE 23
#endif

namespace kvstore::door {
namespace {

std::byte* map(int fd, std::uint64_t bytes, int protection) {
  void* at = mmap(nullptr, bytes, protection, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) {
    const int why = errno;
    close(fd);
    throw std::system_error(why, std::generic_category(), "mmap of the node's segment");
  }
  madvise(at, bytes, MADV_HUGEPAGE);
  return static_cast<std::byte*>(at);
}

}  // namespace

Segment::Segment(int fd, std::uint64_t bytes, std::uint64_t populate_max) : bytes_(bytes) {
  readable_ = map(fd, bytes, PROT_READ);
  writable_ = map(fd, bytes, PROT_READ | PROT_WRITE);
  close(fd);
  if (bytes > populate_max) return;
  madvise(readable_, bytes, MADV_POPULATE_READ);
  madvise(writable_, bytes, MADV_POPULATE_WRITE);
}

Segment::~Segment() {
  munmap(readable_, bytes_);
  munmap(writable_, bytes_);
}

}  // namespace kvstore::door
