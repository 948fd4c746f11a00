#include "ring.hpp"

#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <vector>

// Older kernel headers lack these; the numbers are the kernel's ABI.
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif

namespace kvstore::io {
namespace {

std::uint32_t load_acquire(std::uint32_t* word) noexcept {
  return std::atomic_ref<std::uint32_t>(*word).load(std::memory_order_acquire);
}
void store_release(std::uint32_t* word, std::uint32_t value) noexcept {
  std::atomic_ref<std::uint32_t>(*word).store(value, std::memory_order_release);
}
int checked(long returned) noexcept { return returned < 0 ? -errno : static_cast<int>(returned); }

}  // namespace

void Ring::setup(std::uint32_t entries) {
  // Best first; an old kernel answers EINVAL to flags that it does not know.
  const std::uint32_t choices[] = {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, IORING_SETUP_SINGLE_ISSUER, 0};
  for (const std::uint32_t flags : choices) {
    io_uring_params params{};
    params.flags = flags | IORING_SETUP_CLAMP;
    const int fd = checked(syscall(SYS_io_uring_setup, entries, &params));
    if (fd == -EINVAL) continue;
    if (fd < 0) throw std::system_error(-fd, std::generic_category(), "io_uring_setup");
    fd_ = fd;
    flags_ = flags;
    features_ = params.features;
    sq_entries_ = params.sq_entries;
    const auto& sq = params.sq_off;
    const auto& cq = params.cq_off;
    const std::uint32_t sq_offsets[5] = {sq.head, sq.tail, sq.ring_mask, sq.array, params.cq_entries};
    const std::uint32_t cq_offsets[4] = {cq.head, cq.tail, cq.ring_mask, cq.cqes};
    std::memcpy(sq_offsets_, sq_offsets, sizeof sq_offsets);
    std::memcpy(cq_offsets_, cq_offsets, sizeof cq_offsets);
    return;
  }
  throw std::system_error(EINVAL, std::generic_category(), "io_uring_setup");
}

void Ring::map() {
  const std::size_t sq_bytes = sq_offsets_[3] + sq_entries_ * sizeof(std::uint32_t);
  const std::size_t cq_bytes = cq_offsets_[3] + sq_offsets_[4] * sizeof(io_uring_cqe);
  rings_bytes_ = sq_bytes > cq_bytes ? sq_bytes : cq_bytes;
  sqes_bytes_ = sq_entries_ * sizeof(io_uring_sqe);
  constexpr int kProt = PROT_READ | PROT_WRITE;
  constexpr int kFlags = MAP_SHARED | MAP_POPULATE;
  void* rings = mmap(nullptr, rings_bytes_, kProt, kFlags, fd_, IORING_OFF_SQ_RING);
  if (rings == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap of the io_uring queues");
  rings_ = rings;
  void* sqes = mmap(nullptr, sqes_bytes_, kProt, kFlags, fd_, IORING_OFF_SQES);
  if (sqes == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap of the io_uring entries");
  sqes_ = static_cast<io_uring_sqe*>(sqes);
  auto word = [this](std::uint32_t offset) {
    return reinterpret_cast<std::uint32_t*>(static_cast<std::byte*>(rings_) + offset);
  };
  sq_head_ = word(sq_offsets_[0]);
  sq_tail_ = word(sq_offsets_[1]);
  sq_mask_ = *word(sq_offsets_[2]);
  cq_head_ = word(cq_offsets_[0]);
  cq_tail_ = word(cq_offsets_[1]);
  cq_mask_ = *word(cq_offsets_[2]);
  cqes_ = reinterpret_cast<io_uring_cqe*>(word(cq_offsets_[3]));
  std::uint32_t* array = word(sq_offsets_[3]);
  for (std::uint32_t i = 0; i < sq_entries_; ++i) array[i] = i;  // entry i always lies in cell i
  prepared_ = handed_ = *sq_tail_;
}

Ring::Ring(std::uint32_t entries) {
  try {
    setup(entries);
    constexpr std::uint32_t kNeeded = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG;
    if ((features_ & kNeeded) != kNeeded) {  // Linux 5.11
      throw std::system_error(ENOSYS, std::generic_category(), "io_uring of this kernel lacks timed waits");
    }
    map();
  } catch (...) {
    release();
    throw;
  }
}

Ring::~Ring() { release(); }

void Ring::release() noexcept {
  if (sqes_ != nullptr) munmap(sqes_, sqes_bytes_);
  if (rings_ != nullptr) munmap(rings_, rings_bytes_);
  if (fd_ >= 0) ::close(fd_);
  sqes_ = nullptr;
  rings_ = nullptr;
  fd_ = -1;
}

int Ring::register_files(std::span<const int> files) {
  return checked(syscall(SYS_io_uring_register, fd_, IORING_REGISTER_FILES, files.data(), files.size()));
}

int Ring::register_buffers(std::span<const iovec> buffers) {
  return checked(syscall(SYS_io_uring_register, fd_, IORING_REGISTER_BUFFERS, buffers.data(), buffers.size()));
}

bool Ring::knows(std::uint8_t opcode) {
  constexpr unsigned kOps = 256;
  std::vector<std::byte> memory(sizeof(io_uring_probe) + kOps * sizeof(io_uring_probe_op));
  if (checked(syscall(SYS_io_uring_register, fd_, IORING_REGISTER_PROBE, memory.data(), kOps)) < 0) return false;
  io_uring_probe probe{};
  std::memcpy(&probe, memory.data(), sizeof probe);
  if (opcode >= probe.ops_len) return false;
  io_uring_probe_op op{};
  std::memcpy(&op, memory.data() + sizeof probe + opcode * sizeof op, sizeof op);
  return (op.flags & IO_URING_OP_SUPPORTED) != 0;
}

io_uring_sqe* Ring::sqe() noexcept {
  if (prepared_ - load_acquire(sq_head_) >= sq_entries_) return nullptr;
  io_uring_sqe* entry = &sqes_[prepared_++ & sq_mask_];
  std::memset(entry, 0, sizeof *entry);
  return entry;
}

int Ring::enter(bool wait, std::optional<Nanos> timeout) noexcept {
  store_release(sq_tail_, prepared_);
  const std::uint32_t fresh = prepared_ - handed_;
  if (load_acquire(cq_tail_) != *cq_head_) wait = false;
  if (fresh == 0 && !wait && (flags_ & IORING_SETUP_DEFER_TASKRUN) == 0) return 0;
  __kernel_timespec limit{};
  io_uring_getevents_arg arg{};
  if (timeout) {
    const Nanos left = *timeout < 0 ? 0 : *timeout;
    limit.tv_sec = left / 1'000'000'000;
    limit.tv_nsec = left % 1'000'000'000;
    arg.ts = reinterpret_cast<std::uint64_t>(&limit);
  }
  // GETEVENTS even without waiting: with deferred task work nothing completes otherwise.
  constexpr unsigned kFlags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
  const int sent = checked(syscall(SYS_io_uring_enter, fd_, fresh, wait ? 1 : 0, kFlags, &arg, sizeof arg));
  // The kernel moves the head over what it has taken, whatever it then answers about the wait.
  handed_ = load_acquire(sq_head_);
  return sent < 0 && sent != -ETIME && sent != -EINTR ? sent : 0;
}

bool Ring::completion(Completion& out) noexcept {
  const std::uint32_t head = *cq_head_;
  if (head == load_acquire(cq_tail_)) return false;
  const io_uring_cqe& entry = cqes_[head & cq_mask_];
  out = {entry.user_data, entry.res};
  store_release(cq_head_, head + 1);
  return true;
}

}  // namespace kvstore::io
#endif
