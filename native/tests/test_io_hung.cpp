// A device that hangs under the thread engine. This program's own preadv stands in for it: of the pipe, a call stays in the
// kernel until the test lets the device answer, as a call on a dead disk or mount would; of other files it is the real one.
//
// What is promised: what waits behind is answered at its deadline; the rest of the engine goes on while a thread is left;
// the batch that hangs is answered once, and only when its thread is back, because until then its memory is not quiet. A close
// says after its limit that it is not, and what the thread needs stays, whoever goes.
#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "base/clock.hpp"
#include "io/engine.hpp"

namespace {

int hung_fd = -1;
std::atomic<int> hanging{0};  // calls that are in the device now

}  // namespace

extern "C" ssize_t preadv(int fd, const iovec* pieces, int count, off_t offset) {
  if (fd != hung_fd) return syscall(SYS_preadv, fd, pieces, static_cast<long>(count), static_cast<long>(offset), 0l);
  ++hanging;
  const ssize_t moved = readv(fd, pieces, count);  // blocks in the kernel until there is something
  --hanging;
  return moved;
}

using namespace kvstore::io;

namespace {

constexpr Nanos kForever = std::numeric_limits<Nanos>::max();
constexpr Nanos kMs = 1'000'000;
constexpr Nanos kToStart = 400 * kMs;  // for a busy machine: who is late before it has begun never hangs
constexpr std::size_t kPage = 4096;

struct Bench {
  int file = -1;
  int device[2] = {-1, -1};
  std::vector<std::byte> memory = std::vector<std::byte>(16 * kPage, std::byte{7});
  std::map<BatchId, std::vector<std::int64_t>> seen;
  std::unique_ptr<Engine> engine;

