// preadv / pwritev on `depth` threads: for machines that refuse io_uring. A running call cannot be called back, so the
// deadline of a running request ends nothing; what waits is answered by the keeper thread meanwhile.
#include <atomic>
#include <cerrno>

#include "advance.hpp"
#include "base/clock.hpp"
#include "crew.hpp"
#include "ledger.hpp"

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
        std::uint64_t moved = 0;
        const std::int64_t error = move(*task, moved);
        const Nanos after = thread_cpu_now();
        cpu_ns.fetch_add(static_cast<std::uint64_t>(after - cpu), std::memory_order_relaxed);
        cpu = after;
        ledger.finish(*task, error, moved);
      }
      if (ledger.closed()) return;
      ledger.wait_for_work();
    }
  }

  // 0 or a negative errno.
  std::int64_t move(Task& task, std::uint64_t& moved) {
    Rest rest{task.offset, task.pieces.all()};
    while (true) {
      const int fd = files_[task.file];
      const int count = static_cast<int>(rest.pieces.size());
      const auto at = static_cast<off_t>(rest.offset);
      const ssize_t some = task.op == Op::kRead ? preadv(fd, rest.pieces.data(), count, at)
                                                : pwritev(fd, rest.pieces.data(), count, at);
      if (some < 0) {
        if (errno == EINTR || errno == EAGAIN) {
          if (const auto stop = ledger.stop_of(task.batch); stop != 0) return stop;
          continue;
        }
        return -errno;
      }
      if (some == 0) return -ENODATA;
      moved += static_cast<std::uint64_t>(some);
      if (advance(rest, static_cast<std::uint64_t>(some))) return 0;
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
