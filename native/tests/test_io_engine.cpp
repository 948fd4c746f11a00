// Both engines against real files: whole batches, short files, deadlines, cancel, limits, and quiet memory.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <system_error>
#include <thread>

#include "check.hpp"
#include "io/advance.hpp"
#include "base/clock.hpp"
#include "io/engine.hpp"

using namespace kvstore::io;

namespace {

constexpr Nanos kForever = std::numeric_limits<Nanos>::max();
constexpr std::size_t kMemory = 8 << 20, kPages = 1 << 20;

struct Bench {
  int fd = -1;
  std::byte* pages = nullptr;  // a small region of its own, as headers have
  int pipe_fds[2] = {-1, -1};  // a "disk" that answers when we like
  std::byte* memory = nullptr;
  std::unique_ptr<Engine> engine;

  explicit Bench(bool uring, std::uint32_t depth = 4, std::uint32_t pending_max = 1024, bool register_memory = true) {
    char path[] = "/tmp/kvstore_io_XXXXXX";
    fd = mkstemp(path);
    CHECK(fd >= 0);
    unlink(path);
    CHECK(ftruncate(fd, 16 << 20) == 0);
    CHECK(pipe2(pipe_fds, O_CLOEXEC) == 0);
    memory = static_cast<std::byte*>(
        mmap(nullptr, kMemory, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    EngineConfig config;
    config.files = {fd, pipe_fds[0]};
    pages = static_cast<std::byte*>(mmap(nullptr, kPages, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    config.regions = {{memory, kMemory}, {pages, kPages}};
    config.depth = depth;
    config.pending_max = pending_max;
    config.register_memory = register_memory;
    engine = uring ? open_uring_engine(config) : open_thread_engine(config);
  }
  ~Bench() {
    engine.reset();
    munmap(memory, kMemory);
    munmap(pages, kPages);
    close(fd);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
  }
  std::vector<std::int64_t> wait(BatchId batch) {
    while (!seen.contains(batch)) {
      pollfd p{engine->event_fd(), POLLIN, 0};
      CHECK(poll(&p, 1, 10'000) == 1);
      std::uint64_t count = 0;
      CHECK(read(engine->event_fd(), &count, sizeof count) == sizeof count);
      for (Done& done : engine->reap()) seen[done.batch] = std::move(done.results);
    }
    return seen[batch];
  }
  bool is_done(BatchId batch) {
    for (Done& done : engine->reap()) seen[done.batch] = std::move(done.results);
    return seen.contains(batch);
  }
  BatchId submit(Op op, std::vector<Request> requests, Nanos deadline = kForever, Lane lane = Lane::kForeground) {
    const Submitted out = engine->submit(op, lane, std::move(requests), deadline);
    CHECK(out.status == SubmitStatus::kOk);
    return out.batch;
  }
  std::map<BatchId, std::vector<std::int64_t>> seen;
};

void fill(std::byte* at, std::size_t bytes, unsigned seed) {
  for (std::size_t i = 0; i < bytes; ++i) at[i] = static_cast<std::byte>((i * 31 + seed * 7 + (i >> 8)) & 0xff);
}

void test_write_then_read(bool uring, bool registered) {
  Bench b(uring, 4, 1024, registered);
  constexpr std::size_t kHead = 4096, kBody = 65536;
  fill(b.memory, 1 << 20, 1);
  std::vector<Request> writes, reads;
  for (std::uint32_t i = 0; i < 10; ++i) {
    const std::uint64_t at = i * (kHead + kBody);
    writes.push_back({0, at, {{b.memory + (i * kHead), kHead}, {b.memory + ((i + 1) * kBody), kBody}}});
    reads.push_back({0, at, {{b.memory + ((4u << 20) + i * (kHead + kBody)), kHead + kBody}}});
  }
  for (const auto result : b.wait(b.submit(Op::kWrite, writes))) CHECK(result == kHead + kBody);
  for (const auto result : b.wait(b.submit(Op::kRead, reads))) CHECK(result == kHead + kBody);
  for (std::uint32_t i = 0; i < 10; ++i) {
    const std::byte* back = b.memory + (4u << 20) + i * (kHead + kBody);
    CHECK(std::memcmp(back, b.memory + i * kHead, kHead) == 0);
    CHECK(std::memcmp(back + kHead, b.memory + (i + 1) * kBody, kBody) == 0);
  }
  const EngineStats stats = b.engine->stats();
  CHECK(stats.reads == 10 && stats.writes == 10 && stats.running == 0 && stats.waiting == 0);
  CHECK(stats.read_bytes == 10 * (kHead + kBody) && stats.failed == 0);
}

// Blocks behind one another, each a header in one region and a payload in another, in any order: what comes back is theirs.
void test_joined(bool uring, bool registered) {
  Bench b(uring, 2, 1024, registered);
  constexpr std::size_t kHead = 4096, kBody = 65536, kCell = kHead + kBody;
  constexpr std::uint32_t kCount = 40;
  std::vector<Request> writes, reads;
  for (std::uint32_t i = 0; i < kCount; ++i) {
    std::byte *head = b.pages + i * kHead, *body = b.memory + (kCount - i) * kBody;  // descending in memory
    fill(head, kHead, 2 * i);
    fill(body, kBody, 2 * i + 1);
    writes.push_back({0, i * kCell, {{head, kHead}, {body, kBody}}});
    reads.push_back({0, i * kCell, {{b.pages + (kCount + i) * kHead, kHead}, {b.memory + (4u << 20) + i * kBody, kBody}}});
  }
  std::reverse(reads.begin(), reads.end());
  for (const auto result : b.wait(b.submit(Op::kWrite, writes))) CHECK(result == kCell);
  std::vector<std::byte> raw(kCount * kCell);
  CHECK(pread(b.fd, raw.data(), raw.size(), 0) == static_cast<ssize_t>(raw.size()));
  for (const auto result : b.wait(b.submit(Op::kRead, reads))) CHECK(result == kCell);
  for (std::uint32_t i = 0; i < kCount; ++i) {
    const std::byte *head = b.pages + i * kHead, *body = b.memory + (kCount - i) * kBody;
    CHECK(std::memcmp(raw.data() + i * kCell, head, kHead) == 0 && std::memcmp(raw.data() + i * kCell + kHead, body, kBody) == 0);
    CHECK(std::memcmp(b.pages + (kCount + i) * kHead, head, kHead) == 0);
    CHECK(std::memcmp(b.memory + (4u << 20) + i * kBody, body, kBody) == 0);
  }
  const EngineStats stats = b.engine->stats();
  CHECK(stats.reads == kCount && stats.writes == kCount && stats.read_bytes == kCount * kCell && stats.running == 0 && stats.waiting == 0);
}

// The file ends within the joined operation: those before its end arrive, each of the others has the error to itself.
void test_a_joined_error_is_told_per_request(bool uring) {
  Bench b(uring);
  std::vector<Request> reads;
  for (std::uint32_t i = 0; i < 8; ++i) reads.push_back({0, (16u << 20) - 5 * 4096 + i * 4096, {{b.memory + i * 4096, 4096}}});
  const auto results = b.wait(b.submit(Op::kRead, reads));
  for (std::uint32_t i = 0; i < 8; ++i) CHECK(results[i] == (i < 5 ? 4096 : -ENODATA));
  // One piece of memory that is not there: its neighbours have theirs.
  auto* gone = static_cast<std::byte*>(mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  reads.clear();
  for (std::uint32_t i = 0; i < 8; ++i) reads.push_back({0, i * 4096, {{i == 3 ? gone : b.memory + i * 4096, 4096}}});
  const auto around = b.wait(b.submit(Op::kRead, reads));
  for (std::uint32_t i = 0; i < 8; ++i) CHECK(around[i] == (i == 3 ? -EFAULT : 4096));
  CHECK(b.engine->stats().failed == 4 && b.engine->stats().reads == 12 && b.engine->stats().running == 0);
  munmap(gone, 4096);
}

void test_errors_are_per_request(bool uring) {
  Bench b(uring);
  // The second ends beyond the file, the third begins there; the first and last are well.
  const auto results = b.wait(b.submit(Op::kRead, {{0, 0, {{b.memory, 4096}}},
                                                   {0, (16u << 20) - 2048, {{b.memory + (4096), 4096}}},
                                                   {0, 32u << 20, {{b.memory + (8192), 4096}}},
                                                   {0, 4096, {{b.memory + (12288), 4096}}}}));
  CHECK(results[0] == 4096 && results[1] == -ENODATA && results[2] == -ENODATA && results[3] == 4096);
  // A pipe's read end cannot be written.
  const auto refused = b.wait(b.submit(Op::kWrite, {{1, 0, {{b.memory, 4096}}}}));
  CHECK(refused[0] < 0 && refused[0] != -ETIME);
}

void test_bad_input(bool uring) {
  Bench b(uring, 4, 8);
  auto status = [&b](std::vector<Request> requests) {
    return b.engine->submit(Op::kRead, Lane::kForeground, std::move(requests), kForever).status;
  };
  CHECK(status({}) == SubmitStatus::kBadInput);
  CHECK(status({{2, 0, {{b.memory, 4096}}}}) == SubmitStatus::kBadInput);
  CHECK(status({{0, 0, {}}}) == SubmitStatus::kBadInput);
  CHECK(status({{0, 0, {{nullptr, 4096}}}}) == SubmitStatus::kBadInput);
  CHECK(status({{0, 0, {{b.memory, 0}}}}) == SubmitStatus::kBadInput);
  CHECK(status({{0, 0, {{b.memory, ~0ull - 4000}}}}) == SubmitStatus::kBadInput);
  CHECK(status({{0, ~0ull >> 1, {{b.memory, 4096}}}}) == SubmitStatus::kBadInput);
  CHECK(status({{0, 0, std::vector<iovec>(kPiecesMax + 1, iovec{b.memory, 512})}}) == SubmitStatus::kBadInput);
  CHECK(status(std::vector<Request>(9, Request{0, 0, {{b.memory, 4096}}})) == SubmitStatus::kBusy);
  b.engine->close();
  CHECK(status({{0, 0, {{b.memory, 4096}}}}) == SubmitStatus::kClosed);
}

void test_many_small(bool uring) {
  Bench b(uring, 3, 100'000);
  fill(b.memory, kMemory, 3);
  std::vector<BatchId> batches;
  for (std::uint32_t n = 0; n < 200; ++n) {
    std::vector<Request> requests;
    for (std::uint32_t i = 0; i < 1 + n % 7; ++i) requests.push_back({0, (n * 8ull + i) * 4096, {{b.memory + ((n * 8ull + i) * 4096), 4096}}});
    batches.push_back(b.submit(Op::kWrite, requests, kForever, n % 2 ? Lane::kBackground : Lane::kForeground));
  }
  for (const BatchId batch : batches) {
    for (const auto result : b.wait(batch)) CHECK(result == 4096);
  }
}

void test_deadline(bool uring) {
  Bench b(uring, 1);
  const auto before = kvstore::monotonic_now();
  const auto late = b.wait(b.submit(Op::kRead, {{0, 0, {{b.memory, 4096}}}, {0, 4096, {{b.memory + (4096), 4096}}}}, before - 1));
  CHECK(late[0] == -ETIME && late[1] == -ETIME);
  CHECK(b.engine->stats().late == 2);
}

void test_close_cancels_what_waits(bool uring) {
  Bench b(uring, 1, 4096);
  std::vector<Request> requests(64, Request{0, 0, {{b.memory, 4u << 20}}});
  const BatchId batch = b.submit(Op::kRead, requests);
  b.engine->close();
  CHECK(b.is_done(batch));
  std::size_t cancelled = 0;
  for (const auto result : b.seen[batch]) {
    CHECK(result == -ECANCELED || result == (4 << 20));
    cancelled += result == -ECANCELED;
  }
  CHECK(cancelled > 0);
}

void test_cancel(bool uring) {
  Bench b(uring, 1, 4096);
  std::vector<Request> requests(64, Request{0, 0, {{b.memory, 4u << 20}}});
  const BatchId first = b.submit(Op::kRead, requests);
  const BatchId second = b.submit(Op::kRead, {{0, 0, {{b.memory, 4096}}}});
  b.engine->cancel(first);
  b.engine->cancel(12345);  // unknown
  std::size_t cancelled = 0;
  for (const auto result : b.wait(first)) cancelled += result == -ECANCELED;
  CHECK(cancelled > 0);
  CHECK(b.wait(second)[0] == 4096);
}

// io_uring reads from a pipe wait in the kernel until there is something: a stand-in for a device that hangs.
void test_hung_device() {
  Bench b(true, 2);
  const BatchId stuck = b.submit(Op::kRead, {{1, 0, {{b.memory, 4096}}}}, kvstore::monotonic_now() + 50'000'000);
  const auto results = b.wait(stuck);  // pollable files can be called back, so the answer is prompt
  CHECK(results[0] == -ETIME);
  const BatchId again = b.submit(Op::kRead, {{1, 0, {{b.memory, 4096}}}});
  b.engine->cancel(again);
  CHECK(b.wait(again)[0] == -ECANCELED);
  // After the answer the memory is quiet: what arrives later is not read into it.
  std::memset(b.memory, 7, 4096);
  CHECK(write(b.pipe_fds[1], "late", 4) == 4);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(b.memory[0] == std::byte{7});
}

void test_short_reads_are_continued() {
  Bench b(true, 2, 1024, false);  // a pipe has no places, so its pieces must be read in turn
  const BatchId batch = b.submit(Op::kRead, {{1, 0, {{b.memory, 3000}, {b.memory + (8192), 2000}}}});
  std::string text(5000, 'x');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>('a' + i % 23);
  for (std::size_t at = 0; at < 5000; at += 1000) {
    CHECK(write(b.pipe_fds[1], text.data() + at, 1000) == 1000);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  CHECK(b.wait(batch)[0] == 5000);
  CHECK(std::memcmp(b.memory, text.data(), 3000) == 0);
  CHECK(std::memcmp(b.memory + 8192, text.data() + 3000, 2000) == 0);
  CHECK(b.engine->stats().continued > 0);
}

void test_advance() {
  char memory[100];
  iovec pieces[] = {{memory, 10}, {memory + 20, 30}};
  Rest rest{1000, pieces};
  CHECK(!advance(rest, 4));
  CHECK(rest.pieces.size() == 2 && rest.pieces[0].iov_base == memory + 4 && rest.pieces[0].iov_len == 6);
  CHECK(!advance(rest, 6));
  CHECK(rest.pieces.size() == 1 && rest.pieces[0].iov_base == memory + 20 && rest.offset == 1010);
  CHECK(!advance(rest, 29));
  CHECK(advance(rest, 1));
}

void test_both(bool uring) {
  test_write_then_read(uring, true);
  test_write_then_read(uring, false);
  test_joined(uring, true);
  test_joined(uring, false);
  test_a_joined_error_is_told_per_request(uring);
  test_errors_are_per_request(uring);
  test_bad_input(uring);
  test_many_small(uring);
  test_deadline(uring);
  test_cancel(uring);
  test_close_cancels_what_waits(uring);
}

}  // namespace

int main() {
  test_advance();
  test_both(false);
  if (const auto why = uring_refused()) {
    std::printf("io_uring skipped: %s\n", why->c_str());
    return kvstore::test::finish();
  }
  test_both(true);
  test_hung_device();
  test_short_reads_are_continued();
  return kvstore::test::finish();
}
