#include "mapped_segment.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <stdexcept>
#include <string>
#include <system_error>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14; refused by older kernels, which then fault as they go
#define MADV_POPULATE_WRITE 23
#endif

namespace kvstore::transfer {
namespace {

[[noreturn]] void fail(int why, const char* what) { throw std::system_error(why, std::generic_category(), what); }

std::byte* map(int fd, std::uint64_t bytes, int protection) {
  void* at = mmap(nullptr, bytes, protection, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) fail(errno, "mmap of a segment");
  madvise(at, bytes, MADV_HUGEPAGE);  // refused by a kernel without huge pages for shared memory
  return static_cast<std::byte*>(at);
}

void check_size(int fd, std::uint64_t bytes) {
  if (bytes == 0) throw std::invalid_argument("a segment's size must be positive");
  struct stat found{};
  if (fstat(fd, &found) != 0) fail(errno, "fstat of a segment");
  const auto held = static_cast<std::uint64_t>(found.st_size);
  if (held >= bytes) return;
  throw std::invalid_argument("the segment's file has " + std::to_string(held) + " bytes, " + std::to_string(bytes) + " were announced");
}

}  // namespace

MappedSegment::MappedSegment(int fd, std::uint64_t bytes, Access access, Populate populate) : bytes_(bytes) {
  check_size(fd, bytes);
  fd_ = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (fd_ < 0) fail(errno, "another descriptor of a segment");
  try {
    readable_ = map(fd_, bytes, PROT_READ);
    if (access == Access::kReadWrite) writable_ = map(fd_, bytes, PROT_READ | PROT_WRITE);
  } catch (...) {
    unmap();
    throw;
  }
  if (populate == Populate::kAsUsed) return;
  madvise(readable_, bytes, MADV_POPULATE_READ);
  if (writable_ != nullptr) madvise(writable_, bytes, MADV_POPULATE_WRITE);
}

MappedSegment::~MappedSegment() { unmap(); }

void MappedSegment::unmap() noexcept {
  for (std::byte* mapping : {readable_, writable_}) {
    if (mapping != nullptr) munmap(mapping, bytes_);
  }
  if (fd_ >= 0) close(fd_);
}

std::shared_ptr<MappedSegment> MappedSegment::create(std::uint64_t bytes, const char* name) {
  if (bytes == 0 || bytes > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max())) {
    throw std::invalid_argument("a segment's size must be positive");
  }
  const int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) fail(errno, "a new segment");
  const auto length = static_cast<off_t>(bytes);
  int why = ftruncate(fd, length) == 0 ? 0 : errno;
  if (why == 0) why = posix_fallocate(fd, 0, length);
  if (why == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) why = errno;
  try {
    if (why != 0) fail(why, "a new segment");
    auto made = std::make_shared<MappedSegment>(fd, bytes, Access::kReadWrite);
    close(fd);
    return made;
  } catch (...) {
    close(fd);
    throw;
  }
}

int MappedSegment::read_only_fd() const {
  const int fd = open(("/proc/self/fd/" + std::to_string(fd_)).c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(errno, "a read-only descriptor of a segment");
  return fd;
}

}  // namespace kvstore::transfer
