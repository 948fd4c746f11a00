// Sends what waits in a channel a moment later, so that whoever left it there need not wake the node for it.
//
// Rules
// - What was asked for is sent within kSoon, or earlier with any other frame; while the node does not read, it is tried again.
// - Its thread starts with the first ask, and stays awake for kAwake turns after the last one: asking it then costs no system
//   call. Without asks it sleeps.
// - stop() ends the thread and sends nothing more; nothing may be asked after it. In a child after fork it must not be destroyed.
#pragma once
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "channel.hpp"

namespace kvstore::door {

class Soon {
 public:
  static constexpr Nanos kSoon = 2'000'000;
  static constexpr int kAwake = 8;

  explicit Soon(std::shared_ptr<Channel> channel) : channel_(std::move(channel)) {}
  ~Soon() { stop(); }
  Soon(const Soon&) = delete;
  Soon& operator=(const Soon&) = delete;

  void ask();  // after Channel::later()
  void stop();

 private:
  void run();

  const std::shared_ptr<Channel> channel_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::thread thread_;
  bool asked_ = false;
  bool asleep_ = false;
  bool stopping_ = false;
};

}  // namespace kvstore::door
