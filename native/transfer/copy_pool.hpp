// Threads that copy jobs, and an eventfd that tells when some are back.
//
// Rules
// - A job is reported once, when no thread touches its memory any more: never before its last rail is back, even if it was
//   stopped or is late.
// - Rails take turns of `turn_slices`, so that a long batch does not keep short ones waiting.
// - stop() takes rails that have not begun out of the queue at once; a rail under way ends its slice first.
// - The queue is bounded by whoever submits; threads sleep on a condition and never spin.
// - close() waits a bounded time. A thread that does not come back is left to itself, with everything it uses.
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "copy_job.hpp"

namespace kvstore::transfer {

class CopyPool {
 public:
  CopyPool(std::uint32_t workers, std::uint32_t turn_slices);  // throws std::system_error
  ~CopyPool();                                                 // close(0)
  CopyPool(const CopyPool&) = delete;
  CopyPool& operator=(const CopyPool&) = delete;

  int fd() const noexcept;  // readable while finished() has something
  // `token` names the job in finished(). Throws std::logic_error after close.
  void submit(std::uint64_t token, std::shared_ptr<CopyJob> job);
  void stop(std::uint64_t token, Reason reason);  // a token that is back, or was never there, is passed over
  std::vector<std::uint64_t> finished();
  // Stops everything. False: some thread has not come back within the time.
  bool close(std::chrono::nanoseconds wait);

 private:
  struct State;
  std::shared_ptr<State> state_;  // shared with the threads
};

}  // namespace kvstore::transfer
