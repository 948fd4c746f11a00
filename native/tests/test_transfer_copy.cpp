// Grants are seen across mappings, jobs copy and hash exactly, and a stopped job is reported only when it is quiet.
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <thread>

#include "base/clock.hpp"
#include "base/checksum.hpp"
#include "check.hpp"
#include "transfer/copy_pool.hpp"

using namespace kvstore;
using namespace kvstore::transfer;
using kvstore::test::throws;

namespace {

constexpr std::uint32_t kSlots = 16;
constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

std::byte* pages(std::size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) std::abort();
  return static_cast<std::byte*>(p);
}

struct Fixture {
  std::size_t bytes = 8 << 20;
  std::byte* source = pages(bytes);
  std::byte* target = pages(bytes);
  std::byte* table_page = pages(4096);
  GrantTable table{table_page, 4096, kSlots};
  std::shared_ptr<Peer> peer = std::make_shared<Peer>();

  Fixture() {
    for (std::size_t i = 0; i < bytes; ++i) source[i] = static_cast<std::byte>((i * 2654435761u) >> 13);
    peer->table = table_page;
    peer->table_bytes = 4096;
    peer->activity = pages(4096);
    peer->activity_bytes = 4096;
    peer->quiet_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  }
  std::shared_ptr<RemoteSpan> grant(std::uint32_t slot, std::uint32_t generation, std::vector<Range> ranges,
                                    std::int64_t expiry = kNever) {
    table.issue(slot, generation, expiry);
    return std::make_shared<RemoteSpan>(peer, slot, generation, source, bytes, true, false, std::move(ranges));
  }
  Spans spans(std::shared_ptr<RemoteSpan> remote) { return {Direction::kRead, {{target, bytes, true}}, {std::move(remote)}}; }
};

void test_grants() {
  Fixture f;
  const auto span = f.grant(3, 1, {{4096, 4096}, {8192, 100}, {65536, 10}}, monotonic_now() + 3'600'000'000'000);
  CHECK(span->covers(4096, 4196, false) == Reason::kNone);  // ranges that touch count as one
  CHECK(span->covers(4096, 4197, false) == Reason::kOutOfBounds);
  CHECK(span->covers(4095, 1, false) == Reason::kOutOfBounds);
  CHECK(span->covers(0, 0, false) == Reason::kOutOfBounds);
  CHECK(span->covers(65546, 0, false) == Reason::kNone);
  CHECK(span->covers(65540, std::numeric_limits<std::uint64_t>::max(), false) == Reason::kOutOfBounds);
  CHECK(span->covers(4096, 1, true) == Reason::kNotAllowed);
  CHECK(span->enter(monotonic_now()) == Reason::kNone);
  CHECK(touches(f.peer->activity, 4096, 3) == 1);
  CHECK(span->enter(kNever) == Reason::kExpired);
  f.table.end(3);
  CHECK(span->enter(monotonic_now()) == Reason::kRevoked);
  std::uint64_t signal = 0;
  CHECK(read(f.peer->quiet_fd, &signal, 8) < 0);  // somebody still touches it
  span->leave();
  CHECK(touches(f.peer->activity, 4096, 3) == 0);
  CHECK(read(f.peer->quiet_fd, &signal, 8) == 8);
  f.table.issue(3, 2, kNever);
  CHECK(span->enter(0) == Reason::kRevoked);  // of an earlier generation
  CHECK(throws<std::invalid_argument>([&] { f.table.issue(3, 2, kNever); }));
  CHECK(throws<std::invalid_argument>([&] { f.grant(4, 1, {{0, f.bytes + 1}}); }));
  CHECK(throws<std::invalid_argument>([&] { f.grant(5, 1, {{100, 10}, {105, 10}}); }));
  CHECK(throws<std::invalid_argument>([&] { f.grant(6, 1, {{std::numeric_limits<std::uint64_t>::max() - 1, 4}}); }));
  CHECK(throws<std::out_of_range>([&] { f.table.issue(kSlots, 1, kNever); }));
  f.peer->gone = true;
  CHECK(f.grant(7, 1, {{0, 10}})->enter(0) == Reason::kPeerGone);
}

void test_hashed_copy() {
  Fixture f;
  // Two odd rows, two parts whose border lies inside the first row, cut in two slices at a leaf of the second part.
  const std::uint64_t first = 10'001, second = 20'000, part = 5'001, cut = part + 2 * kLeafBytes;
  std::vector<Row> rows{{0, 0, 3, 77, cut}, {0, 0, 3 + cut, 77 + cut, first + second - cut}};
  CopyJob job(f.spans(f.grant(0, 1, {{0, f.bytes}})), Layout(rows, {{0, 0, 1, 0}, {cut, 1, 2, 1}}, {part, first + second - part}), kNever);
  CHECK(job.rails() == 2);
  CHECK(job.advance(1, 10));
  CHECK(job.advance(0, 10));
  job.finish();
  CHECK(job.layout().whole());
  CHECK(std::memcmp(f.target + 3, f.source + 77, first + second) == 0);
  CHECK(job.layout().checksums()[0] == part_checksum(f.source + 77, part));
  CHECK(job.layout().checksums()[1] == part_checksum(f.source + 77 + part, first + second - part));
  CHECK(job.layout().leaves()[0] == xxh3(f.source + 77, kLeafBytes));
  CHECK(f.target[2] == std::byte{0} && f.target[3 + first + second] == std::byte{0});
}

