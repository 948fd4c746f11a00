// What threads leave for another one, in order, and a descriptor that tells it so: for an event loop, or an epoll.
#pragma once
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <utility>
#include <vector>

namespace kvstore::transfer {

template <typename What>
class Box {
 public:
  Box() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (fd_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  }
  ~Box() { ::close(fd_); }
  Box(const Box&) = delete;
  Box& operator=(const Box&) = delete;

  int fd() const noexcept { return fd_; }

  // From any thread.
  void put(What what) {
    bool first = false;
    {
      const std::lock_guard lock(mutex_);
      first = held_.empty();
      held_.push_back(std::move(what));
    }
    const std::uint64_t one = 1;
    if (first) [[maybe_unused]] const auto written = ::write(fd_, &one, sizeof one);  // cannot fail before 2^64 - 1 of them
  }

  // All that is there. Whoever was woken by the descriptor says `heard` first: what is put meanwhile tells it again.
  std::vector<What> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(held_, {});
  }

  void heard() noexcept {
    std::uint64_t count = 0;
    [[maybe_unused]] const auto got = ::read(fd_, &count, sizeof count);
  }

 private:
  std::mutex mutex_;
  std::vector<What> held_;
  const int fd_;
};

}  // namespace kvstore::transfer
