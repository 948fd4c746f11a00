// preadv / pwritev on `depth` threads: for machines that refuse io_uring. A running call cannot be called back, so the
// deadline of a running request ends nothing; what waits is answered by the keeper thread meanwhile.
#include <atomic>
#include <cerrno>

#include "clock.hpp"
#include "advance.hpp"
#include "crew.hpp"

namespace kvstore::io {
namespace {

// All that a thread touches.
class Works {
 public:
  explicit Works(const EngineConfig& config) : ledger(config), files_(config.files) {}

  void work() {
    Nanos cpu = thread_cpu_now();
    while (true) {
      while (auto task = ledger.take(monotonic_now())) {
        const Task whole{task->batch, task->index, task->op, task->file, task->offset, task->bytes, 0, {}};
        const std::int64_t result = move(*task);
        const Nanos after = thread_cpu_now();
        cpu_ns.fetch_add(static_cast<std::uint64_t>(after - cpu), std::memory_order_relaxed);
        cpu = after;
        ledger.finish(whole, result);
      }
      if (ledger.closed()) return;
      ledger.wait_for_work();
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
          if (const auto stop = ledger.stop_of(task.batch); stop != 0) return stop;
          continue;
        }
        return -errno;
      }
      if (moved == 0) return -ENODATA;
      if (advance(task, static_cast<std::uint64_t>(moved))) return static_cast<std::int64_t>(task.bytes);
      ledger.count_continued();
      if (const auto stop = ledger.stop_of(task.batch); stop != 0) return stop;
    }
  }

  void keep_deadlines() {
    while (!ledger.closed()) {
      ledger.settle_late(monotonic_now());
      ledger.wait_for_deadline();
    }
  }

  Ledger ledger;
  std::atomic<std::uint64_t> cpu_ns{0};

 private:
  std::vector<int> files_;
};

class ThreadEngine final : public Engine {
 public:
  explicit ThreadEngine(const EngineConfig& config) : works_(std::make_shared<Works>(config)) {
    features_.engine = "threads";
    for (std::uint32_t i = 0; i < config.depth; ++i) crew_.add<Works>(works_, &Works::work);
    crew_.add<Works>(works_, &Works::keep_deadlines);
  }
  ~ThreadEngine() override { close(tried_ ? 0 : kCloseMax); }

  Submitted submit(Op op, Lane lane, std::vector<Request> requests, Nanos deadline) override {
    return works_->ledger.submit(op, lane, std::move(requests), deadline);
  }
  void cancel(BatchId batch) override { works_->ledger.cancel(batch); }
  std::vector<Done> reap() override { return works_->ledger.reap(); }
  int event_fd() const override { return works_->ledger.event_fd(); }
  const Features& features() const override { return features_; }
  EngineStats stats() const override {
    EngineStats out = works_->ledger.stats();
    out.cpu_ns = works_->cpu_ns.load(std::memory_order_relaxed);
    return out;
  }
  bool close(Nanos limit) override {
    tried_ = true;
    works_->ledger.close();
    return crew_.join(limit);
  }

 private:
  const std::shared_ptr<Works> works_;
  Features features_;
  bool tried_ = false;
  Crew crew_;
};

}  // namespace

std::unique_ptr<Engine> open_thread_engine(const EngineConfig& config) { return std::make_unique<ThreadEngine>(config); }

}  // namespace kvstore::io
