#include "soon.hpp"

#include <chrono>

#include "base/clock.hpp"

namespace kvstore::door {
namespace {

constexpr Nanos kSendNs = 1'000'000'000;  // after half a frame the channel is given up; a stopped node may come back before

}  // namespace

void Soon::ask() {
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  asked_ = true;
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  if (asleep_) changed_.notify_one();
}

void Soon::stop() {
  std::thread ending;
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_one();
    ending.swap(thread_);
  }
  if (ending.joinable()) ending.join();
}

void Soon::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    asleep_ = true;
    changed_.wait(lock, [this] { return asked_ || stopping_; });
    asleep_ = false;
    for (int quiet = 0; quiet < kAwake && !stopping_; ++quiet) {
      asked_ = false;
      changed_.wait_for(lock, std::chrono::nanoseconds(kSoon), [this] { return stopping_; });
      if (asked_) quiet = 0;
      if (stopping_ || !channel_->waiting()) continue;
      lock.unlock();
      const bool late = channel_->flush(monotonic_now() + kSendNs) == Status::kLate;
      lock.lock();
      if (late) quiet = 0;
    }
  }
}

}  // namespace kvstore::door
