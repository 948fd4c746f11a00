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
  ledger.finish(*b, 4096);
  CHECK(ledger.reap().empty());
  ledger.finish(*a, -EIO);
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
  ledger.finish(*task, 4096);
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
  ledger.finish(*task, 4096);
  const auto done = ledger.reap();
  CHECK(done.size() == 1 && done[0].batch == batch && done[0].results[2] == -ECANCELED && ledger.idle());
}

}  // namespace

int main() {
  test_whole_batches();
  test_deadline_answers_what_waits_and_leaves_what_runs();
  test_lanes();
  test_limit_and_close();
  return kvstore::test::finish();
}
