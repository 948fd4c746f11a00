// Whatever a peer sends over TCP after its greeting: no byte outside of what is granted is touched, no job is left without an end,
// and nothing of ours is touched once a job has ended. The first byte says what we have asked for; bytes come a few at a time.
#include <cstdlib>

#include "../tests/tcp_rig.hpp"

using namespace kvstore;
using namespace kvstore::test;

namespace {

constexpr std::size_t kGuard = 512, kGranted = 2'048;

std::shared_ptr<Job> asked(std::uint64_t token, Direction direction, std::span<std::uint8_t> memory) {
  const LocalSpan local{reinterpret_cast<std::byte*>(memory.data()), memory.size(), true};
  std::vector<transfer::Row> rows{{0, 0, 100, 0, 300}, {0, 0, 600, 5, 7}, {0, 0, 700, 9, 300}};
  std::vector<transfer::Slice> slices{{0, 0, 2, 0}, {307, 2, 3, 0}};
  std::vector<std::uint64_t> parts;
  if (direction == Direction::kRead) parts = {307, 300};
  return std::make_shared<Job>(token, direction, std::vector{local}, std::vector{Access{}}, Layout(rows, slices, parts));
}

void must(bool good) {
  if (!good) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const std::uint8_t choice = data[0];
  auto in = std::make_shared<Pipe>(), out = std::make_shared<Pipe>();
  std::vector<std::uint8_t> served(2 * kGuard + kGranted, 0x11), ours(1'100, 0x22);
  Side side(4);
  // As an attacker who has been given these: read and write of the middle, read of its end.
  const auto grant = side.grant(0, served, {{kGuard, kGranted}});
  const auto reader = side.grant(1, served, {{kGuard + kGranted, 16}}, false);
  side.connect(in, out, 1 + data[1] * 16u);
  std::vector<std::shared_ptr<Job>> jobs;
  for (int i = 0; i < (choice & 3); ++i) {
    jobs.push_back(asked(static_cast<std::uint64_t>(i) + 1, (choice >> (2 + i) & 1) != 0 ? Direction::kRead : Direction::kWrite, ours));
    for (std::size_t slice = 0; slice < 2; ++slice) side.connection->ask(jobs.back(), slice, 0);
  }
  Hello hello;
  hello.requests_max = 3;
  put_hello(in->bytes, hello);
  in->bytes.insert(in->bytes.end(), data + 2, data + size);
  for (int i = 0; i < 400 && side.turn(); ++i) {
    out->bytes.clear();
    out->taken = 0;
    if (i == 20 && (choice & 0x40) != 0) {
      side.shared.grants.end(0);
      side.connection->detach_ended();
      must(grant->touching == 0);
    }
    if (i == 40 && (choice & 0x80) != 0 && !jobs.empty()) {
      jobs[0]->stop(Reason::kCancelled);
      side.connection->withdraw(*jobs[0]);
    }
  }
  if (side.connection) side.connection->end("the test is over");
  side.connection.reset();
  for (std::size_t i = 0; i < jobs.size(); ++i) must(side.finished(i + 1));
  must(grant->touching == 0 && reader->touching == 0);
  for (std::size_t i = 0; i < kGuard; ++i) must(served[i] == 0x11 && served[kGuard + kGranted + i] == 0x11);
  for (std::size_t i = 0; i < ours.size(); ++i) must(ours[i] == 0x22 || (i >= 100 && i < 400) || (i >= 600 && i < 607) || (i >= 700 && i < 1'000));
  return 0;
}
