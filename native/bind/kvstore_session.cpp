// Python surface of the client's session (native/door/session.hpp). All calls give the GIL back once, for their whole length.
//
//   class Session:
//     def __init__(self, path: str = "", token: bytes = b"", connect_s: float = 5.0, workers: int = 1, verify: bool = True, *,
//                  host: str = "", port: int = 0, tls: Tls | None = None) -> None
//         # path: of a Unix socket; or host and port: by TCP. host: a name or an address (IPv6 without brackets), every address of it is
//         # tried within connect_s; tls: its certificate must be for `host`
//         # ConnectionError: nobody there, the node hung up, or TLS failed; PermissionError: the token or the certificate;
//         # ValueError: version, path, host, port, workers
//     info: SessionInfo        # trusted session incarnation payload_bytes window_bytes keys_per_call_max frame_bytes_max
//                              # lease_ms_max hold_wait_ms_max reserve_lapse_ms holds_per_connection_max meta_bytes_max
//     closed: bool             # the node is gone or close() was called: make a new one
//     def close(self) -> None  # waits for copies under way; views' arrays stay readable (their bytes may then change)
//     def describe(self, ns: int, shards: list[list[int]]) -> None     # part sizes of each shard; before put, fetch, view, reserve
//
//   Common arguments
//     keys: uint8 (n, 32), C-contiguous.  addresses: uint64 (n * k,), lengths: uint64 (k,) or (n * k,): see Scattered
//     hint: Hint(family=0, session=0, turn=0, expected_return_ms=0, priority=0, end=False)
//     deadline_s: how long this call may take. Copies that have begun are finished even if it passes.
//
//   Synchronous, one native call each; every one returns a Result:
//     lookup(ns, keys, needs: list[tuple[int, int, int]], deadline_s)                     # needs: (shard, NeedKind, blocks); []: all of shard 0
//     put(ns, shard, keys, addresses, lengths, hint, deadline_s, parent: bytes = b"", metas: list[bytes] = [])
//         # one window: the caller cuts at info.window_bytes and keys_per_call_max; outcomes, blocks (stored), bytes
//     fetch(ns, shard, keys, addresses, lengths, hint, wait_s, deadline_s, lease_s=0.0, first_part=0, end_part: int | None = None)
//         # parts first_part..end_part of each block, which the destinations are of (None: to the last); one window: send the rest of the chain (the node cuts), destinations for all keys given; blocks, tiers, window_full, bytes,
//         # blocks_corrupt. Releases by itself (the frame goes out with the next call or 2 ms later).
//     view(ns, shard, keys, hint, wait_s, deadline_s, following=False)   # following: also parts of a block still being written; trusted only (else kRejected); hold, offsets, tickets, tiers, blocks; verified
//     hold(ns, shard, keys, hint, wait_s, deadline_s)   # one window, as view, of which nothing is looked at; trusted only; hold, tiers, blocks, window_full
//     call(method: int, body: bytes, deadline_s)        # a rare verb; body
//     tell_call(method: int, body: bytes) -> None       # one that nobody waits for; sent with the next call or 2 ms later
//     reserve(ns, shard, keys, hint, deadline_s, parent=b"", metas=[]) -> Reservation
//     flush() -> None                                   # sends what waits for the next call
//   Not answered, sent with the next call or 2 ms later:
//     fetched(ns, hint, blocks_asked, blocks_by_tier: tuple[int, int, int, int], blocks_failed, bytes, elapsed_ns) -> None   # once a get
//     release(holds: list[int]) -> None                 # never waits: of any thread, garbage collection included
//   Not answered, sent at once together with what waits:
//     corrupt(tickets: list[int]) -> None
//     quiet(session, incarnation) -> None               # of a former session that nothing of this process touches any more
//   array(offset, bytes) -> numpy uint8, read-only, over the mapping (kept mapped while the array lives); trusted only
//
//   class Reservation:       # in place, part by part
//     result: Result         # status, outcomes a key, offsets
//     granted: list[int]     # indices into keys
//     def array(self, index: int) -> numpy uint8, writable       # the block of keys[index]; trusted only
//     def write(self, part, addresses, lengths) -> Result   # copies that part of all granted blocks (in order), hashing it
//     def publish(self, part, deadline_s) -> Result          # parts in order; a part not written by write() is hashed where it lies
//     def seal(self, deadline_s) -> Result                   # publishes what is left; outcomes a granted block
//     def abort(self) -> None                                # idempotent; nothing writes into the slots after it
//
//   Submitted, completed through the eventfd, same arguments behind a token chosen by the caller (never reused while in flight):
//     submit_lookup(token, ...) submit_put(token, ...) submit_fetch(token, ...) submit_view(token, ...) submit_hold(token, ...) submit_call(token, ...) -> None
//     cancel(token) -> None            # completes kCancelled when memory is quiet, unless it was done already
//     completion_fd: int               # readable when there are some; take_completions() clears it
//     take_completions() -> list[Result]     # Result.token says whose
//   Memory behind addresses must live until the completion has been taken.
//
//   Result: token status field reason limit blocks blocks_corrupt window_full bytes hold outcomes: bytes tiers: bytes
//           tickets: list[int] offsets: list[int] parts_ready: list[int] body: bytes
//   Status (int enum): OK STALE_NAMESPACE REJECTED BAD_INPUT DENIED UNAVAILABLE LATE CANCELLED
//   PutOutcome: STORED HELD PENDING FULL TOO_LARGE LAPSED.  Tier: NONE MEMORY FILE OBJECT.  NeedKind: ALL LAST STATE.  HoldKind: LEASE VIEW PIN.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cmath>

