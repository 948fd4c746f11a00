#include "ledger.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <limits>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "clock.hpp"

namespace kvstore::io {

Ledger::Ledger(const EngineConfig& config)
    : files_(config.files.size()), pending_max_(config.pending_max), event_fd_(-1) {
  if (config.depth == 0 || config.depth > kDepthMax) throw std::invalid_argument("depth must be 1..1024");
  if (config.pending_max == 0) throw std::invalid_argument("pending_max must be at least 1");
  event_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (event_fd_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
}

Ledger::~Ledger() { ::close(event_fd_); }

bool Ledger::check(const std::vector<Request>& requests) const {
  for (const Request& request : requests) {
    if (request.file >= files_ || request.pieces.empty() || request.pieces.size() > kPiecesMax) return false;
    std::uint64_t total = 0;
    for (const iovec& piece : request.pieces) {
      if (piece.iov_base == nullptr || piece.iov_len == 0 || piece.iov_len > kRequestBytesMax) return false;
      total += piece.iov_len;
    }
    const auto end_max = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (total > kRequestBytesMax || request.offset > end_max - total) return false;
  }
  return true;
}

Submitted Ledger::submit(Op op, Lane lane, std::vector<Request> requests, Nanos deadline) {
  if (requests.empty() || !check(requests)) return {SubmitStatus::kBadInput, 0};
  std::vector<Task> tasks;
  tasks.reserve(requests.size());
  for (std::uint32_t i = 0; i < requests.size(); ++i) {
    const Request& request = requests[i];
    Task task{0, i, op, request.file, request.offset, 0, deadline, Pieces(request.pieces)};
    for (const iovec& piece : task.pieces) task.bytes += piece.iov_len;
    tasks.push_back(std::move(task));
  }
  const std::lock_guard lock(mutex_);
  if (closed_) return {SubmitStatus::kClosed, 0};
  if (stats_.waiting + tasks.size() > pending_max_) return {SubmitStatus::kBusy, 0};
  const BatchId id = next_++;
  batches_.emplace(id, Batch{std::vector<std::int64_t>(tasks.size(), 0), static_cast<std::uint32_t>(tasks.size()), 0});
  const auto soonest = next_due();
  due_.push({deadline, id});
  if (!soonest || deadline < *soonest) earlier_.notify_all();
  stats_.waiting += tasks.size();
  for (Task& task : tasks) {
    task.batch = id;
    lanes_[static_cast<int>(lane)].push_back(std::move(task));
  }
  if (tasks.size() > 1) {
    work_.notify_all();
  } else {
    work_.notify_one();
  }
  return {SubmitStatus::kOk, id};
}

void Ledger::settle(const Task& task, std::int64_t result) {
  if (result >= 0) {
    (task.op == Op::kRead ? stats_.reads : stats_.writes) += 1;
    (task.op == Op::kRead ? stats_.read_bytes : stats_.written_bytes) += task.bytes;
  } else if (result == -ETIME) {
    ++stats_.late;
  } else if (result == -ECANCELED) {
    ++stats_.cancelled;
  } else {
    ++stats_.failed;
  }
  const auto it = batches_.find(task.batch);
  it->second.results[task.index] = result;
  if (--it->second.left > 0) return;
  done_.push_back({task.batch, std::move(it->second.results)});
  batches_.erase(it);
  const std::uint64_t one = 1;
  // Only a full counter can refuse, and then the descriptor is readable already.
  [[maybe_unused]] const auto written = ::write(event_fd_, &one, sizeof one);
}

void Ledger::stop(BatchId batch, std::int64_t why) {
  const auto it = batches_.find(batch);
  if (it == batches_.end() || it->second.stop != 0) return;
  it->second.stop = why;
  ++stops_;
  for (auto& lane : lanes_) {
    std::deque<Task> keep;
    for (Task& task : lane) {
      if (task.batch == batch) {
        --stats_.waiting;
        settle(task, why);
      } else {
        keep.push_back(std::move(task));
      }
    }
    lane.swap(keep);
  }
}

void Ledger::cancel(BatchId batch) {
  const std::lock_guard lock(mutex_);
  stop(batch, -ECANCELED);
}

std::optional<Nanos> Ledger::next_due() {
  while (!due_.empty() && !batches_.contains(due_.top().batch)) due_.pop();
  if (due_.empty()) return std::nullopt;
  return due_.top().deadline;
}

std::optional<Nanos> Ledger::settle_late(Nanos now) {
  const std::lock_guard lock(mutex_);
  auto next = next_due();
  while (next && *next <= now) {
    const BatchId batch = due_.top().batch;
    due_.pop();
    stop(batch, -ETIME);
    next = next_due();
  }
  return next;
}

std::optional<Task> Ledger::take(Nanos now) {
  const std::lock_guard lock(mutex_);
  while (stats_.waiting > 0) {
    const bool background_first = ++turn_ % kBackgroundShare == 0;
    auto* lane = &lanes_[background_first ? 1 : 0];
    if (lane->empty()) lane = &lanes_[background_first ? 0 : 1];
    Task task = std::move(lane->front());
    lane->pop_front();
    --stats_.waiting;
    if (task.deadline <= now) {
      settle(task, -ETIME);
      continue;
    }
    ++stats_.running;
    return task;
  }
  return std::nullopt;
}

void Ledger::finish(const Task& task, std::int64_t result) {
  const std::lock_guard lock(mutex_);
  --stats_.running;
  settle(task, result);
}

void Ledger::count_continued() {
  const std::lock_guard lock(mutex_);
  ++stats_.continued;
}

std::int64_t Ledger::stop_of(BatchId batch) const {
  const std::lock_guard lock(mutex_);
  const auto it = batches_.find(batch);
  return it == batches_.end() ? 0 : it->second.stop;
}

std::uint64_t Ledger::stops() const {
  const std::lock_guard lock(mutex_);
  return stops_;
}

std::vector<Done> Ledger::reap() {
  const std::lock_guard lock(mutex_);
  return std::exchange(done_, {});
}

void Ledger::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  std::vector<BatchId> all;
  all.reserve(batches_.size());
  for (const auto& [id, batch] : batches_) all.push_back(id);
  for (const BatchId id : all) stop(id, -ECANCELED);
  work_.notify_all();
  earlier_.notify_all();
}

bool Ledger::closed() const {
  const std::lock_guard lock(mutex_);
  return closed_;
}

bool Ledger::idle() const {
  const std::lock_guard lock(mutex_);
  return stats_.waiting == 0 && stats_.running == 0;
}

void Ledger::wait_for_work() {
  std::unique_lock lock(mutex_);
  if (closed_ || stats_.waiting > 0) return;
  work_.wait(lock);
}

void Ledger::wait_for_deadline() {
  std::unique_lock lock(mutex_);
  if (closed_) return;
  const auto due = next_due();
  if (!due || *due == std::numeric_limits<Nanos>::max()) {
    earlier_.wait(lock);
  } else {
    earlier_.wait_until(lock, std::chrono::steady_clock::time_point(std::chrono::nanoseconds(*due)));
  }
}

EngineStats Ledger::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

}  // namespace kvstore::io
