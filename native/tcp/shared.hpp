// What the worker threads of one engine share: grants, lanes, jobs in motion, and what Python has still to be told.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "job.hpp"
#include "served_grants.hpp"
#include "transfer/box.hpp"

namespace kvstore::tcp {

class Connection;
class Worker;

// What other threads ask of a worker, done in order, between two looks at its sockets.
using Inbox = transfer::Box<std::function<void(Worker&)>>;

struct Lane {  // an open connection to a peer
  std::uint64_t peer, connection;
  std::uint32_t worker;
};

struct Shared {
  explicit Shared(const EngineConfig& config);

  void tell(Event event) { events.put(std::move(event)); }
  void settled(const std::shared_ptr<Job>& job, std::size_t slice, Reason reason);
  void ended(const std::shared_ptr<Job>& job);  // its last slice is settled, or it has none
  // A connection that was to move the slice has ended: another lane of the peer takes it over, or it is settled.
  void lost(std::uint64_t peer, const std::shared_ptr<Job>& job, std::size_t slice, std::uint32_t tries);
  // Until the job, which is waited for in a thread, is finished (true), or the time is over.
  bool wait(const Job& job, std::optional<std::int64_t> until_ns);
  void lane_opened(const Lane& lane);
  void lane_closed(std::uint64_t peer, std::uint64_t connection);

  const EngineConfig config;
  ServedGrants grants;
  std::vector<std::unique_ptr<Inbox>> inboxes;
  transfer::Box<Event> events;  // that Python has not taken

  std::mutex mutex;  // of all below
  std::unordered_map<std::uint64_t, std::vector<Lane>> lanes;  // by peer
  std::unordered_map<std::uint64_t, std::shared_ptr<Job>> jobs;
  std::uint32_t threads = 0;
  std::condition_variable idle, finished;

  std::atomic<bool> stopping{false};
  std::atomic<std::uint64_t> bytes_read{0}, bytes_written{0}, bytes_served{0}, bytes_taken{0};
};

}  // namespace kvstore::tcp