#include "base/clock.hpp"
#include "door/reservation.hpp"
#include "kvstore_core_types.hpp"
#include "kvstore_tls.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore::bind {
namespace {

using namespace door;

constexpr double kLongest = 86'400.0;  // seconds; a deadline beyond it is this

Nanos nanos(double seconds, const char* name) {
  if (!(seconds >= 0)) throw nb::value_error((std::string(name) + ": 0 seconds or more").c_str());
  return static_cast<Nanos>(std::min(seconds, kLongest) * 1e9);
}
Nanos deadline_in(double seconds) { return monotonic_now() + nanos(seconds, "deadline_s"); }
std::uint32_t millis(double seconds, const char* name) { return static_cast<std::uint32_t>(nanos(seconds, name) / 1'000'000); }

Scattered scattered(const WordsIn& addresses, const WordsIn& lengths) {
  const auto a = words_of(addresses), l = words_of(lengths);
  return {{a.begin(), a.end()}, {l.begin(), l.end()}};
}

std::vector<Key> copy_keys(const KeysIn& keys) {
  const auto span = keys_of(keys);
  return {span.begin(), span.end()};
}

ReserveArguments reserve_arguments(NsId ns, std::uint16_t shard, const KeysIn& keys, const Hint& hint, const nb::bytes& parent,
                                   const std::vector<nb::bytes>& metas) {
  ReserveArguments arguments{ns, shard, copy_keys(keys), {}, metas_of(metas, keys.shape(0)), hint};
  if (parent.size() != 0) {
    const Key key = key_of(parent, "parent");
    arguments.parent.assign(key.bytes.begin(), key.bytes.end());
  }
  return arguments;
}

// ---- operations from arguments; made with the GIL held, because that is where arguments are wrong

std::unique_ptr<Operation> make_lookup(Session&, NsId ns, const KeysIn& keys, const std::vector<NeedTuple>& needs) {
  return std::make_unique<LookupOperation>(ns, keys_of(keys), needs_of(needs));
}
std::unique_ptr<Operation> make_call(std::uint32_t method, const nb::bytes& body) {
  return std::make_unique<CallOperation>(method, span_of(body));
}
std::unique_ptr<Operation> make_put(Session& session, NsId ns, std::uint16_t shard, const KeysIn& keys, const WordsIn& addresses,
                                    const WordsIn& lengths, const Hint& hint, const nb::bytes& parent,
                                    const std::vector<nb::bytes>& metas) {
  return std::make_unique<PutOperation>(reserve_arguments(ns, shard, keys, hint, parent, metas), session.parts_of(ns, shard),
                                        scattered(addresses, lengths));
}
std::unique_ptr<Operation> make_fetch(Session& session, NsId ns, std::uint16_t shard, const KeysIn& keys, const WordsIn& addresses,
                                      const WordsIn& lengths, const Hint& hint, double wait_s, double lease_s, std::uint32_t first_part,
                                      std::optional<std::uint32_t> end_part) {
  HoldArguments arguments{ns, shard, copy_keys(keys), HoldKind::kLease, false, hint, millis(wait_s, "wait_s"), millis(lease_s, "lease_s")};
  Parts parts = session.parts_of(ns, shard);
  const PartRange range = part_range(*parts, first_part, end_part);
  return std::make_unique<FetchOperation>(std::move(arguments), std::move(parts), scattered(addresses, lengths), range);
}
std::unique_ptr<Operation> make_hold(Session&, NsId ns, std::uint16_t shard, const KeysIn& keys, const Hint& hint, double wait_s) {
  return std::make_unique<HoldOperation>(
      HoldArguments{ns, shard, copy_keys(keys), HoldKind::kView, false, hint, millis(wait_s, "wait_s"), 0});
}
std::unique_ptr<Operation> make_view(Session& session, NsId ns, std::uint16_t shard, const KeysIn& keys, const Hint& hint, double wait_s,
                                     bool following) {
  HoldArguments arguments{ns, shard, copy_keys(keys), HoldKind::kView, following, hint, millis(wait_s, "wait_s"), 0};
  return std::make_unique<ViewOperation>(std::move(arguments), session.parts_of(ns, shard));
}

Result run(Session& session, Operation& operation, double deadline_s) {
  const Nanos deadline = deadline_in(deadline_s);
  nb::gil_scoped_release release;
  return session.run(operation, deadline);
}

void submit(Session& session, std::uint64_t token, std::unique_ptr<Operation> operation, double deadline_s) {
  const Nanos deadline = deadline_in(deadline_s);
  nb::gil_scoped_release release;
  session.submit(token, std::move(operation), deadline);
}

constexpr Nanos kTellNs = 1'000'000'000;  // a frame nobody answers waits no longer for a node that does not read

void tell_words(Session& session, Verb verb, const std::vector<std::uint64_t>& words) {
  FrameWriter body;
  body.put(static_cast<std::uint32_t>(words.size()));
  body.put(std::uint32_t{0});
  body.append(words.data(), words.size() * sizeof(std::uint64_t));
  nb::gil_scoped_release release;
  session.tell(verb, body.bytes, monotonic_now() + kTellNs);
}

void fetched(Session& session, NsId ns, const Hint& hint, std::uint32_t asked,
             const std::tuple<std::uint32_t, std::uint32_t, std::uint32_t, std::uint32_t>& by_tier, std::uint32_t failed,
             std::uint64_t bytes, std::uint64_t elapsed_ns) {
  FetchedRequest told;
  told.ns = ns;
  told.blocks_asked = asked;
  std::tie(told.blocks_by_tier[0], told.blocks_by_tier[1], told.blocks_by_tier[2], told.blocks_by_tier[3]) = by_tier;
  told.blocks_failed = failed;
  told.bytes = bytes;
  told.elapsed_ns = elapsed_ns;
  told.hint = to_wire(hint);
  FrameWriter body;
  body.put(told);
  session.tell_soon(Verb::kFetched, body.bytes);  // a short lock: not worth giving the GIL back for
}

void tell_call(Session& session, std::uint32_t method, const nb::bytes& message) {
  FrameWriter body;
  body.put(CallRequest{method, 0});
  body.append(message.data(), message.size());
  session.tell_soon(Verb::kCall, body.bytes);
}

void release_holds(Session& session, const std::vector<HoldId>& holds) {
  FrameWriter body;
  body.put(ReleaseRequest{static_cast<std::uint32_t>(holds.size()), 0});
  body.append(holds.data(), holds.size() * sizeof(HoldId));
  session.tell_soon(Verb::kRelease, body.bytes);
}

void quiet(Session& session, std::uint64_t former, std::uint64_t incarnation) {
  FrameWriter body;
  body.put(QuietRequest{former, incarnation});
  nb::gil_scoped_release release;
  session.tell(Verb::kQuiet, body.bytes, monotonic_now() + kTellNs);
}

// What an array over the segment keeps: the mapping, and the channel, whose end the node takes for the end of all arrays.
struct Kept {
  std::shared_ptr<MappedSegment> segment;
  std::shared_ptr<Channel> channel;
  std::shared_ptr<Reservation> reservation;  // null for views
};
nb::capsule keep(Kept&& kept) {
  return nb::capsule(new Kept(std::move(kept)), [](void* p) noexcept {
    nb::gil_scoped_release release;
    delete static_cast<Kept*>(p);
  });
}

using ReadOnly = nb::ndarray<nb::numpy, const std::uint8_t, nb::ndim<1>>;
using Writable = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>;

ReadOnly array(Session& session, std::uint64_t offset, std::uint64_t bytes) {
  const std::shared_ptr<MappedSegment> segment = session.segment();
  if (!segment) throw nb::value_error("array: this session maps no segment");
  const std::byte* at = segment->readable(offset, bytes);
  if (at == nullptr) throw nb::value_error("offset: beyond the segment");
  return ReadOnly(reinterpret_cast<const std::uint8_t*>(at), {static_cast<std::size_t>(bytes)},
                  keep({segment, session.channel(), nullptr}));
}

Writable slot_array(const std::shared_ptr<Reservation>& self, std::uint32_t index) {
  const std::uint64_t offset = self->offset_of(index);
  const std::shared_ptr<MappedSegment> segment = self->session()->segment();
  std::byte* at = segment->writable(offset, self->block_bytes());
  return Writable(reinterpret_cast<std::uint8_t*>(at), {static_cast<std::size_t>(self->block_bytes())},
                  keep({segment, self->session()->channel(), self}));
}

std::shared_ptr<Session> make_session(const std::string& path, const nb::bytes& token, double connect_s, std::uint32_t workers, bool verify,
                                      const std::string& host, std::uint16_t port, const std::optional<TlsFiles>& tls) {
  SessionConfig config;
  config.path = path;
  config.host = host;
  config.port = port;
  config.tls = context_of(tls);
  config.token.assign(token.c_str(), token.size());
  config.connect_ms = static_cast<std::uint64_t>(nanos(connect_s, "connect_s") / 1'000'000);
  config.workers = workers;
  config.verify = verify;
  try {
    nb::gil_scoped_release release;
    return std::make_shared<Session>(config);
  } catch (const Refused& refused) {
    PyErr_SetString(refused.status == Status::kDenied ? PyExc_PermissionError : PyExc_ConnectionError, refused.what());
  } catch (const std::runtime_error& error) {  // of the system, or of OpenSSL
    PyErr_SetString(PyExc_ConnectionError, error.what());
  }
  throw nb::python_error();
}

void bind_results(nb::module_& m) {
  nb::enum_<PutOutcome>(m, "PutOutcome", nb::is_arithmetic())
      .value("STORED", PutOutcome::kStored).value("HELD", PutOutcome::kHeld).value("PENDING", PutOutcome::kPending)
      .value("FULL", PutOutcome::kFull).value("TOO_LARGE", PutOutcome::kTooLarge).value("LAPSED", PutOutcome::kLapsed);
  nb::class_<Result>(m, "Result", "What came of a call; see native/door/session.hpp. A miss is a shorter number.")
      .def_ro("token", &Result::token)
      .def_prop_ro("status", [](const Result& self) { return static_cast<int>(self.status); })
      .def_ro("field", &Result::field).def_ro("reason", &Result::reason).def_ro("limit", &Result::limit)
      .def_ro("blocks", &Result::blocks).def_ro("blocks_corrupt", &Result::blocks_corrupt)
      .def_ro("window_full", &Result::window_full).def_ro("bytes", &Result::bytes).def_ro("fetch_s", &Result::fetch_s)
      .def_ro("hold", &Result::hold)
      .def_prop_ro("outcomes", [](const Result& self) { return bytes_of(self.outcomes); }, nb::for_getter(nb::sig("def outcomes(self, /) -> Raw")))
      .def_prop_ro("tiers", [](const Result& self) { return bytes_of(self.tiers); }, nb::for_getter(nb::sig("def tiers(self, /) -> Raw")))
      .def_ro("tickets", &Result::tickets).def_ro("offsets", &Result::offsets).def_ro("parts_ready", &Result::parts_ready)
      .def_prop_ro("body", [](const Result& self) { return bytes_of(self.body); }, nb::for_getter(nb::sig("def body(self, /) -> Raw")));
  nb::class_<SessionInfo>(m, "SessionInfo", "What the node said in its HELLO.")
      .def_ro("trusted", &SessionInfo::trusted).def_ro("session", &SessionInfo::session)
      .def_ro("incarnation", &SessionInfo::incarnation).def_ro("payload_bytes", &SessionInfo::payload_bytes)
      .def_ro("window_bytes", &SessionInfo::window_bytes).def_ro("keys_per_call_max", &SessionInfo::keys_per_call_max)
      .def_ro("frame_bytes_max", &SessionInfo::frame_bytes_max).def_ro("lease_ms_max", &SessionInfo::lease_ms_max)
      .def_ro("hold_wait_ms_max", &SessionInfo::hold_wait_ms_max).def_ro("reserve_lapse_ms", &SessionInfo::reserve_lapse_ms)
      .def_ro("holds_per_connection_max", &SessionInfo::holds_per_connection_max)
      .def_ro("meta_bytes_max", &SessionInfo::meta_bytes_max);
}

void bind_reservation(nb::module_& m) {
  nb::class_<Reservation>(m, "Reservation", "Slots to be filled part by part; ended by seal or abort.")
      .def_prop_ro("result", [](const Reservation& self) { return self.result(); })
      .def_prop_ro("granted", [](const Reservation& self) { return self.granted(); })
      .def("array", &slot_array, "index"_a)
      .def("write", [](Reservation& self, std::uint32_t part, const WordsIn& addresses, const WordsIn& lengths) {
             const Scattered from = scattered(addresses, lengths);
             nb::gil_scoped_release release;
             return self.write(part, from);
           }, "part"_a, "addresses"_a, "lengths"_a)
      .def("publish", [](Reservation& self, std::uint32_t part, double deadline_s) {
             const Nanos deadline = deadline_in(deadline_s);
             nb::gil_scoped_release release;
             return self.publish(part, deadline);
           }, "part"_a, "deadline_s"_a)
      .def("seal", [](Reservation& self, double deadline_s) {
             const Nanos deadline = deadline_in(deadline_s);
             nb::gil_scoped_release release;
             return self.seal(deadline);
           }, "deadline_s"_a)
      .def("abort", &Reservation::abort, Release());
}

void bind_calls(nb::class_<Session>& session) {
  session
      .def("lookup", [](Session& self, NsId ns, const KeysIn& keys, const std::vector<NeedTuple>& needs, double deadline_s) {
             LookupOperation operation(ns, keys_of(keys), needs_of(needs));
             return run(self, operation, deadline_s);
           }, "ns"_a, "keys"_a, "needs"_a, "deadline_s"_a)
      .def("put", [](Session& self, NsId ns, std::uint16_t shard, const KeysIn& keys, const WordsIn& addresses, const WordsIn& lengths,
                     const Hint& hint, double deadline_s, const nb::bytes& parent, const std::vector<nb::bytes>& metas) {
             const auto operation = make_put(self, ns, shard, keys, addresses, lengths, hint, parent, metas);
             return run(self, *operation, deadline_s);
           }, "ns"_a, "shard"_a, "keys"_a, "addresses"_a, "lengths"_a, "hint"_a, "deadline_s"_a, "parent"_a = nb::bytes(""),
           "metas"_a = std::vector<nb::bytes>{})
      .def("fetch", [](Session& self, NsId ns, std::uint16_t shard, const KeysIn& keys, const WordsIn& addresses, const WordsIn& lengths,
                       const Hint& hint, double wait_s, double deadline_s, double lease_s, std::uint32_t first_part,
                       std::optional<std::uint32_t> end_part) {
             const auto operation = make_fetch(self, ns, shard, keys, addresses, lengths, hint, wait_s, lease_s, first_part, end_part);
             return run(self, *operation, deadline_s);
           }, "ns"_a, "shard"_a, "keys"_a, "addresses"_a, "lengths"_a, "hint"_a, "wait_s"_a, "deadline_s"_a, "lease_s"_a = 0.0,
           "first_part"_a = 0, "end_part"_a = nb::none())
      .def("hold", [](Session& self, NsId ns, std::uint16_t shard, const KeysIn& keys, const Hint& hint, double wait_s, double deadline_s) {
             const auto operation = make_hold(self, ns, shard, keys, hint, wait_s);
             return run(self, *operation, deadline_s);
           }, "ns"_a, "shard"_a, "keys"_a, "hint"_a, "wait_s"_a, "deadline_s"_a)
      .def("view", [](Session& self, NsId ns, std::uint16_t shard, const KeysIn& keys, const Hint& hint, double wait_s, double deadline_s,
                      bool following) {
             const auto operation = make_view(self, ns, shard, keys, hint, wait_s, following);
             return run(self, *operation, deadline_s);
           }, "ns"_a, "shard"_a, "keys"_a, "hint"_a, "wait_s"_a, "deadline_s"_a, "following"_a = false)
      .def("call", [](Session& self, std::uint32_t method, const nb::bytes& body, double deadline_s) {
             const auto operation = make_call(method, body);
             return run(self, *operation, deadline_s);
           }, "method"_a, "body"_a, "deadline_s"_a)
      .def("reserve", [](const std::shared_ptr<Session>& self, NsId ns, std::uint16_t shard, const KeysIn& keys, const Hint& hint,
                         double deadline_s, const nb::bytes& parent, const std::vector<nb::bytes>& metas) {
             auto arguments = reserve_arguments(ns, shard, keys, hint, parent, metas);
             const Nanos deadline = deadline_in(deadline_s);
             nb::gil_scoped_release release;
             return std::make_shared<Reservation>(self, std::move(arguments), deadline);
           }, "ns"_a, "shard"_a, "keys"_a, "hint"_a, "deadline_s"_a, "parent"_a = nb::bytes(""), "metas"_a = std::vector<nb::bytes>{});
}

void bind_submitted(nb::class_<Session>& session) {
  session
      .def("submit_lookup", [](Session& self, std::uint64_t token, NsId ns, const KeysIn& keys, const std::vector<NeedTuple>& needs,
                               double deadline_s) { submit(self, token, make_lookup(self, ns, keys, needs), deadline_s); },
           "token"_a, "ns"_a, "keys"_a, "needs"_a, "deadline_s"_a)
      .def("submit_put", [](Session& self, std::uint64_t token, NsId ns, std::uint16_t shard, const KeysIn& keys, const WordsIn& addresses,
                            const WordsIn& lengths, const Hint& hint, double deadline_s, const nb::bytes& parent,
                            const std::vector<nb::bytes>& metas) {
             submit(self, token, make_put(self, ns, shard, keys, addresses, lengths, hint, parent, metas), deadline_s);
           }, "token"_a, "ns"_a, "shard"_a, "keys"_a, "addresses"_a, "lengths"_a, "hint"_a, "deadline_s"_a,
           "parent"_a = nb::bytes(""), "metas"_a = std::vector<nb::bytes>{})
      .def("submit_fetch", [](Session& self, std::uint64_t token, NsId ns, std::uint16_t shard, const KeysIn& keys, const WordsIn& addresses,
                              const WordsIn& lengths, const Hint& hint, double wait_s, double deadline_s, double lease_s,
                              std::uint32_t first_part, std::optional<std::uint32_t> end_part) {
             submit(self, token, make_fetch(self, ns, shard, keys, addresses, lengths, hint, wait_s, lease_s, first_part, end_part),
                    deadline_s);
           }, "token"_a, "ns"_a, "shard"_a, "keys"_a, "addresses"_a, "lengths"_a, "hint"_a, "wait_s"_a, "deadline_s"_a, "lease_s"_a = 0.0,
           "first_part"_a = 0, "end_part"_a = nb::none())
      .def("submit_hold", [](Session& self, std::uint64_t token, NsId ns, std::uint16_t shard, const KeysIn& keys, const Hint& hint,
                             double wait_s, double deadline_s) {
             submit(self, token, make_hold(self, ns, shard, keys, hint, wait_s), deadline_s);
           }, "token"_a, "ns"_a, "shard"_a, "keys"_a, "hint"_a, "wait_s"_a, "deadline_s"_a)
      .def("submit_view", [](Session& self, std::uint64_t token, NsId ns, std::uint16_t shard, const KeysIn& keys, const Hint& hint,
                             double wait_s, double deadline_s, bool following) {
             submit(self, token, make_view(self, ns, shard, keys, hint, wait_s, following), deadline_s);
           }, "token"_a, "ns"_a, "shard"_a, "keys"_a, "hint"_a, "wait_s"_a, "deadline_s"_a, "following"_a = false)
      .def("submit_call", [](Session& self, std::uint64_t token, std::uint32_t method, const nb::bytes& body, double deadline_s) {
             submit(self, token, make_call(method, body), deadline_s);
           }, "token"_a, "method"_a, "body"_a, "deadline_s"_a)
      .def("cancel", &Session::cancel, Release(), "token"_a)
      .def_prop_ro("completion_fd", &Session::completion_fd)
      .def("take_completions", &Session::take_completions);
}

}  // namespace

