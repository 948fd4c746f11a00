// A client's socket: frames out, and answers to those who wait for them.
//
// Rules
// - Thread-safe. Whoever waits reads for all, unless a thread reads for everybody (dedicate()).
// - Once broken, always broken: every wait ends, every send is refused. The descriptor stays open until the destructor:
//   the node takes its end for the end of everything that this process could still do to the segment.
// - Whoever cannot send because the node waits for its answers to be taken reads meanwhile: two ends never wait for each other.
// - An answer that nobody waits for any more is undone: its hold released, its reservation aborted.
// - Answers are checked against `frame_bytes_max`; one that does not parse breaks the channel.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "base/spin_window.hpp"
#include "frame.hpp"
#include "wire.hpp"

namespace kvstore::door {

struct Answer {
  FrameHeader header;
  std::vector<std::uint8_t> body;
};

class Channel {
 public:
  explicit Channel(std::unique_ptr<Wire> wire);
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  void set_frame_bytes_max(std::uint32_t bytes) { frame_bytes_max_ = bytes; }
  int fd() const noexcept { return wire_->fd(); }
  bool broken() const noexcept { return broken_.load(); }
  void break_off();  // ends every wait within kSlice

  // A request to come. `ready`, if any, is called after its answer, by whoever reads, without a lock.
  std::uint64_t open(std::function<void()> ready = {});
  void abandon(std::uint64_t request);  // idempotent
  // Sends whole frames, and before them what waits. kOk, kLate (then the channel is broken if bytes had gone) or kUnavailable.
  Status send(std::span<const std::uint8_t> frames, Nanos deadline);
  // As send(), without ever waiting. kLate: nothing has gone, it is for send(). kOk, and waiting(): it has gone in part, and the rest
  // is for flush(). Not over TLS, which has work to do before it sends.
  Status send_at_once(std::span<const std::uint8_t> frames);
  // Keeps a frame that is not answered until the next send.
  void later(Verb verb, std::span<const std::uint8_t> body);
  Status flush(Nanos deadline) { return send({}, deadline); }
  bool waiting() const noexcept { return waits_.load(std::memory_order_relaxed); }  // is there anything to flush

  // The answer of `request`.
  Status wait(std::uint64_t request, Nanos deadline, Answer& out);
  bool take(std::uint64_t request, Answer& out);  // without waiting
  bool has(std::uint64_t request);
  // For a thread that reads for everybody: reads once, for kSlice at most.
  void dedicate() { dedicated_ = true; }
  void read_slice();

  static constexpr Nanos kSlice = Wire::kSlice;
  static constexpr Nanos kSpinMax = 100'000;  // whoever waits for an answer looks again for so long before it sleeps

 private:
  struct Pending {
    std::optional<Answer> answer;
    std::function<void()> ready;
  };
  void read_for_all(Nanos deadline, std::uint64_t unless_answered = 0);
  bool receive(Nanos deadline);
  ssize_t look_again(Nanos start);
  ssize_t sleep_for_it(Nanos left);
  void dispatch();
  void undo(const FrameHeader& header, std::span<const std::uint8_t> body);

  const std::unique_ptr<Wire> wire_;
  std::atomic<std::uint32_t> frame_bytes_max_{1u << 20};
  std::atomic<bool> broken_{false};
  std::atomic<bool> dedicated_{false};

  std::mutex sending_;
  FrameWriter going_;  // frames that go before the next one; of whoever sends
  std::mutex outbox_;
  FrameWriter waiting_;  // frames for the next send
  std::atomic<bool> waits_{false};  // frames in waiting_ or going_
  std::atomic<bool> undone_{false};  // there are such, and they should not wait for it

  std::mutex mutex_;
  std::condition_variable changed_;
  std::unordered_map<std::uint64_t, Pending> pending_;
  std::uint64_t next_ = 1;
  std::size_t waiters_ = 0;
  bool reading_ = false;

  std::vector<std::uint8_t> in_;  // of whoever reads
  std::size_t begin_ = 0, end_ = 0;
  SpinWindow spin_{kSpinMax};  // of whoever reads
};

}  // namespace kvstore::door
