// One thread owns the ring: it hands requests to the kernel, reaps them and keeps the deadlines. The others only write to
// the ledger and wake it.
//
// The kernel pins the pages of every transfer, unless they are registered. Registered pieces go as one vectored FIXED
// operation where the kernel has it and registered.hpp finds one buffer for them. Else the few pieces of a request go as one
// FIXED operation each, submitted together (the block layer joins them again: half the CPU time of a vectored one for
// 2 MiB behind a header). What is left goes as one vectored operation.
#include "ring.hpp"

#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <future>
#include <limits>
#include <system_error>
#include <thread>

#include "advance.hpp"
#include "base/clock.hpp"
#include "crew.hpp"
#include "ledger.hpp"
#include "registered.hpp"

namespace kvstore::io {
namespace {

constexpr std::uint64_t kWake = ~0ull;
constexpr std::uint64_t kCancelBit = 1ull << 63;   // with the slot number: an answer to a cancel, of no interest
// Newer than the kernel headers of Debian 12; the numbers are the kernel's ABI.
constexpr std::uint8_t kReadvFixed = 60, kWritevFixed = 61;

// What the ledger calls an operation; to the kernel it may be one for each piece.
struct Running {
  Task whole;
  std::uint32_t left = 0;     // of the kernel's
  std::int64_t error = 0;     // the first
  std::uint64_t moved = 0;    // from the start; with `left` above one at first, of no meaning unless all is well
};

enum class Form : std::uint8_t { kVectored, kFixed, kVectoredFixed };

struct Operation {
  Rest rest;                  // of pieces of `running`
  std::uint32_t running = 0;  // whose
  std::uint16_t buffer = 0;
  Form form = Form::kVectored;
  bool busy = false;
  bool asked_to_stop = false;
};

// All that the ring's thread touches.
class RingWorks {
 public:
  explicit RingWorks(const EngineConfig& config)
      : config_(config), ledger(config), running_(config.depth), operations_(config.depth * kPiecesMax), wake_fd_(eventfd(0, EFD_CLOEXEC)) {
    if (wake_fd_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
    for (std::uint32_t i = config.depth; i-- > 0;) free_running_.push_back(i);
    for (std::uint32_t i = config.depth * kPiecesMax; i-- > 0;) free_operations_.push_back(i);
  }
  ~RingWorks() { ::close(wake_fd_); }
  RingWorks(const RingWorks&) = delete;
  RingWorks& operator=(const RingWorks&) = delete;

  void wake() {
    if (!asleep_.exchange(false)) return;
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(wake_fd_, &one, sizeof one);
  }

  void run(std::promise<void>& ready) {
    std::optional<Ring> ring;
    try {
      // Each request may have two operations and cancels of them prepared at once (more wait in prepare()); and the wake.
      ring.emplace(4 * config_.depth + 2);
      set_up(*ring);
    } catch (...) {
      ready.set_exception(std::current_exception());
      return;
    }
    ready.set_value();  // from here on `ready` may be gone
    loop(*ring);
  }

  const Features& features() const { return features_; }
  std::uint64_t cpu_ns() const { return cpu_ns_.load(std::memory_order_relaxed); }

 private:
  void set_up(Ring& ring) {
    features_.engine = "io_uring";
    features_.single_issuer = (ring.flags() & IORING_SETUP_SINGLE_ISSUER) != 0;
    features_.deferred_task_run = (ring.flags() & IORING_SETUP_DEFER_TASKRUN) != 0;
    if (!config_.files.empty()) {
      const int error = ring.register_files(config_.files);
      features_.registered_files = error >= 0;
      if (error < 0) note("files not registered", error);
    }
    if (!config_.register_memory || config_.regions.empty()) return;
    const int error = registered_.open(ring, config_.regions, ring.knows(kReadvFixed) && ring.knows(kWritevFixed));
    features_.registered_memory = error >= 0;
    features_.vectored_registered = registered_.has_together();
    if (error < 0) note("memory not registered (memlock limit?)", error);
  }

  void note(const char* what, int error) {
    if (!features_.note.empty()) features_.note += "; ";
    features_.note += std::string(what) + ": " + std::generic_category().message(-error);
  }

  void loop(Ring& ring) {
    bool wake_armed = false;
    std::uint64_t stops_seen = 0;
    while (true) {
      if (!wake_armed) wake_armed = arm_wake(ring);
      start_all(ring);
      if (const auto stops = ledger.stops(); stops != stops_seen) {
        stops_seen = stops;
        cancel_stopped(ring);
      }
      if (ledger.closed() && ledger.idle()) return quiet(ring, wake_armed);
      // First say that we sleep, then look once more: whoever changes something afterwards wakes us.
      asleep_.store(true);
      const auto due = ledger.settle_late(monotonic_now());
      const bool more = !free_running_.empty() && ledger.stats().waiting > 0;
      const bool over = ledger.closed() && ledger.idle();
      const bool wait = wake_armed && !more && !over && ledger.stops() == stops_seen;
      std::optional<Nanos> timeout;
      if (due && *due != kNever) timeout = *due - monotonic_now();
      ring.enter(wait, timeout);  // an error here means that the kernel is short of memory: what was prepared stays so
      asleep_.store(false);
      reap_all(ring, wake_armed);
      cpu_ns_.store(static_cast<std::uint64_t>(thread_cpu_now()), std::memory_order_relaxed);
    }
  }

  // The wake's read is the kernel's last reason to touch our memory.
  void quiet(Ring& ring, bool wake_armed) {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(wake_fd_, &one, sizeof one);
    while (wake_armed) {
      ring.enter(true, std::nullopt);
      reap_all(ring, wake_armed);
    }
  }

  bool arm_wake(Ring& ring) {
    io_uring_sqe* entry = ring.sqe();
    if (entry == nullptr) return false;
    entry->opcode = IORING_OP_READ;
    entry->fd = wake_fd_;
    entry->addr = reinterpret_cast<std::uint64_t>(&wake_count_);
    entry->len = sizeof wake_count_;
    entry->user_data = kWake;
    return true;
  }

  void start_all(Ring& ring) {
    const Nanos now = monotonic_now();
    while (!free_running_.empty()) {
      auto task = ledger.take(now);
      if (!task) return;
      const std::uint32_t index = free_running_.back();
      free_running_.pop_back();
      start(ring, index, std::move(*task));
    }
  }

  void start(Ring& ring, std::uint32_t index, Task&& task) {
    Running& running = running_[index];
    running = {std::move(task), 1, 0, 0};
    const std::span<iovec> pieces = running.whole.pieces.all();
    const Rest rest{running.whole.offset, pieces};
    if (pieces.size() == 1) {
      const auto buffer = registered_.buffer_of(pieces[0]);
      return begin(ring, {rest, index, buffer.value_or(0), buffer ? Form::kFixed : Form::kVectored});
    }
    if (const auto buffer = registered_.together(pieces)) return begin(ring, {rest, index, *buffer, Form::kVectoredFixed});
    const bool apart = pieces.size() <= kPiecesMax && running.whole.requests.count == 1 &&
                       std::all_of(pieces.begin(), pieces.end(), [this](const iovec& piece) { return registered_.buffer_of(piece); });
    if (!apart) return begin(ring, {rest, index, 0, Form::kVectored});
    running.left = static_cast<std::uint32_t>(pieces.size());
    std::uint64_t offset = running.whole.offset;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const std::uint64_t bytes = pieces[i].iov_len;
      begin(ring, {{offset, pieces.subspan(i, 1)}, index, *registered_.buffer_of(pieces[i]), Form::kFixed});
      offset += bytes;
    }
  }

