// One thread with its connections.
#pragma once
#include <sys/epoll.h>

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "base/spin_window.hpp"
#include "connection.hpp"

namespace kvstore::tcp {

class Worker {
 public:
  Worker(std::shared_ptr<Shared> shared, std::uint32_t index);
  ~Worker();
  void run();

  // From other threads. False: the worker is at work, or the lane is gone or driven; nothing was done.
  bool ask_now(const Lane& lane, const std::shared_ptr<Job>& job, const std::vector<std::size_t>& slices);
  // Asks for the job's only slice and takes what comes on the lane, until the job is finished, the lane has ended, or it is late.
  bool drive(const Lane& lane, const std::shared_ptr<Job>& job, std::int64_t deadline_ns);

  // Orders, from the inbox.
  void add(std::uint64_t id, std::uint64_t peer, std::unique_ptr<Stream> stream);
  void set_peer(std::uint64_t id, std::uint64_t peer);
  void drop(std::uint64_t id);
  void ask(const Lane& lane, const std::shared_ptr<Job>& job, const std::vector<std::size_t>& slices, std::uint32_t tries);
  void withdraw(const Job& job);
  void detach_ended();

 private:
  int await(std::span<epoll_event> events, bool more);
  Connection* find(std::uint64_t id);
  void ready(Connection& connection, std::uint32_t events);
  void arm(Connection& connection);
  void end(std::uint64_t id, const std::string& why);
  void obey();

  bool step(std::uint64_t id, std::unique_lock<std::mutex>& turn, SpinWindow& spin);

  std::shared_ptr<Shared> shared_;
  std::mutex turn_;  // held by whoever works with what is below; not while the worker waits
  std::uint32_t index_;
  int epoll_;
  SpinWindow spin_;
  std::unordered_map<std::uint64_t, std::unique_ptr<Connection>> connections_;
  std::unordered_set<std::uint64_t> holding_;  // with input that no descriptor shows
};

}  // namespace kvstore::tcp
