#include "ledger.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <limits>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "base/clock.hpp"

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
  Plan plan = join(requests);
  const std::size_t count = requests.size();
  Batch batch{std::move(requests), std::move(plan.order), std::vector<std::int64_t>(count, 0), static_cast<std::uint32_t>(count), 0,
              op, lane, deadline};
  const std::lock_guard lock(mutex_);
  if (closed_) return {SubmitStatus::kClosed, 0};
  if (stats_.waiting + count > pending_max_) return {SubmitStatus::kBusy, 0};
  const BatchId id = next_++;
  batches_.emplace(id, std::move(batch));
  const auto soonest = next_due();
  due_.push({deadline, id});
  if (!soonest || deadline < *soonest) earlier_.notify_all();
  stats_.waiting += count;
  for (const Span span : plan.operations) lanes_[static_cast<int>(lane)].push_back({id, span});
  if (plan.operations.size() > 1) {
    work_.notify_all();
  } else {
    work_.notify_one();
  }
  return {SubmitStatus::kOk, id};
}

void Ledger::settle(BatchId id, std::uint32_t place, std::int64_t error) {
  const auto it = batches_.find(id);
  Batch& batch = it->second;
  const auto bytes = bytes_of(request(batch, place));
  if (error == 0) {
    (batch.op == Op::kRead ? stats_.reads : stats_.writes) += 1;
    (batch.op == Op::kRead ? stats_.read_bytes : stats_.written_bytes) += bytes;
  } else if (error == -ETIME) {
    ++stats_.late;
  } else if (error == -ECANCELED) {
    ++stats_.cancelled;
  } else {
    ++stats_.failed;
  }
  batch.results[batch.order[place]] = error != 0 ? error : static_cast<std::int64_t>(bytes);
  if (--batch.left > 0) return;
  done_.push_back({id, std::move(batch.results)});
  spent_.push_back(std::move(batch.requests));
  batches_.erase(it);
  const std::uint64_t one = 1;
  // Only a full counter can refuse, and then the descriptor is readable already.
  [[maybe_unused]] const auto written = ::write(event_fd_, &one, sizeof one);
}

void Ledger::settle_all(BatchId batch, Span requests, std::int64_t error) {
  for (std::uint32_t i = 0; i < requests.count; ++i) settle(batch, requests.first + i, error);
}

void Ledger::stop(BatchId batch, std::int64_t why) {
  const auto it = batches_.find(batch);
  if (it == batches_.end() || it->second.stop != 0) return;
  it->second.stop = why;
  ++stops_;
  for (auto& lane : lanes_) {
    std::deque<Waiting> keep;
    for (const Waiting& waiting : lane) {
      if (waiting.batch == batch) {
        stats_.waiting -= waiting.requests.count;
        settle_all(batch, waiting.requests, why);
      } else {
        keep.push_back(waiting);
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

Task Ledger::task_of(const Waiting& waiting) const {
  const Batch& batch = batches_.at(waiting.batch);
  const Request& first = request(batch, waiting.requests.first);
  Task task;
  task.batch = waiting.batch;
  task.requests = waiting.requests;
  task.op = batch.op;
  task.file = first.file;
  task.offset = first.offset;
  for (std::uint32_t i = 0; i < waiting.requests.count; ++i) {
    const Request& each = request(batch, waiting.requests.first + i);
    task.bytes += bytes_of(each);
    task.pieces.append(each.pieces);
  }
  return task;
}

std::optional<Task> Ledger::take(Nanos now) {
  const std::lock_guard lock(mutex_);
  while (stats_.waiting > 0) {
    const bool background_first = ++turn_ % kBackgroundShare == 0;
    auto* lane = &lanes_[background_first ? 1 : 0];
    if (lane->empty()) lane = &lanes_[background_first ? 0 : 1];
    const Waiting waiting = lane->front();
    lane->pop_front();
    stats_.waiting -= waiting.requests.count;
    if (batches_.at(waiting.batch).deadline <= now) {
      settle_all(waiting.batch, waiting.requests, -ETIME);
      continue;
    }
    stats_.running += waiting.requests.count;
    ++stats_.operations;
    return task_of(waiting);
  }
  return std::nullopt;
}

void Ledger::finish(const Task& task, std::int64_t error, std::uint64_t moved) {
  const std::lock_guard lock(mutex_);
  stats_.running -= task.requests.count;
  const Batch& batch = batches_.at(task.batch);
  const std::int64_t stopped = batch.stop;
  const Lane lane = batch.lane;
  std::uint32_t place = task.requests.first;
  const std::uint32_t end = place + task.requests.count;
  std::uint32_t whole = place;  // behind the last request that has been moved
  while (whole < end && (error == 0 || moved >= bytes_of(request(batch, whole)))) {
    moved -= error == 0 ? 0 : bytes_of(request(batch, whole));
    ++whole;
  }
  for (; place < whole; ++place) settle(task.batch, place, 0);
  if (place == end) return;
  if (task.requests.count == 1) return settle(task.batch, place, error);
  if (stopped != 0) return settle_all(task.batch, {place, end - place}, stopped);
  // Whose error it is shows when each is tried by itself.
  stats_.waiting += end - place;
  for (std::uint32_t i = end; i-- > place;) lanes_[static_cast<int>(lane)].push_front({task.batch, {i, 1}});
  work_.notify_all();
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
  std::vector<std::vector<Request>> spent;
  const std::lock_guard lock(mutex_);
  spent.swap(spent_);
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