  void begin(Ring& ring, const Operation& operation) {
    const std::uint32_t index = free_operations_.back();
    free_operations_.pop_back();
    operations_[index] = operation;
    operations_[index].busy = true;
    prepare(ring, index);
  }

  void prepare(Ring& ring, std::uint32_t index) {
    const Operation& operation = operations_[index];
    const Task& task = running_[operation.running].whole;
    io_uring_sqe* entry = ring.sqe();
    while (entry == nullptr) {  // the queue is full of what the kernel has not been given yet, or would not take
      ring.enter(false, 0);
      entry = ring.sqe();
    }
    const bool read = task.op == Op::kRead;
    entry->fd = features_.registered_files ? static_cast<int>(task.file) : config_.files[task.file];
    if (features_.registered_files) entry->flags = IOSQE_FIXED_FILE;
    entry->off = operation.rest.offset;
    entry->user_data = index;
    if (operation.form == Form::kFixed) {
      entry->opcode = read ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED;
      entry->addr = reinterpret_cast<std::uint64_t>(operation.rest.pieces[0].iov_base);
      entry->len = static_cast<std::uint32_t>(operation.rest.pieces[0].iov_len);
      entry->buf_index = operation.buffer;
      return;
    }
    entry->addr = reinterpret_cast<std::uint64_t>(operation.rest.pieces.data());
    entry->len = static_cast<std::uint32_t>(operation.rest.pieces.size());
    if (operation.form == Form::kVectored) {
      entry->opcode = read ? IORING_OP_READV : IORING_OP_WRITEV;
    } else {
      entry->opcode = read ? kReadvFixed : kWritevFixed;
      entry->buf_index = operation.buffer;
    }
  }

