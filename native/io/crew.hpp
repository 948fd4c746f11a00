// The threads of an engine, which a close waits for, but not for ever: one that is in a dead device cannot be called back.
//
// Rules
// - A thread keeps `state` alive, which is all that it touches. So who gives up on it may go, and nothing goes under it.
#pragma once
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "engine.hpp"

namespace kvstore::io {

class Crew {
 public:
  ~Crew() {
    for (std::thread& thread : threads_)
      if (thread.joinable()) thread.detach();
  }
  template <class State>
  void add(std::shared_ptr<State> state, std::function<void(State&)> work) {
    {
      const std::lock_guard lock(count_->mutex);
      ++count_->at_work;
    }
    threads_.emplace_back([count = count_, state = std::move(state), work = std::move(work)]() mutable {
      work(*state);
      state.reset();
      const std::lock_guard lock(count->mutex);
      --count->at_work;
      count->changed.notify_all();
    });
  }
  // False: some are still at work after `limit`.
  bool join(Nanos limit) {
    {
      std::unique_lock lock(count_->mutex);
      const auto all_back = [this] { return count_->at_work == 0; };
      if (!count_->changed.wait_for(lock, std::chrono::nanoseconds(limit), all_back)) return false;
    }
    for (std::thread& thread : threads_)
      if (thread.joinable()) thread.join();
    return true;
  }

 private:
  struct Count {
    std::mutex mutex;
    std::condition_variable changed;
    std::size_t at_work = 0;
  };
  std::shared_ptr<Count> count_ = std::make_shared<Count>();
  std::vector<std::thread> threads_;
};

}  // namespace kvstore::io
