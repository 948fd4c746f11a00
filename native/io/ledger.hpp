// The books of an engine: batches, what waits, what runs, what is done. No I/O and no clock; `now` is an argument.
//
// Rules
// - One mutex; every call is short. An engine's threads take() operations and give each back once with finish().
// - An operation is one request, or several of a batch that lie behind one another (join.hpp). If it fails, what of it has
//   not been moved waits again, each request by itself: so an error is told of the request that it befell.
// - A batch is done when each of its requests is: then its results appear in reap() and the event descriptor is signalled.
// - Requests of a cancelled or late batch never start: take() settles them and goes on.
#pragma once
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <queue>
#include <unordered_map>

#include "engine.hpp"
#include "pieces.hpp"

namespace kvstore::io {

// One operation, as an engine gets it.
struct Task {
  BatchId batch = 0;
  Span requests;  // in the order of the batch's plan
  Op op = Op::kRead;
  std::uint32_t file = 0;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  Pieces pieces;
};

class Ledger {
 public:
  explicit Ledger(const EngineConfig& config);
  ~Ledger();
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  Submitted submit(Op op, Lane lane, std::vector<Request> requests, Nanos deadline);
  // What is running of it is left to the engine, which finds it through is_stopped().
  void cancel(BatchId batch);
  std::vector<Done> reap();
  int event_fd() const { return event_fd_; }

  std::optional<Task> take(Nanos now);
  // error: 0 or a negative errno; then `moved` bytes from the operation's start have been moved all the same.
  void finish(const Task& task, std::int64_t error, std::uint64_t moved);
  void count_continued();
  // -ECANCELED or -ETIME if the batch should not go on, else 0.
  std::int64_t stop_of(BatchId batch) const;
  // Grows with each cancel and each lateness, so that an engine looks at what it runs only when it must.
  std::uint64_t stops() const;
  // Stops batches that are past their deadline; tells when the next one will be.
  std::optional<Nanos> settle_late(Nanos now);

  void close();  // refuses, and cancels all that waits
  bool closed() const;
  bool idle() const;  // nothing waits and nothing runs
  EngineStats stats() const;

  void wait_for_work();      // until there may be some, or closed
  void wait_for_deadline();  // until one may be due, or closed

 private:
  struct Batch {
    std::vector<Request> requests;
    std::vector<std::uint32_t> order;
    std::vector<std::int64_t> results;
    std::uint32_t left = 0;
    std::int64_t stop = 0;
    Op op = Op::kRead;
    Lane lane = Lane::kForeground;
    Nanos deadline = 0;
  };
  struct Waiting {
    BatchId batch;
    Span requests;
  };
  struct Due {
    Nanos deadline;
    BatchId batch;
    bool operator>(const Due& other) const { return deadline > other.deadline; }
  };
  bool check(const std::vector<Request>& requests) const;
  // Under the mutex.
  void settle(BatchId batch, std::uint32_t place, std::int64_t error);
  void settle_all(BatchId batch, Span requests, std::int64_t error);
  Task task_of(const Waiting& waiting) const;
  const Request& request(const Batch& batch, std::uint32_t place) const { return batch.requests[batch.order[place]]; }
  void stop(BatchId batch, std::int64_t why);
  std::optional<Nanos> next_due();

  std::size_t files_;
  std::uint32_t pending_max_;
  int event_fd_;
  mutable std::mutex mutex_;
  std::condition_variable work_, earlier_;
  bool closed_ = false;
  BatchId next_ = 1;
  std::uint64_t stops_ = 0;
  std::uint32_t turn_ = 0;
  std::deque<Waiting> lanes_[2];
  std::unordered_map<BatchId, Batch> batches_;
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
  std::vector<Done> done_;
  std::vector<std::vector<Request>> spent_;  // of done batches: freed by who reaps, not by the engine's threads
  EngineStats stats_;
};

}  // namespace kvstore::io