  explicit Bench(std::uint32_t depth) {
    char path[] = "/tmp/kvstore_hung_XXXXXX";
    file = mkstemp(path);
    CHECK(file >= 0);
    unlink(path);
    CHECK(ftruncate(file, 1 << 20) == 0);
    CHECK(pipe2(device, O_CLOEXEC) == 0);
    hung_fd = device[0];
    EngineConfig config;
    config.files = {file, device[0]};
    config.depth = depth;
    engine = open_thread_engine(config);
  }
  ~Bench() {
    engine.reset();
    for (const int fd : {file, device[0], device[1]}) close(fd);
  }
  std::byte* page(std::size_t i) { return memory.data() + i * kPage; }
  BatchId read(std::uint32_t from, std::size_t to_page, Nanos deadline = kForever) {
    const Submitted out = engine->submit(Op::kRead, Lane::kForeground, {{from, 0, {{page(to_page), kPage}}}}, deadline);
    CHECK(out.status == SubmitStatus::kOk);
    return out.batch;
  }
  void collect() {
    for (Done& done : engine->reap()) {
      CHECK(!seen.contains(done.batch));
      seen[done.batch] = std::move(done.results);
    }
  }
  std::int64_t wait(BatchId batch) {
    for (collect(); !seen.contains(batch); collect()) {
      pollfd p{engine->event_fd(), POLLIN, 0};
      if (poll(&p, 1, 20'000) != 1) return 1;  // no answer at all
      std::uint64_t count = 0;
      CHECK(::read(engine->event_fd(), &count, sizeof count) == sizeof count);
    }
    return seen[batch][0];
  }
  static void until_hanging(int count) {
    while (hanging.load() != count) std::this_thread::yield();
  }
  void device_answers(std::size_t calls) {
    for (std::size_t i = 0; i < calls; ++i) {
      const std::string text(kPage, 'd');
      CHECK(write(device[1], text.data(), text.size()) == static_cast<ssize_t>(kPage));
    }
  }
};

void test_what_waits_is_answered_at_its_deadline() {
  Bench b(1);
  const BatchId stuck = b.read(1, 0, kvstore::monotonic_now() + kToStart);
  Bench::until_hanging(1);
  const BatchId behind = b.read(0, 1, kvstore::monotonic_now() + kToStart + 20 * kMs);
  CHECK(b.wait(behind) == -ETIME);  // although the one thread there is never comes back
  // Long past its own deadline, the one that hangs has not been answered: its memory is the device's yet.
  b.collect();
  CHECK(!b.seen.contains(stuck));
  CHECK(b.engine->stats().running == 1 && b.engine->stats().late == 1);
  b.device_answers(1);
  CHECK(b.wait(stuck) == static_cast<std::int64_t>(kPage));
  CHECK(b.memory[0] == std::byte{'d'});
  // Answered: nothing touches it any more, and the engine is as good as new.
  std::memset(b.page(0), 9, kPage);
  CHECK(b.wait(b.read(0, 2)) == static_cast<std::int64_t>(kPage));
  CHECK(b.memory[0] == std::byte{9});
  CHECK(b.engine->stats().running == 0);
}

void test_other_files_go_on_while_a_thread_is_left() {
  Bench b(2);
  const BatchId stuck = b.read(1, 0, kvstore::monotonic_now() + kToStart);
  Bench::until_hanging(1);
  for (int i = 0; i < 50; ++i) CHECK(b.wait(b.read(0, 1)) == static_cast<std::int64_t>(kPage));
  std::this_thread::sleep_for(std::chrono::nanoseconds(kToStart));
  b.collect();
  CHECK(!b.seen.contains(stuck));
  b.device_answers(1);
  CHECK(b.wait(stuck) == static_cast<std::int64_t>(kPage));
}

void test_a_batch_in_parts_waits_for_the_part_that_hangs() {
  Bench b(1);
  const Submitted out = b.engine->submit(Op::kRead, Lane::kForeground,
                                         {{1, 0, {{b.page(0), kPage}}}, {0, 0, {{b.page(1), kPage}}}}, kvstore::monotonic_now() + kToStart);
  Bench::until_hanging(1);
  CHECK(b.wait(b.read(0, 2, kvstore::monotonic_now() + kToStart + 20 * kMs)) == -ETIME);
  CHECK(!b.seen.contains(out.batch));  // whole or not at all
  b.device_answers(1);
  CHECK(b.wait(out.batch) == static_cast<std::int64_t>(kPage));
  CHECK(b.seen[out.batch][1] == -ETIME);  // never started
  CHECK(*b.page(1) == std::byte{7});
}

void test_cancel_and_close_wait_for_the_thread() {
  Bench b(1);
  const BatchId stuck = b.read(1, 0), behind = b.read(0, 1);
  Bench::until_hanging(1);
  b.engine->cancel(behind);
  CHECK(b.wait(behind) == -ECANCELED);
  b.engine->cancel(stuck);
  b.collect();
  CHECK(!b.seen.contains(stuck));
  std::atomic<bool> closed{false};
  std::thread closing([&] {
    b.engine->close();
    closed = true;
  });
  while (b.engine->submit(Op::kRead, Lane::kForeground, {{0, 0, {{b.page(1), kPage}}}}, kForever).status != SubmitStatus::kClosed) {
    std::this_thread::yield();
  }
  CHECK(!closed);
  b.device_answers(1);
  closing.join();
  CHECK(b.wait(stuck) == static_cast<std::int64_t>(kPage));
}

void test_close_has_a_limit_and_says_that_memory_is_not_quiet() {
  Bench b(2);
  const BatchId stuck = b.read(1, 0), behind = b.read(1, 1), third = b.read(1, 2);
  Bench::until_hanging(2);
  CHECK(!b.engine->close(20 * kMs));
  CHECK(b.wait(third) == -ECANCELED);  // what never began is answered
  b.collect();
  CHECK(!b.seen.contains(stuck) && !b.seen.contains(behind));
  CHECK(b.engine->stats().running == 2);
  CHECK(!b.engine->close(kMs));
  b.device_answers(2);
  CHECK(b.engine->close());  // it was only slow
  CHECK(b.wait(stuck) == static_cast<std::int64_t>(kPage) && b.wait(behind) == static_cast<std::int64_t>(kPage));
}

void test_an_engine_may_go_while_its_device_hangs() {
  Bench b(1);
  b.read(1, 0);
  Bench::until_hanging(1);
  CHECK(!b.engine->close(kMs));
  b.engine.reset();  // at once: the limit was waited for
  CHECK(hanging.load() == 1);
  b.device_answers(1);
  Bench::until_hanging(0);
  // The thread goes on in what it kept of the engine, into the memory that it was given, and ends.
  for (int i = 0; i < 20'000 && b.memory[0] != std::byte{'d'}; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  CHECK(b.memory[0] == std::byte{'d'});
}

}  // namespace

int main() {
  test_what_waits_is_answered_at_its_deadline();
  test_other_files_go_on_while_a_thread_is_left();
  test_a_batch_in_parts_waits_for_the_part_that_hangs();
  test_cancel_and_close_wait_for_the_thread();
  test_close_has_a_limit_and_says_that_memory_is_not_quiet();
  test_an_engine_may_go_while_its_device_hangs();
  return kvstore::test::finish();
}
