// A shared segment as one process maps it: a descriptor, its size, a read-only mapping, and a writable one where that is wanted.
//
// Rules
// - Segments are allocated in full when they are made and never truncated: a reader that touched a truncated page would die.
//   Our own memory files are sealed against it, and a file smaller than was announced is refused.
// - Nobody gets an address without its range being looked at. What is read is read through the read-only mapping, so that
//   who only reads cannot write by mistake.
// - Unmapped with its last user: whoever hands out memory of it keeps a share.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "bounds.hpp"

namespace kvstore::transfer {

enum class Access : std::uint8_t { kRead, kReadWrite };
enum class Populate : std::uint8_t { kAsUsed, kAtOnce };  // page tables

class MappedSegment {
 public:
  // The descriptor stays the caller's; the segment keeps one of its own. Throws std::invalid_argument for a size of 0 and for a
  // file smaller than `bytes`, std::system_error where the system refuses.
  MappedSegment(int fd, std::uint64_t bytes, Access access, Populate populate = Populate::kAsUsed);
  // New zeroed memory without a name in any file system, allocated in full and sealed against truncation. Throws likewise.
  static std::shared_ptr<MappedSegment> create(std::uint64_t bytes, const char* name);
  ~MappedSegment();
  MappedSegment(const MappedSegment&) = delete;
  MappedSegment& operator=(const MappedSegment&) = delete;

  std::uint64_t bytes() const noexcept { return bytes_; }
  int fd() const noexcept { return fd_; }
  // A new descriptor of the same file that cannot be mapped for writing; the caller closes it. Throws std::system_error.
  int read_only_fd() const;

  bool contains(std::uint64_t offset, std::uint64_t count) const noexcept { return within(offset, count, bytes_); }
  // Null beyond the segment.
  const std::byte* readable(std::uint64_t offset, std::uint64_t count) const noexcept {
    return contains(offset, count) ? readable_ + offset : nullptr;
  }
  // Null beyond the segment, and anywhere in one that is mapped read-only.
  std::byte* writable(std::uint64_t offset, std::uint64_t count) const noexcept {
    return writable_ != nullptr && contains(offset, count) ? writable_ + offset : nullptr;
  }

 private:
  void unmap() noexcept;
  std::uint64_t bytes_;
  int fd_ = -1;
  std::byte* readable_ = nullptr;
  std::byte* writable_ = nullptr;
};

}  // namespace kvstore::transfer
