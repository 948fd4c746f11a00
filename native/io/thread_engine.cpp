// preadv / pwritev on `depth` threads: for machines that refuse io_uring. A running call cannot be called back, so the
// deadline of a running request ends nothing; what waits is answered by the keeper thread meanwhile.
#include <atomic>
#include <cerrno>
#include <thread>

#include "clock.hpp"
#include "advance.hpp"

namespace kvstore::io {
namespace {

class ThreadEngine final : public Engine {
 public:
  explicit ThreadEngine(const EngineConfig& config) : files_(config.files), ledger_(config) {
    features_.engine = "threads";
    for (std::uint32_t i = 0; i < config.depth; ++i) threads_.emplace_back([this] { work(); });
    keeper_ = std::thread([this] { keep_deadlines(); });
  }
  ~ThreadEngine() override { close(); }

  Submitted submit(Op op, Lane lane, std::vector<Request> requests, Nanos deadline) override {
    return ledger_.submit(op, lane, std::move(requests), deadline);
  }
  void cancel(BatchId batch) override { ledger_.cancel(batch); }
  std::vector<Done> reap() override { return ledger_.reap(); }
  int event_fd() const override { return ledger_.event_fd(); }
  const Features& features() const override { return features_; }
  EngineStats stats() const override {
    EngineStats out = ledger_.stats();
    out.cpu_ns = cpu_ns_.load(std::memory_order_relaxed);
    return out;
  }
  void close() override {
    ledger_.close();
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
    if (keeper_.joinable()) keeper_.join();
  }

 private:
  void work() {
    Nanos cpu = thread_cpu_now();
    while (true) {
      while (auto task = ledger_.take(monotonic_now())) {
        const Task whole{task->batch, task->index, task->op, task->file, task->offset, task->bytes, 0, {}};
        const std::int64_t result = move(*task);
        const Nanos after = thread_cpu_now();
        cpu_ns_.fetch_add(static_cast<std::uint64_t>(after - cpu), std::memory_order_relaxed);
        cpu = after;
        ledger_.finish(whole, result);
      }
      if (ledger_.closed()) return;
      ledger_.wait_for_work();
    }
  }

  std::int64_t move(Task& task) {
    while (true) {
      const int fd = files_[task.file];
      const int count = static_cast<int>(task.pieces.size());
      const auto at = static_cast<off_t>(task.offset);
      const ssize_t moved = task.op == Op::kRead ? preadv(fd, task.pieces.data(), count, at)
                                                 : pwritev(fd, task.pieces.data(), count, at);
      if (moved < 0) {
        if (errno == EINTR || errno == EAGAIN) {
          if (const auto stop = ledger_.stop_of(task.batch); stop != 0) return stop;
          continue;
        }
        return -errno;
      }
      if (moved == 0) return -ENODATA;
      if (advance(task, static_cast<std::uint64_t>(moved))) return static_cast<std::int64_t>(task.bytes);
      ledger_.count_continued();
      if (const auto stop = ledger_.stop_of(task.batch); stop != 0) return stop;
    }
  }

  void keep_deadlines() {
    while (!ledger_.closed()) {
      ledger_.settle_late(monotonic_now());
      ledger_.wait_for_deadline();
    }
  }

  std::vector<int> files_;
  Ledger ledger_;
  Features features_;
  std::atomic<std::uint64_t> cpu_ns_{0};
  std::vector<std::thread> threads_;
  std::thread keeper_;
};

}  // namespace

std::unique_ptr<Engine> open_thread_engine(const EngineConfig& config) { return std::make_unique<ThreadEngine>(config); }

}  // namespace kvstore::io
