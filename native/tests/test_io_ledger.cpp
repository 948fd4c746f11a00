// The books of an engine, with a clock that is a number.
#include <cerrno>

#include "check.hpp"
#include "io/ledger.hpp"

using namespace kvstore::io;

namespace {

std::byte memory[65536];

EngineConfig config(std::uint32_t pending_max = 1000) {
  EngineConfig out;
  out.files = {0};
  out.regions = {{memory, sizeof memory}};
  out.pending_max = pending_max;
  return out;
}

std::vector<Request> requests(std::size_t count) { return std::vector<Request>(count, Request{0, 0, {{memory, 4096}}}); }

void test_whole_batches() {
  Ledger ledger(config());
  const BatchId batch = ledger.submit(Op::kRead, Lane::kForeground, requests(2), 100).batch;
  const auto a = ledger.take(0);
  const auto b = ledger.take(0);
  CHECK(a && b && !ledger.take(0));
  ledger.finish(*b, 0, 4096);
  CHECK(ledger.reap().empty());
  ledger.finish(*a, -EIO, 0);
  const auto done = ledger.reap();
  CHECK(done.size() == 1 && done[0].batch == batch);
  CHECK(done[0].results[0] == -EIO && done[0].results[1] == 4096);
  CHECK(ledger.idle() && ledger.stats().failed == 1 && ledger.stats().reads == 1);
}

void test_deadline_answers_what_waits_and_leaves_what_runs() {
  Ledger ledger(config());
  const BatchId running = ledger.submit(Op::kRead, Lane::kForeground, requests(2), 100).batch;
  const BatchId waiting = ledger.submit(Op::kRead, Lane::kForeground, requests(1), 50).batch;
  const auto task = ledger.take(0);
  CHECK(*ledger.settle_late(49) == 50);
  CHECK(*ledger.settle_late(50) == 100);
  auto done = ledger.reap();
  CHECK(done.size() == 1 && done[0].batch == waiting && done[0].results[0] == -ETIME);
  CHECK(!ledger.settle_late(100));
  CHECK(ledger.stop_of(running) == -ETIME);
  CHECK(ledger.reap().empty());  // the kernel may still touch its memory
  CHECK(!ledger.take(0));        // its other request never starts
  ledger.finish(*task, 0, 4096);
  done = ledger.reap();
  CHECK(done.size() == 1 && done[0].results[0] == 4096 && done[0].results[1] == -ETIME);
}

void test_lanes() {
  Ledger ledger(config());
  const BatchId background = ledger.submit(Op::kWrite, Lane::kBackground, requests(40), 1000).batch;
  ledger.submit(Op::kRead, Lane::kForeground, requests(40), 1000);
  std::uint32_t background_starts = 0;
  for (std::uint32_t i = 0; i < 2 * kBackgroundShare; ++i) background_starts += ledger.take(0)->batch == background;
  CHECK(background_starts == 2);  // it moves, and waits for the others
}

void test_limit_and_close() {
  Ledger ledger(config(3));
  const BatchId batch = ledger.submit(Op::kRead, Lane::kForeground, requests(3), 100).batch;
  CHECK(ledger.submit(Op::kRead, Lane::kForeground, requests(1), 100).status == SubmitStatus::kBusy);
  const auto task = ledger.take(0);
  CHECK(ledger.submit(Op::kRead, Lane::kForeground, requests(1), 100).status == SubmitStatus::kOk);
  ledger.close();
  CHECK(ledger.submit(Op::kRead, Lane::kForeground, requests(1), 100).status == SubmitStatus::kClosed);
  CHECK(!ledger.take(0) && !ledger.idle());
  CHECK(ledger.reap().size() == 1);
  ledger.finish(*task, 0, 4096);
  const auto done = ledger.reap();
  CHECK(done.size() == 1 && done[0].batch == batch && done[0].results[2] == -ECANCELED && ledger.idle());
}

Request at(std::uint64_t offset, std::uint64_t bytes, std::uint32_t file = 0) { return {file, offset, {{memory, bytes}}}; }

std::vector<Span> spans(const std::vector<Request>& requests) { return join(requests).operations; }

void test_plan() {
  const std::vector<Request> row{at(8192, 4096), at(4096, 4096), at(0, 4096)};  // as cells are taken that were given back
  const Plan plan = join(row);
  CHECK((plan.order == std::vector<std::uint32_t>{2, 1, 0}));
  CHECK((plan.operations == std::vector<Span>{{0, 3}}));
  CHECK((spans({at(65536, 4096), at(0, 4096), at(4096, 4096)}) == std::vector<Span>{{2, 1}, {0, 2}}));  // as submitted
  CHECK((spans({at(0, 4096), at(8192, 4096)}) == std::vector<Span>{{0, 1}, {1, 1}}));           // a hole
  CHECK((spans({at(0, 4096), at(4096, 4096, 1)}) == std::vector<Span>{{0, 1}, {1, 1}}));        // another file
  CHECK((spans({at(0, 4096), at(0, 4096)}) == std::vector<Span>{{0, 1}, {1, 1}}));              // the same place twice
  CHECK((spans({at(0, 8192), at(4096, 4096)}) == std::vector<Span>{{0, 1}, {1, 1}}));           // one over another
  CHECK((spans({at(0, 512 << 10), at(512 << 10, 512 << 10), at(1 << 20, 4096)}) == std::vector<Span>{{0, 2}, {2, 1}}));
  CHECK((spans({at(0, 2 << 20), at(2 << 20, 4096)}) == std::vector<Span>{{0, 1}, {1, 1}}));     // large ones go alone
  std::vector<Request> many;
  for (std::uint64_t i = 0; i < kJoinedPiecesMax; ++i) many.push_back({0, i * 8192, {{memory, 4096}, {memory, 4096}}});
  CHECK((spans(many) == std::vector<Span>{{0, kJoinedPiecesMax / 2}, {kJoinedPiecesMax / 2, kJoinedPiecesMax / 2}}));
}

std::vector<Request> row(std::uint32_t count) {
  std::vector<Request> out;
  for (std::uint32_t i = 0; i < count; ++i) out.push_back({0, i * 4096ull, {{memory + i * 4096, 4096}}});
  return out;
}

// It fails behind the first request: that one is done, and the others are tried one by one.
void test_a_joined_operation() {
  Ledger ledger(config());
  ledger.submit(Op::kWrite, Lane::kForeground, row(4), 100);
  const auto all = ledger.take(0);
  CHECK(all && all->requests.count == 4 && all->bytes == 4 * 4096 && all->pieces.size() == 4 && !ledger.take(0));
  CHECK(ledger.stats().running == 4);
  ledger.finish(*all, -EIO, 4096 + 100);
  CHECK(ledger.stats().running == 0 && ledger.stats().waiting == 3 && ledger.stats().failed == 0);
  for (std::uint32_t i = 1; i < 4; ++i) {
    const auto one = ledger.take(0);
    CHECK(one && one->requests.count == 1 && one->offset == i * 4096 && one->pieces.all()[0].iov_base == memory + i * 4096);
    ledger.finish(*one, i == 2 ? -EIO : 0, i == 2 ? 0 : 4096);
  }
  const auto done = ledger.reap();
  CHECK(done.size() == 1 && (done[0].results == std::vector<std::int64_t>{4096, 4096, -EIO, 4096}));
  CHECK(ledger.stats().operations == 4);
  CHECK(ledger.idle() && ledger.stats().failed == 1 && ledger.stats().writes == 3 && ledger.stats().written_bytes == 3 * 4096);
}

// What is stopped is not tried again; what had been moved has been moved.
void test_a_joined_operation_that_is_stopped() {
  Ledger ledger(config());
  const BatchId batch = ledger.submit(Op::kRead, Lane::kForeground, row(3), 100).batch;
  const auto all = ledger.take(0);
  ledger.cancel(batch);
  CHECK(ledger.reap().empty());
  ledger.finish(*all, -ECANCELED, 4096);
  const auto done = ledger.reap();
  CHECK(done.size() == 1 && (done[0].results == std::vector<std::int64_t>{4096, -ECANCELED, -ECANCELED}));
  CHECK(ledger.idle() && ledger.stats().cancelled == 2 && ledger.stats().reads == 1);
}

}  // namespace

int main() {
  test_whole_batches();
  test_deadline_answers_what_waits_and_leaves_what_runs();
  test_lanes();
  test_limit_and_close();
  test_plan();
  test_a_joined_operation();
  test_a_joined_operation_that_is_stopped();
  return kvstore::test::finish();
}
