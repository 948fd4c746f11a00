// The session's inside, shared by session.cpp (synchronous calls, life) and session_async.cpp (submitted ones).
#pragma once
#include <sys/types.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "channel.hpp"
#include "operation.hpp"
#include "session.hpp"
#include "soon.hpp"
#include "transfer/mapped_segment.hpp"

namespace kvstore::door {

// A submitted operation. Which thread may touch what: whoever has moved `state` to kRunning, until it moves it on.
struct Job {
  enum class State { kQueued, kRunning, kWaiting, kDone };
  std::uint64_t token = 0;
  std::unique_ptr<Operation> operation;
  Nanos deadline = 0;
  State state = State::kQueued;
  std::uint64_t request = 0;  // answers of it are waited for; 0: not begun
  bool answered = false;      // while it was running
};

struct Session::Impl {
  explicit Impl(const SessionConfig& config_);
  ~Impl();

  void connect();
  Link link(Nanos deadline) { return {*channel, info, segment.get(), config.verify, deadline}; }
  bool enter();  // false: closed
  void leave();
  void close();
  Parts parts_of(NsId ns, std::uint16_t shard);

  // ---- session_async.cpp
  void start_threads();
  void stop_threads();
  void read_for_all();
  void work();
  // at_once: in the thread of who submits, or who reads; never waits, and leaves to a worker what would.
  void advance(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Job>& job, bool at_once = false);
  void enqueue(const std::shared_ptr<Job>& job);  // for a worker, with the lock
  void answer_came(const std::weak_ptr<Job>& job);
  void complete(const std::shared_ptr<Job>& job);  // with the lock
  void give_up(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Job>& job, Status status);
  void sweep(Nanos now);

  const SessionConfig config;
  const pid_t process;  // a child after fork has the memory, and neither the threads nor the right
  SessionInfo info;
  std::shared_ptr<Channel> channel;  // outlives the session while arrays over the segment live
  std::shared_ptr<MappedSegment> segment;
  std::unique_ptr<Soon> soon;

  std::mutex life;
  std::condition_variable idle;
  std::size_t active = 0;  // calls under way
  std::atomic<bool> is_closed{false};
  std::mutex closing;

  std::mutex layouts_mutex;
  std::unordered_map<NsId, std::vector<Parts>> layouts;

  std::mutex jobs_mutex;
  std::condition_variable jobs_changed;
  std::unordered_map<std::uint64_t, std::shared_ptr<Job>> jobs;  // by token
  std::deque<std::shared_ptr<Job>> queue;
  std::vector<Result> completions;
  std::vector<std::thread> threads;
  bool stopping = false;
  int completion_event = -1;
};

// Reads the error of an answer into a result.
void take_error(const Answer& answer, Result& result);
// Refuses a request that the node would cut the connection for.
bool too_large(const FrameWriter& request, const SessionInfo& info, Result& result);

}  // namespace kvstore::door