void bind_session(nb::module_& m) {
  bind_results(m);
  bind_reservation(m);
  auto session = nb::class_<Session>(m, "Session", "A client's connection to the door of its node; see native/door/session.hpp.");
  session.def(nb::new_(&make_session), "path"_a = "", "token"_a = nb::bytes(""), "connect_s"_a = 5.0, "workers"_a = 1, "verify"_a = true, nb::kw_only(),
              "host"_a = "", "port"_a = 0, "tls"_a = nb::none(),
              "To the Unix socket `path`, or by TCP to `host`, a name or an address, and `port`. With `tls` the node's certificate must be for "
              "`host`. ConnectionError: not reached; PermissionError: not let in.")
      .def_prop_ro("info", [](Session& self) { return self.info(); })
      .def_prop_ro("closed", &Session::closed)
      .def("close", &Session::close, Release())
      .def("describe", &Session::describe, "ns"_a, "shards"_a)
      .def("array", &array, "offset"_a, "bytes"_a)
      .def("flush", [](Session& self) { self.flush(monotonic_now() + kTellNs); }, Release())
      .def("fetched", &fetched, "ns"_a, "hint"_a, "blocks_asked"_a, "blocks_by_tier"_a, "blocks_failed"_a, "bytes"_a, "elapsed_ns"_a)
      .def("tell_call", &tell_call, "method"_a, "body"_a)
      .def("release", &release_holds, "holds"_a)
      .def("corrupt", [](Session& self, const std::vector<std::uint64_t>& tickets) { tell_words(self, Verb::kCorrupt, tickets); }, "tickets"_a)
      .def("quiet", &quiet, "session"_a, "incarnation"_a);
  bind_calls(session);
  bind_submitted(session);
}

}  // namespace kvstore::bind
