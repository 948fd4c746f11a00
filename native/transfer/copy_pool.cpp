#include "copy_pool.hpp"

#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <utility>

namespace kvstore::transfer {

namespace {

struct Turn {
  std::uint64_t token;
  std::uint32_t rail;
};

struct Running {
  std::shared_ptr<CopyJob> job;
  std::uint32_t rails_out;  // not back yet
};

}  // namespace

struct CopyPool::State {
  std::mutex mutex;
  std::condition_variable work, idle;
  std::deque<Turn> turns;
  std::unordered_map<std::uint64_t, Running> running;
  std::vector<std::uint64_t> finished;
  std::uint32_t threads = 0;
  std::uint32_t turn_slices = 0;
  bool closing = false;
  int event_fd = -1;

  ~State() {
    if (event_fd >= 0) ::close(event_fd);
  }

  // Folding a large batch's leaves takes a while, so the mutex is given back around it.
  void back(std::unique_lock<std::mutex>& lock, std::uint64_t token, std::uint32_t rails) {
    Running& entry = running.at(token);
    entry.rails_out -= rails;
    if (entry.rails_out > 0) return;
    const std::shared_ptr<CopyJob> job = entry.job;
    lock.unlock();
    job->finish();
    lock.lock();
    running.erase(token);
    finished.push_back(token);
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(event_fd, &one, sizeof one);  // cannot fail before 2^64 - 1 of them
  }

  void run() {
    std::unique_lock lock(mutex);
    for (;;) {
      work.wait(lock, [&] { return closing || !turns.empty(); });
      if (turns.empty()) break;
      const Turn turn = turns.front();
      turns.pop_front();
      const std::shared_ptr<CopyJob> job = running.at(turn.token).job;
      lock.unlock();
      const bool rail_back = job->advance(turn.rail, turn_slices);
      lock.lock();
      if (rail_back) {
        back(lock, turn.token, 1);
      } else {
        turns.push_back(turn);
      }
    }
    --threads;
    idle.notify_all();
  }
};

CopyPool::CopyPool(std::uint32_t workers, std::uint32_t turn_slices) : state_(std::make_shared<State>()) {
  if (workers == 0 || turn_slices == 0) throw std::invalid_argument("copy pool: workers and turn_slices are at least 1");
  state_->turn_slices = turn_slices;
  state_->event_fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (state_->event_fd < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  sigset_t all, before;  // signals belong to the interpreter's threads
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (std::uint32_t i = 0; i < workers; ++i) {
      std::thread thread([state = state_] { state->run(); });
      {
        const std::lock_guard lock(state_->mutex);
        ++state_->threads;
      }
      pthread_setname_np(thread.native_handle(), "transfer-copy");
      thread.detach();
    }
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    close(std::chrono::seconds(1));
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

CopyPool::~CopyPool() { close(std::chrono::nanoseconds(0)); }

int CopyPool::fd() const noexcept { return state_->event_fd; }

void CopyPool::submit(std::uint64_t token, std::shared_ptr<CopyJob> job) {
  const std::uint32_t rails = job->rails();
  std::unique_lock lock(state_->mutex);
  if (state_->closing) throw std::logic_error("copy pool: closed");
  if (!state_->running.emplace(token, Running{std::move(job), rails}).second) {
    throw std::invalid_argument("copy pool: this token is in use");
  }
  if (rails == 0) return state_->back(lock, token, 0);
  for (std::uint32_t rail = 0; rail < rails; ++rail) state_->turns.push_back({token, rail});
  if (rails == 1) {
    state_->work.notify_one();
  } else {
    state_->work.notify_all();
  }
}

void CopyPool::stop(std::uint64_t token, Reason reason) {
  std::unique_lock lock(state_->mutex);
  const auto it = state_->running.find(token);
  if (it == state_->running.end()) return;
  it->second.job->stop(reason);
  const auto out = std::erase_if(state_->turns, [&](const Turn& turn) { return turn.token == token; });
  if (out > 0) state_->back(lock, token, static_cast<std::uint32_t>(out));
}

std::vector<std::uint64_t> CopyPool::finished() {
  std::uint64_t count = 0;
  [[maybe_unused]] const auto got = ::read(state_->event_fd, &count, sizeof count);  // EAGAIN: nothing new
  const std::lock_guard lock(state_->mutex);
  return std::exchange(state_->finished, {});
}

bool CopyPool::close(std::chrono::nanoseconds wait) {
  std::unique_lock lock(state_->mutex);
  state_->closing = true;
  std::vector<std::uint64_t> tokens;
  for (const auto& [token, running] : state_->running) {
    running.job->stop(Reason::kCancelled);
    tokens.push_back(token);
  }
  for (const std::uint64_t token : tokens) {
    const auto out = std::erase_if(state_->turns, [&](const Turn& turn) { return turn.token == token; });
    if (out > 0) state_->back(lock, token, static_cast<std::uint32_t>(out));
  }
  state_->work.notify_all();
  return state_->idle.wait_for(lock, wait, [&] { return state_->threads == 0; });
}

}  // namespace kvstore::transfer