  void cancel_stopped(Ring& ring) {
    for (std::uint32_t i = 0; i < operations_.size(); ++i) {
      Operation& operation = operations_[i];
      if (!operation.busy || operation.asked_to_stop || ledger.stop_of(running_[operation.running].whole.batch) == 0) continue;
      io_uring_sqe* entry = ring.sqe();
      if (entry == nullptr) return;  // it ends by itself then
      operation.asked_to_stop = true;
      entry->opcode = IORING_OP_ASYNC_CANCEL;
      entry->addr = i;  // the user data of the operation
      entry->user_data = kCancelBit | i;
    }
  }

  void reap_all(Ring& ring, bool& wake_armed) {
    Completion completion;
    while (ring.completion(completion)) {
      if (completion.user == kWake) {
        wake_armed = false;
      } else if ((completion.user & kCancelBit) == 0) {
        ended(ring, static_cast<std::uint32_t>(completion.user), completion.result);
      }
    }
  }

  void ended(Ring& ring, std::uint32_t index, std::int32_t result) {
    Operation& operation = operations_[index];
    Running& running = running_[operation.running];
    if (result > 0) {
      running.moved += static_cast<std::uint64_t>(result);
      if (advance(operation.rest, static_cast<std::uint64_t>(result))) return end(index, 0);
    }
    const std::int64_t stop = ledger.stop_of(running.whole.batch);
    if (result > 0) {
      ledger.count_continued();
    } else if (result == 0) {
      return end(index, -ENODATA);
    } else if (stop == 0 && result != -EINTR && result != -EAGAIN) {
      return end(index, result);
    }
    if (stop != 0) return end(index, stop);
    prepare(ring, index);
  }

  void end(std::uint32_t index, std::int64_t error) {
    Operation& operation = operations_[index];
    Running& running = running_[operation.running];
    operation.busy = false;
    free_operations_.push_back(index);
    if (running.error == 0) running.error = error;
    if (--running.left > 0) return;
    free_running_.push_back(operation.running);
    // Of one request in several parts it does not matter what has been moved.
    ledger.finish(running.whole, running.error, running.whole.requests.count > 1 ? running.moved : 0);
  }

  static constexpr Nanos kNever = std::numeric_limits<Nanos>::max();

  const EngineConfig config_;

 public:
  Ledger ledger;

 private:
  Features features_;
  // The ring thread's own.
  std::vector<Running> running_;
  std::vector<Operation> operations_;
  std::vector<std::uint32_t> free_running_, free_operations_;
  RegisteredMemory registered_;
  int wake_fd_;
  std::uint64_t wake_count_ = 0;
  std::atomic<bool> asleep_{false};
  std::atomic<std::uint64_t> cpu_ns_{0};
};

class UringEngine final : public Engine {
 public:
  explicit UringEngine(const EngineConfig& config) : works_(std::make_shared<RingWorks>(config)) {
    auto ready = std::make_shared<std::promise<void>>();
    auto started = ready->get_future();
    // The ring is made on the thread that will use it: a single-issuer ring belongs to its maker.
    crew_.add<RingWorks>(works_, [ready = std::move(ready)](RingWorks& works) { works.run(*ready); });
    started.get();
  }
  ~UringEngine() override { close(tried_ ? 0 : kCloseMax); }

  Submitted submit(Op op, Lane lane, std::vector<Request> requests, Nanos deadline) override {
    const Submitted out = works_->ledger.submit(op, lane, std::move(requests), deadline);
    if (out.status == SubmitStatus::kOk) works_->wake();
    return out;
  }
  void cancel(BatchId batch) override {
    works_->ledger.cancel(batch);
    works_->wake();
  }
  std::vector<Done> reap() override { return works_->ledger.reap(); }
  int event_fd() const override { return works_->ledger.event_fd(); }
  const Features& features() const override { return works_->features(); }
  EngineStats stats() const override {
    EngineStats out = works_->ledger.stats();
    out.cpu_ns = works_->cpu_ns();
    return out;
  }
  bool close(Nanos limit) override {
    tried_ = true;
    works_->ledger.close();
    works_->wake();
    return crew_.join(limit);
  }

 private:
  const std::shared_ptr<RingWorks> works_;
  bool tried_ = false;
  Crew crew_;
};

}  // namespace

std::unique_ptr<Engine> open_uring_engine(const EngineConfig& config) { return std::make_unique<UringEngine>(config); }

std::optional<std::string> uring_refused() {
  try {
    Ring ring(2);
    return std::nullopt;
  } catch (const std::system_error& error) {
    return error.what();
  }
}

}  // namespace kvstore::io

#else  // no kernel headers with io_uring where this was built

#include <system_error>

namespace kvstore::io {
std::unique_ptr<Engine> open_uring_engine(const EngineConfig&) {
  throw std::system_error(ENOSYS, std::generic_category(), "built without io_uring");
}
std::optional<std::string> uring_refused() { return "built without linux/io_uring.h"; }
}  // namespace kvstore::io
#endif
