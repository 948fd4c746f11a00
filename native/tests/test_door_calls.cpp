// Calls that a door hands to Python: late answers are nobody's, and many that are submitted at once all come, in order and whole.
#include <thread>

#include "check.hpp"
#include "door_rig.hpp"

using namespace kvstore;
using namespace kvstore::test;

namespace {

// An answer that comes when nobody waits any more is passed over, and the next call gets its own.
void late_answers(bool by_tcp) {
  Rig rig;
  rig.by_tcp = by_tcp;
  auto session = rig.connect();
  CallOperation first(1, {});
  CHECK(session->run(first, in_ms(50)).status == Status::kLate);
  session->submit(1, std::make_unique<CallOperation>(2, std::span<const std::uint8_t>()), in_ms(4'000));
  const auto asked = requests_of(rig, 2);
  CHECK(asked.size() == 2);
  session->cancel(1);
  const auto done = completions(*session, 1);
  CHECK(done.size() == 1 && done[0].status == Status::kCancelled);
  const std::vector<std::uint8_t> late{1, 2, 3}, timely{4, 5};
  for (const Request& request : asked) CHECK(rig.door->answer(request.owner, request.request, late));
  std::thread node([&] {
    for (const Request& request : requests_of(rig, 1)) rig.door->answer(request.owner, request.request, timely);
  });
  CallOperation third(3, {});
  const Result answered = session->run(third, in_ms(4'000));
  node.join();
  CHECK(answered.status == Status::kOk && answered.body == timely);
}

// Calls that are submitted faster than the node takes them: what a socket has no room for follows in order, and whole.
void small_calls_in_a_row(bool by_tcp) {
  constexpr std::uint64_t kCalls = 400;
  DoorConfig doors;
  doors.requests_per_connection_max = doors.requests_max = kCalls;
  Rig rig(64ull << 20, {}, doors);
  rig.by_tcp = by_tcp;
  auto session = rig.connect();
  const auto body_of = [](std::uint64_t i) { return std::vector<std::uint8_t>(60'000 - i, static_cast<std::uint8_t>(i)); };
  for (std::uint64_t i = 0; i < kCalls; ++i) {
    const auto body = body_of(i);
    auto call = std::make_unique<CallOperation>(static_cast<std::uint32_t>(i), body);
    CHECK(call->small());
    session->submit(i, std::move(call), in_ms(9'000));
  }
  const auto asked = requests_of(rig, kCalls);
  CHECK(asked.size() == kCalls);
  for (const Request& request : asked) {
    CHECK(request.body == body_of(request.method));
    CHECK(rig.door->answer(request.owner, request.request, std::vector<std::uint8_t>(8, static_cast<std::uint8_t>(request.method))));
  }
  const auto done = completions(*session, kCalls);
  CHECK(done.size() == kCalls);
  for (const Result& one : done)
    CHECK(one.status == Status::kOk && one.body == std::vector<std::uint8_t>(8, static_cast<std::uint8_t>(one.token)));
}

}  // namespace

int main() {
  for (const bool by_tcp : {false, true}) {
    late_answers(by_tcp);
    small_calls_in_a_row(by_tcp);
  }
  return test::finish();
}
