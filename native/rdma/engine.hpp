// Moves batches over queue pairs that Python has made and connected, in one thread that never takes the interpreter's lock.
//
// Rules
// - Nothing here waits: submit, stop and the like are orders to the thread, which alone posts, polls and moves queue pairs to error.
// - A job is finished when every work request of it is back, whatever came of it; then, and once, Python is told.
// - A peer's lanes (queue pairs) take its slices as each has room: a slow lane takes fewer, a broken one none.
// - Memory has devices near it. What is read into it or written from it goes over their lanes, and over others only while all of
//   theirs are broken. Slices with the same devices near share a queue; queues are served in turn.
// - What is still out `linger` after a batch was stopped is flushed: its lanes are moved to error, and end. What other batches had
//   on them is asked for again on another lane; that is no fault of theirs and not counted.
// - A lane with a trial takes no slice before that has landed: a read of bytes that the peer shows to anybody, into bytes that nobody
//   reads. A path on which requests are lost in silence connects as well as any other.
// - A lane that has broken is given back (kLaneDown) when all of its requests are back, and never used again.
// - Completions are matched by the lane's generation: what a queue pair that is gone has left in a completion queue is nobody's.
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "job.hpp"
#include "verbs.hpp"

namespace kvstore::rdma {

struct EngineConfig {
  std::uint32_t window = 32;    // requests outstanding on a lane
  std::uint32_t tries_max = 4;  // of a row, over lanes whose path failed
  std::chrono::nanoseconds linger{};
  std::chrono::nanoseconds spin{};  // how long completion queues are polled before the thread sleeps
};

enum class EventKind : std::uint8_t {
  kFinished = 1,  // id: a job's token
  kLaneDown = 2,  // id: a lane; status: the completion status that broke it, 0 where this side did
  kRefused = 3,   // id: an access that the peer's device has refused
  kLaneUp = 4,    // id: a lane, which takes slices from now on
};

struct Event {
  EventKind kind;
  std::uint64_t id;
  std::uint32_t status = 0;
};

// A read to be done before anything else. No bytes: none is needed.
struct Trial {
  std::uint64_t local = 0, remote = 0;
  std::uint32_t bytes = 0, local_key = 0, remote_key = 0;
};

struct Lane {
  std::uint64_t id, peer;
  ibv_qp* qp;
  std::uint32_t device, peer_device;
  Trial trial{};
};

struct EngineStats {
  std::uint64_t requests = 0, bytes = 0;  // that landed
  std::uint64_t again = 0;                // requests asked for again after a lane broke
  std::uint64_t flushes = 0;              // lanes that this side moved to error for a stopped batch
};

class Reactor;

class Engine {
 public:
  explicit Engine(const EngineConfig& config);  // throws std::runtime_error where libibverbs is not there
  ~Engine();

  int fd() const noexcept;  // readable when there are events
  std::vector<Event> events();
  EngineStats stats() const;

  void add_device(ibv_cq* cq);  // with its completion channel; both outlive the engine
  void add_lane(const Lane& lane);  // kLaneUp or kLaneDown follows
  void drop_lane(std::uint64_t lane);  // kLaneDown follows
  // What waits for a lane of the peer fails with kPeerGone; so does what comes later, if the peer is `gone`.
  void give_up(std::uint64_t peer, bool gone);
  void forget(std::uint64_t peer);
  // The grant has ended: nothing is posted by it any more.
  void end_access(std::uint64_t peer, std::uint64_t access, Reason reason);

  void submit(std::shared_ptr<Job> job, std::uint64_t peer);
  void stop(std::uint64_t token, Reason reason);

  // Ends all jobs and lanes. False: some request has not come back within `wait`; the thread goes on waiting for it.
  bool close(std::chrono::nanoseconds wait);

 private:
  std::shared_ptr<Reactor> reactor_;
};

}  // namespace kvstore::rdma
