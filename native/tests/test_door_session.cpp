// A session against a real door: what is put comes back, from one thread and from many; who maps nothing is refused, and asks the rest.
#include <sys/wait.h>

#include <thread>

#include "check.hpp"
#include "door/reservation.hpp"
#include "door_rig.hpp"

using namespace kvstore;
using namespace kvstore::test;

namespace {

void round_trip(std::vector<std::uint32_t> parts, std::size_t blocks) {
  Rig rig(64ull << 20, {}, trusting());
  const NsId ns = rig.core->open_namespace(spec_of(1, parts));
  CHECK(ns != kNoNamespace);
  auto session = rig.connect(ns);
  const std::uint64_t block_bytes = rig.core->namespace_spec(ns)->shards[0].bytes;
  const auto keys = chain_of(1, blocks);
  const Bytes source(blocks, block_bytes);

  CHECK(lookup(*session, ns, keys).blocks == 0);
  const Result stored = put(*session, ns, keys, source.whole());
  CHECK(stored.status == Status::kOk && stored.blocks == blocks && stored.bytes == blocks * block_bytes);
  const Result again = put(*session, ns, keys, source.whole());
  CHECK(again.blocks == 0 && again.outcomes == std::vector<std::uint8_t>(blocks, 1));
  auto longer = keys;
  longer.push_back(key_of(999'999));
  const Result found = lookup(*session, ns, longer);
  CHECK(found.blocks == blocks && found.tiers == std::vector<std::uint8_t>(blocks, 1) && found.fetch_s >= 0);

  Bytes target(blocks, block_bytes, 77);
  const Result got = fetch(*session, ns, keys, target.whole());
  CHECK(got.status == Status::kOk && got.blocks == blocks && got.blocks_corrupt == 0);
  CHECK(target.data == source.data);

  // Scattered: three pieces a block, of odd sizes.
  Bytes odd(blocks, block_bytes, 78);
  Scattered where;
  where.lengths = {1, 1'001, block_bytes - 1'002};
  for (std::size_t i = 0; i < blocks; ++i) {
    const auto at = reinterpret_cast<std::uint64_t>(odd.data.data() + i * block_bytes);
    where.addresses.insert(where.addresses.end(), {at, at + 1, at + 1'002});
  }
  CHECK(fetch(*session, ns, keys, where).blocks == blocks);
  CHECK(odd.data == source.data);
  session->flush(in_ms(1'000));
  rig.core->with_memory([](SlotTable& table) { table.check_integrity(); });
}

void flipped_bit() {
  Rig rig(64ull << 20, {}, trusting());
  const NsId ns = rig.core->open_namespace(spec_of(1, {4096, 100, 8000}));
  auto session = rig.connect(ns);
  const auto keys = chain_of(1, 5);
  const Bytes source(5, 12'196);
  CHECK(put(*session, ns, keys, source.whole()).blocks == 5);
  SlotRows rows;
  CHECK(rig.core->scan(Tier::kMemory, 0, 100, rows) == kNoSlot && rows.keys.size() == 5);
  for (std::size_t i = 0; i < 5; ++i)
    if (rows.keys[i] == keys[3]) rig.payload[rows.offsets[i] + 4'100] ^= std::byte{4};
  Bytes target(5, 12'196, 9);
  const Result got = fetch(*session, ns, keys, target.whole());
  CHECK(got.blocks == 3 && got.blocks_corrupt == 1);
  session->flush(in_ms(1'000));
  std::vector<Work> work;
  for (int i = 0; i < 200 && work.empty(); ++i) {
    usleep(5'000);
    work = rig.core->take_work(10);
  }
  CHECK(work.size() == 1 && work[0].kind == Work::Kind::kCorrupt && work[0].keys[0] == keys[3]);
  // With verification off the flipped bit comes through: this is what it guards against.
  SessionConfig careless;
  careless.path = rig.path;
  careless.verify = false;
  Session blind(careless);
  rig.permit(blind, ns);
  const Result wrong = fetch(blind, ns, keys, target.whole());
  CHECK(wrong.blocks == 5 && target.data != source.data);
}

void view_and_reserve() {
  Rig rig(64ull << 20, {}, trusting());
  const NsId ns = rig.core->open_namespace(spec_of(1, {4096, 4096}));
  auto session = rig.connect(ns);
  const auto keys = chain_of(50, 3);
  const Bytes source(3, 8192);
  ReserveArguments arguments;
  arguments.ns = ns;
  arguments.keys = keys;
  Reservation slots(session, arguments, in_ms(1'000));
  CHECK(slots.result().status == Status::kOk && slots.granted().size() == 3);
  auto other = rig.connect(ns);
  CHECK(put(*other, ns, keys, source.whole()).outcomes == std::vector<std::uint8_t>(3, 2));  // pending
  Scattered first;
  for (std::size_t i = 0; i < 3; ++i) first.addresses.push_back(reinterpret_cast<std::uint64_t>(source.data.data() + i * 8192));
  first.lengths = {4096};
  CHECK(slots.write(0, first).blocks == 3);
  CHECK(slots.publish(1, in_ms(1'000)).status == Status::kBadInput);
  CHECK(slots.publish(0, in_ms(1'000)).status == Status::kOk);
  CHECK(slots.write(0, first).status == Status::kBadInput);
  for (const std::uint32_t i : slots.granted())  // the second part in place
    std::memcpy(session->segment()->writable(slots.offset_of(i) + 4096, 4096), source.data.data() + i * 8192 + 4096, 4096);
  CHECK(slots.seal(in_ms(1'000)).blocks == 3);
  CHECK(slots.seal(in_ms(1'000)).status == Status::kBadInput);

  HoldArguments hold;
  hold.ns = ns;
  hold.keys = keys;
  ViewOperation view(hold, other->parts_of(ns, 0));
  const Result seen = other->run(view, in_ms(1'000));
  CHECK(seen.blocks == 3 && seen.hold != 0);
  for (std::size_t i = 0; i < 3; ++i)
    CHECK(std::memcmp(other->segment()->readable(seen.offsets[i], 8192), source.data.data() + i * 8192, 8192) == 0);
  CHECK(rig.core->retire_keys(ns, keys) == 3);
  CHECK(lookup(*other, ns, keys).blocks == 0);
  rig.core->with_memory([](SlotTable& table) { CHECK(table.stats().slots_retired == 3); });
  other.reset();  // the connection's end is the view's
  for (int i = 0; i < 200; ++i) {
    std::uint64_t retired = 1;
    rig.core->with_memory([&](SlotTable& table) { retired = table.stats().slots_retired; });
    if (retired == 0) break;
    usleep(5'000);
  }
  rig.core->with_memory([](SlotTable& table) { CHECK(table.stats().slots_retired == 0); });
}

// Of a session that maps the segment, and of one by TCP beside it.
void many_threads() {
  Rig rig(64ull << 20, {}, trusting());
  const NsId ns = rig.core->open_namespace(spec_of(1, {4096, 4096}));
  auto session = rig.connect(ns);
  rig.by_tcp = true;
  auto far = rig.connect(ns);
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (std::uint64_t round = 0; round < 200; ++round) {
        const auto keys = chain_of(1'000'000 * (t + 1) + round * 8, 8);
        const Bytes source(8, 8192, t * 1'000 + round);
        CHECK(put(*session, ns, keys, source.whole()).blocks == 8);
        Bytes target(8, 8192, 5);
        CHECK(fetch(*session, ns, keys, target.whole()).blocks == 8);
        CHECK(target.data == source.data);
        CHECK(lookup(*session, ns, keys).blocks == 8);
        CHECK(lookup(*far, ns, keys).blocks == 8);
      }
    });
  for (std::thread& thread : threads) thread.join();
  session->flush(in_ms(1'000));
  rig.core->with_memory([](SlotTable& table) { table.check_integrity(); });
}

void submitted() {
  Rig rig(64ull << 20, {}, trusting());
  const NsId ns = rig.core->open_namespace(spec_of(1, {4096, 4096}));
  auto session = rig.connect(ns);
  const Bytes source(64, 8192);
  std::vector<std::vector<Key>> chains;
  for (std::uint64_t i = 0; i < 16; ++i) {
    chains.push_back(chain_of(10'000 * (i + 1), 64));
    ReserveArguments arguments;
    arguments.ns = ns;
    arguments.keys = chains.back();
    session->submit(i, std::make_unique<PutOperation>(arguments, session->parts_of(ns, 0), source.whole()), in_ms(5'000));
  }
  auto done = completions(*session, 16);
  CHECK(done.size() == 16);
  for (const Result& result : done) CHECK(result.status == Status::kOk && result.blocks == 64);
  std::vector<Bytes> targets(16, Bytes(64, 8192, 3));
  for (std::uint64_t i = 0; i < 16; ++i) {
    HoldArguments arguments;
    arguments.ns = ns;
    arguments.keys = chains[i];
    session->submit(100 + i, std::make_unique<FetchOperation>(arguments, session->parts_of(ns, 0), targets[i].whole()), in_ms(5'000));
    CHECK(lookup(*session, ns, chains[i]).blocks == 64);  // synchronous calls go on beside
  }
  done = completions(*session, 16);
  CHECK(done.size() == 16);
  for (const Result& result : done) CHECK(result.blocks == 64);
  for (const Bytes& target : targets) CHECK(target.data == source.data);
  rig.by_tcp = true;
  auto far = rig.connect(ns);
  for (std::uint64_t i = 0; i < 16; ++i)
    far->submit(200 + i, std::make_unique<LookupOperation>(ns, chains[i], std::span<const Need>()), in_ms(5'000));
  done = completions(*far, 16);
  CHECK(done.size() == 16);
  for (const Result& result : done) CHECK(result.token >= 200 && result.blocks == 64);
}

// A block that only the file tier has parks a fetch; nobody promotes it.
std::vector<Key> only_in_files(Rig& rig, NsId ns) {
  const OwnerId mover = rig.core->new_owner();
  const auto keys = chain_of(1, 1);
  std::vector<Reserved> slots(1);
  rig.core->reserve(Tier::kFile, mover, ns, 0, keys, nullptr, {}, {}, false, monotonic_now(), slots);
  std::vector<Outcome> out(1);
  const std::vector<Ticket> tickets{slots[0].ticket};
  rig.core->seal(Tier::kFile, mover, tickets, std::vector<std::uint64_t>{1}, out, MovePath::kPutMapped, 0);
  CHECK(out[0] == Outcome::kOk);
  return keys;
}

// Whoever asks to wait for a minute is told what there is when the node has waited as long as it does.
void a_wait_is_bounded_by_the_node() {
  DoorConfig doors = trusting();
  doors.hold_wait_ms_max = 50;
  Rig rig(64ull << 20, {}, doors, true);
  const NsId ns = rig.core->open_namespace(spec_of(1, {4096}));
  auto session = rig.connect(ns);
  Bytes target(1, 4096);
  const Result answered = fetch(*session, ns, only_in_files(rig, ns), target.whole(), 60'000, 5'000);
  CHECK(answered.status == Status::kOk && answered.blocks == 0);  // and not late
}

void a_wait_ends_with_what_there_is() {
  Rig rig(64ull << 20, {}, trusting(), true);
  const NsId ns = rig.core->open_namespace(spec_of(1, {4096}));
  auto session = rig.connect(ns);
  Bytes target(1, 4096);
  const Nanos began = monotonic_now();
  const Result late = fetch(*session, ns, only_in_files(rig, ns), target.whole(), 100);
  CHECK(late.status == Status::kOk && late.blocks == 0 && monotonic_now() - began >= 90'000'000);
}

// Whoever waits when the node goes is told: for blocks, or by TCP for the answer to a rare verb.
void node_gone(bool by_tcp) {
  Rig rig(64ull << 20, {}, trusting(), true);
  rig.by_tcp = by_tcp;
  const NsId ns = rig.core->open_namespace(spec_of(1, {4096}));
  auto session = rig.connect(ns);
  const auto keys = only_in_files(rig, ns);
  Bytes target(1, 4096);
  const auto waiting = [&]() -> std::unique_ptr<Operation> {
    if (by_tcp) return std::make_unique<CallOperation>(1, std::span<const std::uint8_t>());
    HoldArguments arguments;
    arguments.ns = ns;
    arguments.keys = keys;
    arguments.wait_ms = 10'000;
    return std::make_unique<FetchOperation>(arguments, session->parts_of(ns, 0), target.whole());
  };
  std::thread killer([&] {
    usleep(100'000);
    rig.stop();
  });
  session->submit(7, waiting(), in_ms(9'000));
  CHECK(session->run(*waiting(), in_ms(9'000)).status == Status::kUnavailable);
  killer.join();
  const auto done = completions(*session, 1);
  CHECK(done.size() == 1 && done[0].status == Status::kUnavailable);
  CHECK(session->closed() && lookup(*session, ns, keys).status == Status::kUnavailable);
}

void given_up() {
  Rig rig(64ull << 20, {}, trusting(), true);
  const NsId ns = rig.core->open_namespace(spec_of(1, {4096}));
  auto session = rig.connect(ns);
  const OwnerId mover = rig.core->new_owner();
  const auto keys = chain_of(1, 1);
  std::vector<Reserved> slots(1);
  std::vector<Outcome> out(1);
  rig.core->reserve(Tier::kFile, mover, ns, 0, keys, nullptr, {}, {}, false, monotonic_now(), slots);
  rig.core->seal(Tier::kFile, mover, std::vector<Ticket>{slots[0].ticket}, std::vector<std::uint64_t>{1}, out, MovePath::kPutMapped, 0);
  Bytes target(1, 4096);
  // The caller's deadline comes before the node's: the late answer's hold must not stay.
  CHECK(fetch(*session, ns, keys, target.whole(), 5'000, 50).status == Status::kLate);
  HoldArguments arguments;
  arguments.ns = ns;
  arguments.keys = keys;
  arguments.wait_ms = 5'000;
  session->submit(1, std::make_unique<FetchOperation>(arguments, session->parts_of(ns, 0), target.whole()), in_ms(4'000));
  usleep(50'000);
  session->cancel(1);
  const auto done = completions(*session, 1);
  CHECK(done.size() == 1 && done[0].status == Status::kCancelled);
  const Nanos now = monotonic_now();
  std::vector<Reserved> up(1);
  rig.core->reserve(Tier::kMemory, mover, ns, 0, keys, nullptr, {}, {}, true, now, up);
  rig.core->seal(Tier::kMemory, mover, std::vector<Ticket>{up[0].ticket}, std::vector<std::uint64_t>{1}, out, MovePath::kHoldMemory, 0);
  rig.core->promoted(ns, 0, keys, now);
  std::uint64_t holds = 1;
  for (int i = 0; i < 200 && holds > 0; ++i) {
    usleep(5'000);
    rig.core->with_memory([&](SlotTable& table) { holds = table.stats().holds; });
  }
  CHECK(holds == 0);
}

// Past the time that Python has to move on, all that it allowed is asked for again; what it allows after moving it on holds.
void trusted_for_a_time() {
  Rig rig(64ull << 20, {}, trusting());
  const NsId ns = rig.core->open_namespace(spec_of(1, {4096}));
  auto session = rig.connect(ns);
  const auto keys = chain_of(1, 2);
  CHECK(put(*session, ns, keys, Bytes(2, 4096).whole()).blocks == 2);
  rig.door->trust_until(monotonic_now() + 60'000'000'000);
  CHECK(lookup(*session, ns, keys).blocks == 2);
  rig.door->trust_until(monotonic_now() - 1);
  CHECK(lookup(*session, ns, keys).status == Status::kStaleNamespace);
  rig.door->trust_until(monotonic_now() + 60'000'000'000);
  CHECK(lookup(*session, ns, keys).status == Status::kStaleNamespace);
  rig.permit(*session, ns);
  CHECK(lookup(*session, ns, keys).blocks == 2);
}

// Who maps nothing puts and gets nothing here, and sends nothing in vain: it moves bytes by transfers.
void unmapped(bool by_tcp) {
  Rig rig;
  rig.by_tcp = by_tcp;
  const NsId ns = rig.core->open_namespace(spec_of(1, {4096}));
  auto session = rig.connect(ns);
  CHECK(!session->info().trusted && session->segment() == nullptr);
  const auto keys = chain_of(1, 2);
  Bytes bytes(2, 4096);
  CHECK(lookup(*session, ns, keys).status == Status::kOk);
  const std::uint64_t frames = rig.door->stats().frames;
  HoldArguments hold;
  hold.ns = ns;
  hold.keys = keys;
  ViewOperation view(hold, session->parts_of(ns, 0));
  ReserveArguments reserve;
  reserve.ns = ns;
  reserve.keys = keys;
  Reservation slots(session, reserve, in_ms(1'000));
  CHECK(slots.granted().empty());
  const Result refused[] = {put(*session, ns, keys, bytes.whole()), fetch(*session, ns, keys, bytes.whole()),
                            session->run(view, in_ms(1'000)), slots.result()};
  const char* const fields[] = {"put", "fetch", "view", "reserve"};
  for (std::size_t i = 0; i < 4; ++i) CHECK(refused[i].status == Status::kRejected && refused[i].field == fields[i]);
  const std::vector<std::uint64_t> address{reinterpret_cast<std::uint64_t>(bytes.data.data())};
  CHECK(slots.write(0, {address, {4096}}).status == Status::kBadInput);
  CHECK(slots.publish(0, in_ms(1'000)).status == Status::kBadInput && slots.seal(in_ms(1'000)).status == Status::kBadInput);
  slots.abort();
  CHECK(lookup(*session, ns, keys).status == Status::kOk);
  CHECK(rig.door->stats().frames <= frames + 2);  // of the two lookups, both perhaps not counted before
}

std::uint64_t holds_of(Rig& rig) {
  std::uint64_t holds = 0;
  rig.core->with_memory([&](SlotTable& table) { holds = table.stats().holds; });
  return holds;
}

// A hold is given back although no call follows: by a session that was busy, by one that has slept, and by both faces' way of
// telling what was fetched. A child after fork neither sends nor waits for a thread that it has not.
void soon_sent() {
  Rig rig(64ull << 20, {}, trusting());
  const NsId ns = rig.core->open_namespace(spec_of(1, {4096}));
  auto session = rig.connect(ns);
  const auto keys = chain_of(1, 3);
  const Bytes source(3, 4096);
  CHECK(put(*session, ns, keys, source.whole()).blocks == 3);
  Bytes target(3, 4096, 9);
  for (const useconds_t pause : {0u, 1'000u, 5'000u, 60'000u, 0u}) {
    usleep(pause);
    const std::uint64_t frames = rig.door->stats().frames;
    CHECK(fetch(*session, ns, keys, target.whole()).blocks == 3);
    FetchedRequest told;
    told.ns = ns;
    told.blocks_asked = 3;
    FrameWriter body;
    body.put(told);
    CHECK(session->tell_soon(Verb::kFetched, body.bytes));
    for (int i = 0; i < 400 && (holds_of(rig) > 0 || rig.door->stats().frames < frames + 3); ++i) usleep(1'000);
    CHECK(holds_of(rig) == 0 && rig.door->stats().frames >= frames + 3);
  }
  usleep(60'000);  // its thread sleeps
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);
    const bool told = session->tell_soon(Verb::kQuiet, {});
    session.reset();
    _exit(told ? 1 : 0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(fetch(*session, ns, keys, target.whole()).blocks == 3);
  session->close();
  CHECK(!session->tell_soon(Verb::kQuiet, {}));
}

// Whose user the door trusts is nobody by TCP: no segment, no offset, whatever number stands for "no user".
void a_far_peer_is_never_trusted() {
  DoorConfig doors;
  doors.trusted_uids = {getuid(), static_cast<uid_t>(-1)};
  Rig rig(64ull << 20, {}, doors);
  const NsId ns = rig.core->open_namespace(spec_of(1, {4096}));
  CHECK(rig.connect()->info().trusted);
  rig.by_tcp = true;
  auto far = rig.connect(ns);
  CHECK(!far->info().trusted && far->segment() == nullptr);
  for (int i = 0; i < 400 && rig.door->stats().remote != 1; ++i) usleep(1'000);
  CHECK(rig.door->stats().remote == 1);
}

// Names are resolved, every address of one is tried, and who is not there is not waited for.
void found_by_name() {
  Rig rig;
  SessionConfig config;
  config.host = "localhost";  // ::1 as well, in many places, where this door does not listen
  config.port = rig.port;
  CHECK(Session(config).info().session != 0);
  config.host = "nobody.invalid";
  CHECK(throws<std::system_error>([&] { Session nobody(config); }));
  const int bound = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);  // bound, and nobody listens
  sockaddr_in place{};
  place.sin_family = AF_INET;
  place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof place;
  CHECK(bind(bound, reinterpret_cast<sockaddr*>(&place), size) == 0);
  CHECK(getsockname(bound, reinterpret_cast<sockaddr*>(&place), &size) == 0);
  config.host = "127.0.0.1";
  config.port = ntohs(place.sin_port);
  CHECK(throws<std::system_error>([&] { Session nobody(config); }));
  // Listens and never answers.
  CHECK(listen(bound, 1) == 0);
  config.connect_ms = 100;
  const Nanos began = monotonic_now();
  CHECK(throws<std::system_error>([&] { Session silent(config); }));
  CHECK(monotonic_now() - began >= 90'000'000);
  close(bound);
  for (const auto& wrong : {std::pair<std::string, std::uint16_t>{"", 1}, {"127.0.0.1", 0}}) {
    config.host = wrong.first;
    config.port = wrong.second;
    CHECK(throws<std::invalid_argument>([&] { Session none(config); }));
  }
}

}  // namespace

int main() {
  round_trip({4096}, 3);
  round_trip({1, 4095, 4097, 70'000}, 40);
  round_trip({600'000}, 3);
  flipped_bit();
  view_and_reserve();
  submitted();
  a_wait_is_bounded_by_the_node();
  a_wait_ends_with_what_there_is();
  many_threads();
  given_up();
  trusted_for_a_time();
  for (const bool by_tcp : {false, true}) {
    node_gone(by_tcp);
    unmapped(by_tcp);
  }
  a_far_peer_is_never_trusted();
  found_by_name();
  soon_sent();
  return test::finish();
}