void test_refusals() {
  Fixture f;
  const auto span = f.grant(1, 1, {{0, 8192}});
  const auto make = [&](std::vector<Row> rows, std::vector<Slice> slices, std::vector<std::uint64_t> parts) {
    CopyJob job(f.spans(span), Layout(std::move(rows), std::move(slices), parts), kNever);
  };
  CHECK(throws<std::invalid_argument>([&] { make({{0, 0, 0, 4096, 4097}}, {{0, 0, 1, 0}}, {}); }));         // beyond the grant
  CHECK(throws<std::invalid_argument>([&] { make({{0, 0, f.bytes, 0, 1}}, {{0, 0, 1, 0}}, {}); }));         // beyond the target
  CHECK(throws<std::invalid_argument>([&] { make({{1, 0, 0, 0, 1}}, {{0, 0, 1, 0}}, {}); }));               // no such span
  CHECK(throws<std::invalid_argument>([&] { make({{0, 0, 0, 0, 10}}, {}, {}); }));                          // not covered
  CHECK(throws<std::invalid_argument>([&] { make({{0, 0, 0, 0, 10}}, {{1, 0, 1, 0}}, {}); }));              // position
  CHECK(throws<std::invalid_argument>([&] { make({{0, 0, 0, 0, 10}}, {{0, 0, 1, 0}}, {9}); }));             // parts
  CHECK(throws<std::invalid_argument>([&] { make({{0, 0, 0, 0, 9}, {0, 0, 9, 9, 1}}, {{0, 0, 1, 0}, {9, 1, 2, 0}}, {10}); }));
  // A revoked grant fails its slices only, and names them.
  const auto other = f.grant(2, 1, {{0, 8192}});
  Spans both{Direction::kRead, {{f.target, f.bytes, true}}, {span, other}};
  CopyJob job(both, Layout({{0, 0, 0, 0, 100}, {0, 1, 200, 0, 100}}, {{0, 0, 1, 0}, {100, 1, 2, 0}}, {100, 100}), kNever);
  f.table.end(1);
  CHECK(job.advance(0, 9));
  job.finish();
  CHECK(!job.layout().whole());
  CHECK(job.layout().states()[0] == static_cast<std::uint8_t>(Reason::kRevoked));
  CHECK(job.layout().states()[1] == static_cast<std::uint8_t>(Reason::kLanded));
  CHECK(job.layout().checksums()[0] == 0 && job.layout().checksums()[1] == part_checksum(f.source, 100));
  CopyJob late(f.spans(other), Layout({{0, 0, 0, 0, 100}}, {{0, 0, 1, 0}}, {}), monotonic_now() - 1);
  CHECK(late.advance(0, 1));
  late.finish();
  CHECK(late.layout().states()[0] == static_cast<std::uint8_t>(Reason::kLate));
}

// Hundreds of jobs, stopped at random moments: after a job is reported its target is overwritten and must stay so.
void test_pool_is_quiet() {
  Fixture f;
  CopyPool pool(2, 1);
  const auto span = f.grant(0, 1, {{0, f.bytes}});
  const std::size_t slice = 64 << 10, slices = 16, jobs = 8;
  for (int round = 0; round < 40; ++round) {
    for (std::uint64_t j = 0; j < jobs; ++j) {
      std::vector<Row> rows;
      std::vector<Slice> cut;
      for (std::uint32_t i = 0; i < slices; ++i) {
        const std::uint64_t at = j * (slices * slice) + i * slice;
        rows.push_back({0, 0, at, at, slice});
        cut.push_back({i * slice, i, i + 1, i % 2});
      }
      pool.submit(j, std::make_shared<CopyJob>(f.spans(span), Layout(rows, cut, {}), kNever));
    }
    for (std::uint64_t j = 0; j < jobs; j += 2) pool.stop(j, Reason::kCancelled);
    std::vector<std::uint64_t> back;
    while (back.size() < jobs) {
      pollfd wait{pool.fd(), POLLIN, 0};
      CHECK(poll(&wait, 1, 10'000) == 1);
      for (const std::uint64_t j : pool.finished()) {
        std::memset(f.target + j * (slices * slice), 0xa5, slices * slice);
        back.push_back(j);
      }
    }
    std::sort(back.begin(), back.end());
    CHECK(std::adjacent_find(back.begin(), back.end()) == back.end());
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    CHECK(std::all_of(f.target, f.target + jobs * slices * slice, [](std::byte b) { return b == std::byte{0xa5}; }));
  }
  CHECK(pool.close(std::chrono::seconds(10)));
  CHECK(throws<std::logic_error>([&] {
    pool.submit(1, std::make_shared<CopyJob>(f.spans(span), Layout({}, {}, {}), kNever));
  }));
}

}  // namespace

int main() {
  test_grants();
  test_hashed_copy();
  test_refusals();
  test_pool_is_quiet();
  return kvstore::test::finish();
}
