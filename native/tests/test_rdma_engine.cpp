// The engine's thread over devices that do as they are told: what is posted and how much of it, what comes of each way in which a request
// ends, and that nothing is answered before all of it is back (law 4).
#include <algorithm>

#include "rdma_rig.hpp"

using namespace kvstore;
using namespace kvstore::test;

namespace {

void requests_are_what_was_asked_for() {
  Rig rig;
  rig.lane(0);
  const auto job = rig.submit(3);
  CHECK(rig.out(3));
  const std::vector<Request> out = rig.device().out(0);
  for (std::size_t i = 0; i < out.size(); ++i) {
    const Request& request = out[i];
    CHECK(request.opcode == IBV_WR_RDMA_READ && request.flags == IBV_SEND_SIGNALED && request.bytes == kRowBytes);
    CHECK(request.local == (std::uint64_t{1} << 40) + i * 2 * kRowBytes && request.remote == kBase + i * 2 * kRowBytes);
    CHECK(request.local_key == 100 && request.remote_key == 200);
  }
  rig.device().complete(0, 1);  // in any order
  rig.device().complete(0, 0);
  CHECK(!rig.is_finished(job));
  rig.device().complete(0, 0);
  CHECK(rig.finished(job) && job->layout().whole() && count(job, Reason::kLanded) == 3);
  CHECK(rig.engine.stats().requests == 3 && rig.engine.stats().bytes == 3 * kRowBytes);
}

void bytes_land_and_are_hashed() {
  Rig rig;
  rig.device().move_bytes();
  rig.lane(0);
  std::vector<std::byte> here(5 * 2 * kRowBytes + 1), there(here.size());
  for (std::size_t i = 0; i < there.size(); ++i) there[i] = static_cast<std::byte>(i * 7 + i / 4096);
  const auto base = reinterpret_cast<std::uint64_t>(there.data());
  const auto reading = rig.job(5, kAccess, Direction::kRead, here.data(), base, true);
  rig.engine.submit(reading, kPeer);
  CHECK(rig.out(5));
  for (std::size_t left = 5; left > 0; --left) rig.device().complete(0, left - 1);
  CHECK(rig.finished(reading) && reading->layout().whole());
  for (std::size_t row = 0; row < 5; ++row) {
    CHECK(std::equal(&there[row * 2 * kRowBytes], &there[row * 2 * kRowBytes + kRowBytes], &here[row * 2 * kRowBytes]));
    CHECK(reading->layout().leaves()[row] == xxh3(&there[row * 2 * kRowBytes], kRowBytes));
  }
  std::ranges::fill(here, std::byte{0x5A});
  const auto writing = rig.job(5, kAccess, Direction::kWrite, here.data(), base);
  rig.engine.submit(writing, kPeer);
  CHECK(rig.out(5) && rig.device().out(0)[0].opcode == IBV_WR_RDMA_WRITE);
  rig.device().complete_all(0);
  CHECK(rig.finished(writing) && there[8 * kRowBytes + 1] == std::byte{0x5A} && there[kRowBytes] != std::byte{0x5A});
}

void posts_in_chains_within_the_window() {
  Rig rig({.window = 20});
  rig.lane(0);
  const auto job = rig.submit(50);
  CHECK(rig.out(20));
  rig.settle();
  CHECK(rig.device().out(0).size() == 20 && rig.device().chains() == std::vector<std::size_t>({16, 4}));
  std::size_t landed = 0;
  while (landed < 50) {
    const std::size_t out = std::min<std::size_t>(20, 50 - landed);
    CHECK(rig.out(out));
    rig.device().complete_all(0);
    landed += out;
  }
  CHECK(rig.finished(job) && job->layout().whole());
  CHECK(std::ranges::max(rig.device().chains()) <= 16);
}

// A queue that is shorter than we were told: what it took comes back by its error, what it did not is asked for elsewhere at once.
void a_queue_that_is_full() {
  Rig rig({.window = 8, .depth = 3});
  rig.lane(0);
  const auto job = rig.submit(8);
  std::uint32_t status = 0;
  CHECK(rig.await(EventKind::kLaneDown, Rig::lane_of(0), &status) && status == IBV_WC_GENERAL_ERR);
  CHECK(!rig.is_finished(job) && rig.device().broken(0));
  CHECK(rig.engine.stats().again == 8);
  rig.engine.give_up(kPeer, false);
  CHECK(rig.finished(job) && count(job, Reason::kPeerGone) == 8);
}

void a_queue_that_takes_nothing() {
  Rig rig({.window = 8, .depth = 0});
  rig.lane(0);
  const auto job = rig.submit(1);
  CHECK(rig.await(EventKind::kLaneDown, Rig::lane_of(0)) && !rig.is_finished(job));
}

// Each way in which a path fails: asked for again over another lane, and given up after so many lanes.
void what_a_failed_path_comes_to() {
  for (const ibv_wc_status status :
       {IBV_WC_LOC_LEN_ERR, IBV_WC_LOC_QP_OP_ERR, IBV_WC_LOC_PROT_ERR, IBV_WC_WR_FLUSH_ERR, IBV_WC_BAD_RESP_ERR, IBV_WC_LOC_ACCESS_ERR,
        IBV_WC_REM_INV_REQ_ERR, IBV_WC_REM_OP_ERR, IBV_WC_RETRY_EXC_ERR, IBV_WC_RNR_RETRY_EXC_ERR, IBV_WC_REM_ABORT_ERR, IBV_WC_FATAL_ERR,
        IBV_WC_RESP_TIMEOUT_ERR, IBV_WC_GENERAL_ERR}) {
    Rig rig({.tries_max = 2});
    rig.lane(0);
    const auto job = rig.submit(3);
    CHECK(rig.out(3));
    rig.lane(1);
    rig.device().complete(0, 0);
    rig.device().complete(0, 0, status);  // the third is flushed
    std::uint32_t told = 0;
    CHECK(rig.await(EventKind::kLaneDown, Rig::lane_of(0), &told) && told == status);
    CHECK(rig.out(2, 1) && rig.engine.stats().again == 2 && !rig.is_finished(job));
    rig.device().complete(1, 0, status);
    CHECK(rig.finished(job) && count(job, Reason::kLanded) == 1 && count(job, Reason::kPeerGone) == 2);
    CHECK(rig.await(EventKind::kLaneDown, Rig::lane_of(1)) && rig.engine.stats().flushes == 0);
  }
}

// The owner has taken a grant back: whose it is is told, and what others had on the lane moves without counting against them.
void what_a_refusal_comes_to() {
  Rig rig({.tries_max = 1});
  rig.lane(0);
  const auto refused = rig.submit(2), other = rig.submit(2, kAccess + 1);
  CHECK(rig.out(4));
  rig.lane(1);
  rig.device().complete(0, 0, IBV_WC_REM_ACCESS_ERR);
  CHECK(rig.await(EventKind::kRefused, kAccess) && rig.finished(refused) && count(refused, Reason::kRevoked) == 2);
  CHECK(rig.out(2, 1) && !rig.is_finished(other));
  const auto later = rig.submit(1);  // by the same grant: not posted any more
  CHECK(rig.finished(later) && count(later, Reason::kRevoked) == 1);
  rig.device().complete_all(1);
  CHECK(rig.finished(other) && other->layout().whole() && !rig.is_told(EventKind::kRefused, kAccess));
}

// A lane is given back when all of its requests are, and not before: its queue pair goes then.
void a_lane_ends_after_its_requests() {
  Rig rig;
  rig.device().hang();
  rig.lane(0);
  rig.submit(3);
  CHECK(rig.out(3));
  rig.device().complete(0, 0, IBV_WC_RETRY_EXC_ERR);
  CHECK(!rig.is_told(EventKind::kLaneDown, Rig::lane_of(0)) && rig.device().broken(0));
  rig.engine.drop_lane(Rig::lane_of(0));
  CHECK(!rig.is_told(EventKind::kLaneDown, Rig::lane_of(0)));
  rig.device().release();
  std::uint32_t status = 0;
  CHECK(rig.await(EventKind::kLaneDown, Rig::lane_of(0), &status) && status == IBV_WC_RETRY_EXC_ERR);
}

void a_cancel_waits_for_what_is_out() {
  Rig rig({.window = 4});
  rig.lane(0);
  const auto job = rig.submit(6);
  CHECK(rig.out(4));
  rig.engine.stop(job->token(), Reason::kCancelled);
  for (std::size_t left = 4; left > 0; --left) {
    CHECK(!rig.is_finished(job));
    rig.device().complete(0, 0);
  }
  CHECK(rig.finished(job) && !job->layout().whole());
  CHECK(count(job, Reason::kLanded) == 4 && count(job, Reason::kCancelled) == 2);
  CHECK(rig.device().out(0).empty() && !rig.device().broken(0));  // nothing was asked for after it, and nothing flushed
}

// Past `linger` the lane is flushed; even then the answer waits until the device has given all back.
void a_deadline_flushes_and_waits() {
  Rig rig({.tries_max = 1, .linger = 0ns});
  rig.device().hang();
  rig.lane(0);
  const auto late = rig.submit(2), other = rig.submit(2);
  CHECK(rig.out(4));
  rig.lane(1);
  rig.engine.stop(late->token(), Reason::kLate);
  CHECK(within([&] { return rig.device().broken(0); }));
  rig.device().complete(0, 0);
  CHECK(!rig.is_finished(late) && rig.engine.stats().flushes == 1);
  rig.device().release();
  CHECK(rig.finished(late) && count(late, Reason::kLanded) == 1 && count(late, Reason::kLate) == 1);
  CHECK(rig.out(2, 1));  // the other batch's, and that is no fault of theirs
  rig.device().complete_all(1);
  CHECK(rig.finished(other) && other->layout().whole());
}

// A device that gives nothing back: the engine says so, and what it has is never answered; Python poisons the region (quiesce_max).
void a_device_that_hangs() {
  Rig rig({.linger = 0ns});
  rig.device().hang();
  rig.lane(0);
  const auto job = rig.submit(2);
  CHECK(rig.out(2));
  rig.engine.stop(job->token(), Reason::kLate);
  CHECK(within([&] { return rig.device().broken(0); }) && !rig.is_finished(job));
  CHECK(!rig.engine.close(50ms));
  CHECK(std::ranges::none_of(rig.gather(), [&](const Event& event) { return event.id == job->token(); }));
  rig.device().release();
  CHECK(rig.engine.close(kPatience) && rig.finished(job) && count(job, Reason::kLate) == 2);
}

void a_close_answers_what_is_under_way() {
  Rig rig({.window = 2});
  rig.lane(0);
  const auto job = rig.submit(4);
  CHECK(rig.out(2));
  CHECK(rig.engine.close(kPatience));
  CHECK(rig.finished(job) && count(job, Reason::kPeerGone) == 4);
}

void a_peer_that_is_gone() {
  Rig rig({.window = 2});
  rig.device().hang();
  rig.lane(0);
  const auto job = rig.submit(4);
  CHECK(rig.out(2));
  rig.engine.give_up(kPeer, true);
  CHECK(!rig.is_finished(job));
  rig.device().release();
  CHECK(rig.finished(job) && count(job, Reason::kPeerGone) == 4);
  const auto later = rig.submit(1);
  CHECK(rig.finished(later) && count(later, Reason::kPeerGone) == 1);
}

// A port without its link answers nothing: what is out over it moves at once, by the other devices' keys.
void slices_move_to_another_rail() {
  Rig rig({}, 2);
  rig.lane(0);
  rig.lane(0, 1);
  const auto job = rig.submit(32);
  CHECK(rig.out(16) && rig.out(16, 0, 1));
  rig.device(0).news(IBV_EVENT_PORT_ERR, 2);  // not ours
  rig.device(0).news(IBV_EVENT_LID_CHANGE, 1);
  CHECK(within([&] { return rig.device(0).chains().size() == 1; }));
  rig.settle();
  CHECK(!rig.device(0).broken(0));
  rig.device(0).news(IBV_EVENT_PORT_ERR, 1);
  std::uint32_t status = 0;
  CHECK(rig.await(EventKind::kLaneDown, Rig::lane_of(0), &status) && status == IBV_WC_LOC_QP_OP_ERR);
  CHECK(rig.out(32, 0, 1) && rig.engine.stats().again == 16);
  for (const Request& request : rig.device(1).out(0)) CHECK(request.local_key == 101 && request.remote_key == 201);
  rig.device(1).complete_all(0);
  CHECK(rig.finished(job) && job->layout().whole());
}

// Completions that nobody asked for: of a lane that was never there or is gone, of no place, of a place that is free.
void ids_that_are_nobodys() {
  Rig rig;
  rig.lane(0);
  const auto job = rig.submit(2);
  CHECK(rig.out(2));
  const std::uint64_t mine = rig.device().out(0)[0].id, generation = mine >> 32 << 32;
  for (const ibv_wc_status status : {IBV_WC_SUCCESS, IBV_WC_RETRY_EXC_ERR}) {
    const std::uint64_t later = generation + (std::uint64_t{1} << 32);
    for (const std::uint64_t id : {later, generation | 5000, generation | 31, ~std::uint64_t{0}, std::uint64_t{0}})
      rig.device().push(id, status);
  }
  CHECK(!rig.is_finished(job) && !rig.device().broken(0) && rig.engine.stats().requests == 0);
  rig.device().complete(0, 0);
  rig.device().push(mine, IBV_WC_SUCCESS);  // twice
  CHECK(!rig.is_finished(job));
  rig.engine.drop_lane(Rig::lane_of(0));
  CHECK(rig.await(EventKind::kLaneDown, Rig::lane_of(0)));
  rig.lane(1);
  CHECK(rig.out(1, 1));
  rig.device().push(mine + 1, IBV_WC_SUCCESS);  // a queue pair's that is gone: not the new one's
  rig.device().push(mine, IBV_WC_SUCCESS);
  CHECK(!rig.is_finished(job));
  rig.device().complete_all(1);
  CHECK(rig.finished(job) && job->layout().whole() && rig.engine.stats().requests == 2);
}

void a_grant_that_has_ended_is_not_posted() {
  Rig rig({.window = 2});
  rig.lane(0);
  const auto job = rig.submit(4), other = rig.submit(1, kAccess + 1);
  CHECK(rig.out(2));
  rig.engine.end_access(kPeer, kAccess, Reason::kExpired);
  CHECK(!rig.is_finished(job));  // two are out
  rig.device().complete_all(0);
  CHECK(rig.finished(job) && count(job, Reason::kLanded) == 2 && count(job, Reason::kExpired) == 2);
  CHECK(rig.out(1));
  rig.device().complete_all(0);
  CHECK(rig.finished(other) && other->layout().whole());
}

constexpr Trial kTrial{1, 2, 3, 4, 5};

// A lane on trial carries nobody's bytes: one read of its own, and slices when that has landed.
void a_lane_is_tried_before_it_takes_slices() {
  Rig rig;
  rig.lane(0, 0, kTrial);
  const auto job = rig.submit(2);
  CHECK(rig.out(1) && !rig.is_told(EventKind::kLaneUp, Rig::lane_of(0)));
  const Request trial = rig.device().out(0)[0];
  CHECK(trial.opcode == IBV_WR_RDMA_READ && trial.flags == IBV_SEND_SIGNALED);
  CHECK(trial.local == 1 && trial.remote == 2 && trial.bytes == 3 && trial.local_key == 4 && trial.remote_key == 5);
  rig.lane(1);  // what needs no trial takes them at once
  CHECK(rig.await(EventKind::kLaneUp, Rig::lane_of(1)) && rig.out(2, 1));
  rig.device().complete_all(1);
  CHECK(rig.finished(job) && job->layout().whole());
  rig.device().complete(0, 0);
  CHECK(rig.await(EventKind::kLaneUp, Rig::lane_of(0)) && rig.engine.stats().requests == 2);
  const auto later = rig.submit(4);
  CHECK(rig.out(2, 0) || rig.out(4, 0));
  rig.device().complete_all(0);
  rig.device().complete_all(1);
  CHECK(rig.finished(later) && later->layout().whole());
}

void a_trial_that_fails() {
  for (const ibv_wc_status status : {IBV_WC_RETRY_EXC_ERR, IBV_WC_REM_ACCESS_ERR}) {
    Rig rig({.tries_max = 1});
    rig.lane(0, 0, kTrial);
    const auto job = rig.submit(2);
    CHECK(rig.out(1));
    rig.device().complete(0, 0, status);
    std::uint32_t told = 0;
    CHECK(rig.await(EventKind::kLaneDown, Rig::lane_of(0), &told) && told == static_cast<std::uint32_t>(status));
    CHECK(!rig.is_finished(job) && !rig.is_told(EventKind::kLaneUp, Rig::lane_of(0)) && rig.engine.stats().again == 0);
    rig.lane(1, 0, kTrial);
    CHECK(rig.out(1, 1));
    rig.engine.give_up(kPeer, false);  // nobody waits for what is being tried
    CHECK(rig.finished(job) && count(job, Reason::kPeerGone) == 2);
  }
}

void a_trial_that_nobody_waits_for() {
  Rig rig;
  rig.device().hang();
  rig.lane(0, 0, kTrial);
  CHECK(rig.out(1));
  rig.engine.drop_lane(Rig::lane_of(0));
  CHECK(!rig.is_told(EventKind::kLaneDown, Rig::lane_of(0)));  // it may still land
  rig.device().release();
  CHECK(rig.await(EventKind::kLaneDown, Rig::lane_of(0)) && !rig.is_told(EventKind::kLaneUp, Rig::lane_of(0)));
  Rig full({.depth = 0});
  full.lane(0, 0, kTrial);
  std::uint32_t status = 0;
  CHECK(full.await(EventKind::kLaneDown, Rig::lane_of(0), &status) && status == IBV_WC_GENERAL_ERR);
}

}  // namespace

int main() {
  requests_are_what_was_asked_for();
  bytes_land_and_are_hashed();
  posts_in_chains_within_the_window();
  a_queue_that_is_full();
  a_queue_that_takes_nothing();
  what_a_failed_path_comes_to();
  what_a_refusal_comes_to();
  a_lane_ends_after_its_requests();
  a_cancel_waits_for_what_is_out();
  a_deadline_flushes_and_waits();
  a_device_that_hangs();
  a_close_answers_what_is_under_way();
  a_peer_that_is_gone();
  slices_move_to_another_rail();
  ids_that_are_nobodys();
  a_grant_that_has_ended_is_not_posted();
  a_lane_is_tried_before_it_takes_slices();
  a_trial_that_fails();
  a_trial_that_nobody_waits_for();
  return finish();
}
