// Moves batches over TCP connections that Python has made; serves what was granted over the same connections.
//
// Rules
// - Nothing here waits, but run(): submit, stop, issue and end post orders to worker threads, which own the sockets. Whoever holds a
//   worker's turn may work in its place.
// - A job is finished when no thread touches its local memory any more, whatever came of it; then, and once, Python is told.
// - A connection belongs to one worker. Connections to one peer are its lanes: a batch's rails are dealt out over them, and what a
//   lane that fails had not finished goes to another one, kTriesMax times in all.
// - A grant that has ended is let go within one turn of the workers, however slow its reader is: what of a frame has not been sent is
//   copied aside.
#pragma once
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "job.hpp"
#include "served_grants.hpp"
#include "stream.hpp"

namespace kvstore::tcp {

inline constexpr std::uint32_t kTriesMax = 3;

struct EngineConfig {
  std::uint32_t workers = 1;
  std::uint32_t grants_max = 16'384;
  std::uint32_t requests_max = 64;      // that a peer may have outstanding on one connection
  std::int64_t spin_ns_max = 100'000;   // how long a worker looks again before it sleeps; 0: never
  std::array<std::uint8_t, 16> incarnation{};
};

enum class EventKind : std::uint8_t {
  kOpened = 1,    // id: a connection whose peer has said HELLO; text: its incarnation
  kClosed = 2,    // id: a connection; text: why
  kFinished = 3,  // id: a job's token
  kQuiet = 4,     // somebody has left a grant that has ended
};

struct Event {
  EventKind kind;
  std::uint64_t id = 0;
  std::string text{};
};

struct EngineStats {
  std::uint64_t bytes_read = 0, bytes_written = 0;  // by our jobs, landed or not
  std::uint64_t bytes_served = 0, bytes_taken = 0;  // to and from peers, by our grants
};

struct Shared;
struct Lane;
class Worker;

class Engine {
 public:
  explicit Engine(const EngineConfig& config);
  ~Engine();

  int fd() const noexcept;  // readable when there are events
  std::vector<Event> events();
  EngineStats stats() const;

  void add(std::uint64_t connection, std::uint64_t peer, std::unique_ptr<Stream> stream);
  void set_peer(std::uint64_t connection, std::uint64_t peer);  // of one that came in and has opened; 0: nobody asks over it
  void drop(std::uint64_t connection);

  void issue(std::shared_ptr<Served> grant);
  void end(std::uint32_t slot);
  bool quiet(std::uint32_t slot) const;

  void submit(const std::shared_ptr<Job>& job, std::uint64_t peer);  // throws std::invalid_argument where its token is in motion
  // Submits, and returns when it is finished: a single small slice is asked for and received by the calling thread itself. Past the
  // deadline (CLOCK_MONOTONIC) it is stopped as late.
  void run(const std::shared_ptr<Job>& job, std::uint64_t peer, std::int64_t deadline_ns);
  void stop(std::uint64_t token, Reason reason);

  // Ends all connections and jobs. False: a thread has not come back within `wait`; it is left to itself, and so is what it touches.
  bool close(std::chrono::nanoseconds wait);

 private:
  std::vector<Lane> enter(const std::shared_ptr<Job>& job, std::uint64_t peer);
  void deal(const std::shared_ptr<Job>& job, const std::vector<Lane>& lanes);

  std::shared_ptr<Shared> shared_;
  std::vector<std::shared_ptr<Worker>> workers_;
};

}  // namespace kvstore::tcp
