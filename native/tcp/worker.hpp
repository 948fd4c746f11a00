// One thread with its connections.
#pragma once
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "connection.hpp"

namespace kvstore::tcp {

class Worker {
 public:
  Worker(std::shared_ptr<Shared> shared, std::uint32_t index);
  ~Worker();
  void run();

  // Orders, from the inbox.
  void add(std::uint64_t id, std::uint64_t peer, std::unique_ptr<Stream> stream);
  void set_peer(std::uint64_t id, std::uint64_t peer);
  void drop(std::uint64_t id);
  void ask(const Lane& lane, const std::shared_ptr<Job>& job, const std::vector<std::size_t>& slices, std::uint32_t tries);
  void withdraw(const Job& job);
  void detach_ended();

 private:
  Connection* find(std::uint64_t id);
  void ready(Connection& connection, std::uint32_t events);
  void arm(Connection& connection);
  void end(std::uint64_t id, const std::string& why);
  void obey();

  std::shared_ptr<Shared> shared_;
  std::uint32_t index_;
  int epoll_;
  std::unordered_map<std::uint64_t, std::unique_ptr<Connection>> connections_;
  std::unordered_set<std::uint64_t> holding_;  // with input that no descriptor shows
};

}  // namespace kvstore::tcp
