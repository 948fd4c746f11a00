// Two connections over pipes of any narrowness: bytes are exact, grants are kept, stopped jobs are quiet at once, hostile frames
// end nothing but their connection.
#include "check.hpp"
#include "tcp_rig.hpp"

#include <numeric>

using namespace kvstore;
using namespace kvstore::test;

namespace {

struct Net {
  explicit Net(std::size_t most, std::size_t room = std::size_t{1} << 20, std::uint32_t requests_max = 4)
      : ours(requests_max), theirs(requests_max) {
    there->room = back->room = room;
    ours.connect(back, there, most);
    theirs.connect(there, back, most);
  }
  void run(int turns) {
    for (int i = 0; i < turns; ++i) {
      ours.turn();
      theirs.turn();
    }
  }
  std::shared_ptr<Pipe> there = std::make_shared<Pipe>(), back = std::make_shared<Pipe>();
  Side ours, theirs;
};

std::vector<std::uint8_t> noise(std::size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::uint8_t> bytes(size);
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
  return bytes;
}

// A job over rows (local offset, remote offset, length), each slice so many of them.
struct Moves {
  std::vector<transfer::Row> rows;
  std::vector<transfer::Slice> slices;
  std::uint64_t bytes = 0;
  void add(std::uint64_t here, std::uint64_t there, std::uint64_t length, bool fresh) {
    const auto at = static_cast<std::uint32_t>(rows.size());
    if (fresh || slices.empty()) slices.push_back({bytes, at, at, 0});
    rows.push_back({0, 0, here, there, length});
    slices.back().row_end = at + 1;
    bytes += length;
  }
  std::shared_ptr<Job> job(std::uint64_t token, Direction direction, std::span<std::uint8_t> memory, const Access& access,
                           const std::vector<std::uint64_t>& parts = {}) const {
    const LocalSpan local{reinterpret_cast<std::byte*>(memory.data()), memory.size(), true};
    return std::make_shared<Job>(token, direction, std::vector{local}, std::vector{access}, Layout(rows, slices, parts));
  }
};

void ask(Side& side, const std::shared_ptr<Job>& job) {
  for (std::size_t i = 0; i < job->slices(); ++i) side.connection->ask(job, i, 0);
  side.connection->flush();
}

Reason state(const Job& job, std::size_t slice) { return static_cast<Reason>(job.states()[slice]); }

void test_bytes_are_exact_however_narrow_the_pipes() {
  for (unsigned seed = 0; seed < 40; ++seed) {
    std::mt19937 random(seed);
    Net net(seed % 4 == 0 ? 7 : 1 + random() % 5'000, 100 + random() % 10'000);
    std::vector<std::uint8_t> theirs = noise(60'000, seed), ours(60'000, 0xa5);
    const std::vector<std::uint8_t> before = theirs;
    const auto grant = net.theirs.grant(0, theirs, {{0, 60'000}});
    Moves moves;
    std::uint64_t here = random() % 50;
    while (here < 50'000) {
      const std::uint64_t length = 1 + random() % 9'000, from = random() % (60'000 - 9'001);
      moves.add(here, from, length, true);
      here += length + random() % 40;
      if (here > 50'000) break;
    }
    const bool reading = seed % 2 == 0;
    std::vector<std::uint64_t> parts;
    for (const transfer::Row& row : moves.rows) parts.push_back(row.length);
    if (!reading) ours = noise(60'000, seed + 1'000);
    const auto job = moves.job(1, reading ? Direction::kRead : Direction::kWrite, ours, access_of(*grant),
                               reading ? parts : std::vector<std::uint64_t>{});
    ask(net.ours, job);
    for (int turn = 0; turn < 200'000 && !net.ours.finished(1); ++turn) net.run(1);
    CHECK(net.ours.finished(1));
    CHECK(job->layout().whole());
    for (std::size_t i = 0; i < moves.rows.size(); ++i) {
      const transfer::Row& row = moves.rows[i];
      if (reading) {
        CHECK(std::memcmp(ours.data() + row.local_offset, before.data() + row.remote_offset, row.length) == 0);
        CHECK(job->layout().checksums()[i] == part_checksum(before.data() + row.remote_offset, row.length));
      }
    }
    if (reading) CHECK(theirs == before);
    if (!reading) {  // the last write of a place is the one that stays: rows of one connection land in order
      std::vector<std::uint8_t> expected = before;
      for (const transfer::Row& row : moves.rows) std::memcpy(expected.data() + row.remote_offset, ours.data() + row.local_offset, row.length);
      CHECK(theirs == expected);
    }
    CHECK(grant->touching == 0);
  }
}

void test_a_grant_that_ends_is_left_although_its_reader_is_slow() {
  Net net(4096, 2'000);
  std::vector<std::uint8_t> theirs = noise(400'000, 1), ours(400'000);
  const auto grant = net.theirs.grant(0, theirs, {{0, 400'000}});
  Moves moves;
  moves.add(0, 0, 200'000, true);
  moves.add(200'000, 200'000, 200'000, true);
  const auto job = moves.job(1, Direction::kRead, ours, access_of(*grant));
  ask(net.ours, job);
  net.run(6);
  for (int i = 0; i < 3; ++i) net.theirs.turn();  // the reader has stopped: the pipe is full in the middle of a frame
  CHECK(grant->touching == 1);
  net.theirs.shared.grants.end(0);
  net.theirs.connection->detach_ended();
  CHECK(grant->touching == 0);
  const std::vector<std::uint8_t> promised = theirs;
  std::fill(theirs.begin(), theirs.end(), std::uint8_t{0xee});  // its owner uses it for something else
  for (int turn = 0; turn < 1'000 && !net.ours.finished(1); ++turn) net.run(1);
  CHECK(net.ours.finished(1));
  CHECK(state(*job, 1) == Reason::kRevoked);
  if (state(*job, 0) == Reason::kLanded) CHECK(std::memcmp(ours.data(), promised.data(), 200'000) == 0);
  for (std::size_t i = 0; i < ours.size(); ++i) CHECK(ours[i] == promised[i] || ours[i] == 0);  // nothing of what came after
}

void test_a_stopped_job_is_quiet_at_once() {
  for (const Direction direction : {Direction::kRead, Direction::kWrite}) {
    Net net(1'000, 3'000);
    std::vector<std::uint8_t> theirs = noise(300'000, 2), ours = noise(300'000, 3);
    const auto grant = net.theirs.grant(0, theirs, {{0, 300'000}});
    Moves moves;
    for (int i = 0; i < 3; ++i) moves.add(100'000u * static_cast<unsigned>(i), 100'000u * static_cast<unsigned>(i), 100'000, true);
    const auto job = moves.job(1, direction, ours, access_of(*grant));
    ask(net.ours, job);
    net.run(20);
    job->stop(Reason::kCancelled);
    net.ours.connection->withdraw(*job);
    CHECK(net.ours.finished(1));  // before anything else has come
    CHECK(state(*job, 2) == Reason::kCancelled);
    std::fill(ours.begin(), ours.end(), std::uint8_t{0x77});
    const auto again = moves.job(2, Direction::kRead, ours, access_of(*grant));
    net.run(2'000);
    for (const std::uint8_t byte : ours) CHECK(byte == 0x77);
    CHECK(grant->touching == 0);
    ask(net.ours, again);  // and the connection still serves
    for (int turn = 0; turn < 5'000 && !net.ours.finished(2); ++turn) net.run(1);
    CHECK(again->layout().whole());
    CHECK(ours == theirs);
  }
}

void test_both_sides_ask_at_once() {
  Net net(3'000, 9'000);
  std::vector<std::uint8_t> theirs = noise(200'000, 5), ours = noise(200'000, 6), read(100'000), given = noise(100'000, 7);
  const std::vector<std::uint8_t> their_read_of = ours;
  std::vector<std::uint8_t> taken(100'000);
  const auto of_theirs = net.theirs.grant(0, theirs, {{0, 200'000}}), of_ours = net.ours.grant(0, ours, {{0, 200'000}});
  Moves low, high;
  low.add(0, 0, 100'000, true);
  high.add(0, 100'000, 100'000, true);
  const auto a = low.job(1, Direction::kRead, read, access_of(*of_theirs));
  const auto b = high.job(2, Direction::kWrite, given, access_of(*of_theirs));
  const auto c = high.job(1, Direction::kWrite, given, access_of(*of_ours));  // the same numbers, the other way about
  const auto d = low.job(2, Direction::kRead, taken, access_of(*of_ours));
  ask(net.ours, a);
  ask(net.theirs, c);
  ask(net.ours, b);
  ask(net.theirs, d);
  for (int turn = 0; turn < 5'000; ++turn) net.run(1);
  CHECK(net.ours.finished(1) && net.ours.finished(2) && net.theirs.finished(1) && net.theirs.finished(2));
  for (const auto& job : {a, b, c, d}) CHECK(job->layout().whole());
  CHECK(std::memcmp(read.data(), theirs.data(), 100'000) == 0);
  CHECK(std::memcmp(theirs.data() + 100'000, given.data(), 100'000) == 0);
  CHECK(std::memcmp(ours.data() + 100'000, given.data(), 100'000) == 0);
  CHECK(std::memcmp(taken.data(), their_read_of.data(), 100'000) == 0);
}

void test_what_was_not_granted_is_refused() {
  Net net(4096);
  std::vector<std::uint8_t> theirs = noise(10'000, 4), ours(10'000);
  const auto grant = net.theirs.grant(0, theirs, {{100, 1'000}, {5'000, 10}}, false);
  const auto one = [&](std::uint64_t offset, std::uint64_t length, Direction direction, Access access) {
    static std::uint64_t token = 100;
    Moves moves;
    moves.add(0, offset, length, true);
    const auto job = moves.job(++token, direction, ours, access);
    ask(net.ours, job);
    for (int turn = 0; turn < 200 && !net.ours.finished(token); ++turn) net.run(1);
    return state(*job, 0);
  };
  const Access good = access_of(*grant);
  CHECK(one(100, 1'000, Direction::kRead, good) == Reason::kLanded);
  CHECK(one(99, 2, Direction::kRead, good) == Reason::kOutOfBounds);
  CHECK(one(1'099, 2, Direction::kRead, good) == Reason::kOutOfBounds);
  CHECK(one(~std::uint64_t{0} - 1, 2, Direction::kRead, good) == Reason::kOutOfBounds);
  CHECK(one(100, 10, Direction::kWrite, good) == Reason::kNotAllowed);
  Access forged = good;
  forged.proof[15] ^= 1;
  CHECK(one(100, 10, Direction::kRead, forged) == Reason::kRevoked);
  CHECK(one(100, 10, Direction::kRead, {good.slot, good.generation + 1, good.proof}) == Reason::kRevoked);
  CHECK(one(100, 10, Direction::kRead, {7, 1, good.proof}) == Reason::kRevoked);
  grant->expiry_ns = 0;
  CHECK(one(100, 10, Direction::kRead, good) == Reason::kExpired);
  CHECK(net.theirs.connection != nullptr && theirs == noise(10'000, 4));
}

// Frames that no peer of ours sends.
bool survives(const std::vector<std::uint8_t>& frames, std::uint32_t requests_max = 2) {
  auto in = std::make_shared<Pipe>(), out = std::make_shared<Pipe>();
  Side side(requests_max);
  std::vector<std::uint8_t> memory(1'000);
  side.grant(0, memory, {{0, 1'000}});
  side.connect(in, out, 4096);
  Hello hello;
  hello.requests_max = 1;
  put_hello(in->bytes, hello);
  in->bytes.insert(in->bytes.end(), frames.begin(), frames.end());
  for (int i = 0; i < 20; ++i) side.turn();
  return side.connection != nullptr;
}

void test_hostile_frames_end_their_connection() {
  const Access access{0, 1, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}};
  const auto request = [&](Kind kind, std::uint64_t id, std::uint64_t said, std::vector<WireRow> rows) {
    std::vector<std::uint8_t> frame;
    put_request(frame, kind, id, said, access, rows.size());
    for (const WireRow& row : rows) append(frame, row);
    return frame;
  };
  const auto both = [](std::vector<std::uint8_t> a, const std::vector<std::uint8_t>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  };
  std::vector<std::uint8_t> data, given, done, stop;
  put_data(data, Kind::kData, 5, 0, 10);
  put_data(given, Kind::kGiven, 5, 0, 10);
  data.resize(data.size() + 10);
  given.resize(given.size() + 10);
  put_control(done, Kind::kDone, 5, Reason::kLanded);
  put_control(stop, Kind::kStop, 5, Reason::kNone);
  CHECK(survives({}));
  CHECK(survives(stop));  // its answer may have been under way
  CHECK(survives(request(Kind::kRead, 1, 10, {{0, 10}})));
  CHECK(survives(both(request(Kind::kWrite, 5, 10, {{0, 10}}), given)));
  CHECK(!survives(data) && !survives(given));
  CHECK(!survives(done));
  CHECK(!survives(both(request(Kind::kRead, 5, 10, {{0, 10}}), given)));  // bytes for a READ
  CHECK(!survives(both(request(Kind::kWrite, 5, 10, {{0, 10}}), data)));  // of the wrong side
  CHECK(!survives(both(request(Kind::kWrite, 5, 9, {{0, 9}}), given)));   // more than was said
  CHECK(!survives(request(Kind::kRead, 1, 11, {{0, 10}})));
  CHECK(!survives(request(Kind::kRead, 1, 0, {{0, 0}})));
  const auto unanswered = request(Kind::kWrite, 1, 10, {{0, 10}});
  CHECK(!survives(both(unanswered, unanswered)));
  CHECK(!survives(both(both(unanswered, request(Kind::kWrite, 2, 10, {{0, 10}})), request(Kind::kWrite, 3, 10, {{0, 10}}))));
  std::vector<std::uint8_t> hello;
  put_hello(hello, {});
  CHECK(!survives(hello));
}

// What came of a READ of ten bytes that a peer answered with these frames.
Reason answered(const std::vector<std::uint8_t>& frames) {
  auto in = std::make_shared<Pipe>(), out = std::make_shared<Pipe>();
  Side side(2);
  std::vector<std::uint8_t> memory(10);
  side.connect(in, out, 4096);
  Moves moves;
  moves.add(0, 0, 10, true);
  const auto job = moves.job(1, Direction::kRead, memory, {});
  side.connection->ask(job, 0, 0);
  Hello hello;
  hello.requests_max = 1;
  put_hello(in->bytes, hello);
  in->bytes.insert(in->bytes.end(), frames.begin(), frames.end());
  for (int i = 0; i < 20 && side.turn(); ++i) {
  }
  if (side.connection) return side.finished(1) ? state(*job, 0) : Reason::kNone;
  CHECK(side.finished(1) && state(*job, 0) == Reason::kPeerGone);
  return Reason::kPeerGone;
}

void test_answers_that_do_not_fit_end_their_connection() {
  const auto data = [](std::uint64_t position, std::uint32_t length) {
    std::vector<std::uint8_t> frame;
    put_data(frame, Kind::kData, 1, position, length);
    frame.resize(frame.size() + length);
    return frame;
  };
  const auto done_with = [](std::vector<std::uint8_t> frames, Reason reason) {
    put_control(frames, Kind::kDone, 1, reason);
    return frames;
  };
  std::vector<std::uint8_t> two = data(0, 4);
  const std::vector<std::uint8_t> rest = data(4, 6);
  two.insert(two.end(), rest.begin(), rest.end());
  CHECK(answered(done_with(two, Reason::kLanded)) == Reason::kLanded);
  CHECK(answered(two) == Reason::kNone);  // it has not said so
  CHECK(answered(done_with(data(0, 4), Reason::kRevoked)) == Reason::kRevoked);
  CHECK(answered(done_with({}, Reason::kExpired)) == Reason::kExpired);
  CHECK(answered(done_with(data(0, 4), Reason::kLanded)) == Reason::kPeerGone);  // landed, without its bytes
  CHECK(answered(data(1, 4)) == Reason::kPeerGone);
  CHECK(answered(data(0, 11)) == Reason::kPeerGone);
  CHECK(answered(done_with({}, Reason::kLate)) == Reason::kPeerGone);  // which is not for a peer to say
}

}  // namespace

int main() {
  test_bytes_are_exact_however_narrow_the_pipes();
  test_a_grant_that_ends_is_left_although_its_reader_is_slow();
  test_a_stopped_job_is_quiet_at_once();
  test_both_sides_ask_at_once();
  test_what_was_not_granted_is_refused();
  test_hostile_frames_end_their_connection();
  test_answers_that_do_not_fit_end_their_connection();
  return finish();
}
