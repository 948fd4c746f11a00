// An io_uring by system calls alone (no liburing), so that the module loads on any machine and needs no library.
//
// Rules
// - One thread calls everything after construction (the kernel is told so where it can know).
// - sqe() gives a zeroed entry or nullptr when the queue is full; enter() hands over what was prepared and waits.
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include <sys/uio.h>

#include "engine.hpp"

struct io_uring_sqe;
struct io_uring_cqe;

namespace kvstore::io {

struct Completion {
  std::uint64_t user = 0;
  std::int32_t result = 0;
};

class Ring {
 public:
  // Throws std::system_error. `entries`: how many may be prepared and in flight.
  explicit Ring(std::uint32_t entries);
  ~Ring();
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  int register_files(std::span<const int> files);       // 0 or -errno
  int register_buffers(std::span<const iovec> buffers);  // 0 or -errno
  bool knows(std::uint8_t opcode);                         // of this kernel

  io_uring_sqe* sqe() noexcept;
  // Submits; if wait, until a completion is there or `timeout` (from now; nullopt: forever) is over. 0 or -errno.
  int enter(bool wait, std::optional<Nanos> timeout) noexcept;
  bool completion(Completion& out) noexcept;
  std::uint32_t flags() const noexcept { return flags_; }

 private:
  void setup(std::uint32_t entries);
  void map();
  void release() noexcept;
  int fd_ = -1;
  std::uint32_t flags_ = 0, features_ = 0;
  void* rings_ = nullptr;
  std::size_t rings_bytes_ = 0;
  io_uring_sqe* sqes_ = nullptr;
  std::size_t sqes_bytes_ = 0;
  std::uint32_t sq_entries_ = 0, sq_offsets_[5] = {}, cq_offsets_[4] = {};
  std::uint32_t *sq_head_ = nullptr, *sq_tail_ = nullptr, *cq_head_ = nullptr, *cq_tail_ = nullptr;
  std::uint32_t sq_mask_ = 0, cq_mask_ = 0;
  std::uint32_t prepared_ = 0;  // our tail
  std::uint32_t handed_ = 0;    // of that, given to the kernel
  io_uring_cqe* cqes_ = nullptr;
};

}  // namespace kvstore::io
