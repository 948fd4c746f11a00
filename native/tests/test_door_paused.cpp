// A pause that begins in the middle of a turn of the door's thread: what is sent during it is not answered by what was allowed before.
#include <atomic>
#include <thread>

#include "check.hpp"
#include "directory/claims_desk.hpp"
#include "door_rig.hpp"

using namespace kvstore;
using namespace kvstore::test;

namespace {

constexpr std::uint32_t kMethod = 7;
constexpr Nanos kMinute = 60'000'000'000;
constexpr useconds_t kAMoment = 30'000;

// Claims that keep the door's thread, when it is asked for them, until they are let go.
class Kept {
 public:
  Kept() {
    desk_->answer_until(monotonic_now() + kMinute, 0, 4);
    holder_ = std::thread([this] {
      desk_->with([this](ClaimTable&) {
        keeps_ = true;
        while (!gone_) usleep(100);
      });
    });
    while (!keeps_) usleep(100);
  }
  ~Kept() { let_go(); }
  void let_go() {
    gone_ = true;
    if (holder_.joinable()) holder_.join();
  }
  // Asked over this session; the door's thread comes to it in a moment.
  void ask(Rig& rig, Session& session) {
    rig.door->answer_locates(session.info().session, kMethod, desk_);
    std::vector<std::uint8_t> question(34);
    question[0] = 0x0a;
    question[1] = 32;
    session.submit(1, std::make_unique<CallOperation>(kMethod, question), in_ms(30'000));
    usleep(kAMoment);
  }

 private:
  std::shared_ptr<ClaimsDesk> desk_ = std::make_shared<ClaimsDesk>(ClaimConfig{1 << 12, 1});
  std::atomic<bool> keeps_{false}, gone_{false};
  std::thread holder_;
};

// noticed: Python has seen the pause by then, taken back what it allowed, and moved the time on.
void a_pause_within_a_turn(bool noticed) {
  Rig rig(64ull << 20, {}, trusting());
  const NsId ns = rig.core->open_namespace(spec_of(1, {4096}));
  auto before = rig.connect(ns), first = rig.connect(ns), second = rig.connect(ns);
  const auto keys = chain_of(1, 2);
  CHECK(put(*second, ns, keys, Bytes(2, 4096).whole()).blocks == 2);
  rig.door->trust_until(monotonic_now() + kMinute);
  const auto look = [&](std::uint64_t token) {
    second->submit(token, std::make_unique<LookupOperation>(ns, keys, std::vector<Need>{}), in_ms(30'000));
    usleep(kAMoment);
  };
  Kept one, other;
  one.ask(rig, *before);  // so that the next two are there together, and are one turn
  other.ask(rig, *first);
  look(1);
  one.let_go();
  usleep(kAMoment);
  if (noticed) rig.door->disallow(ns);
  rig.door->trust_until(noticed ? monotonic_now() + kMinute : monotonic_now() - 1);
  look(2);
  other.let_go();
  const std::vector<Result> done = completions(*second, 2);
  CHECK(done.size() == 2);
  for (const Result& result : done)
    if (result.token == 2) CHECK(result.status == Status::kStaleNamespace);
  CHECK(completions(*before, 1).size() == 1 && completions(*first, 1).size() == 1);
}

}  // namespace

int main() {
  a_pause_within_a_turn(false);
  a_pause_within_a_turn(true);
  return test::finish();
}
