// Python surface of the door (native/door/server.hpp).
//
//   class Door:
//     def __init__(self, core: NodeCore, listener: int, payload_fd: int, payload_bytes: int, *, trusted_uids: list[int], allowed_uids=[],
//                  connections_max=, frame_bytes_max=, queue_bytes_max=, requests_max=, requests_per_connection_max=, hold_wait_ms_max=,
//                  hello_ms_max=, stall_ms_max=, spin_us_max=, streamed_bytes_max=) -> None
//     start(), stop()
//     set_tokens(list[tuple[bytes, int]])            # SHA-256 of each token, and the number that requests of its bearers carry;
//                                                    # ends the connections of those whose number is not there any more
//     allow(owner, ns) -> bool; disallow(ns)
//     request_fd: int; take_requests(max) -> list[Request]
//         # Request: owner request method trusted gone uid token (-1: none) body: bytes
//         # gone: that owner's connection has ended, there is nothing to answer
//     answer(owner, request, body: bytes) -> bool
//     answer_error(owner, request, status: int, field: str, reason: str, limit: int = 0) -> bool
//     stats() -> dict[str, int]
//   Methods of CALL are numbers Python agrees on with itself (kvstore/wire); the door does not look at them.
#include <nanobind/stl/string.h>

#include "buffers.hpp"
#include "door/server.hpp"
#include "kvstore_core_class.hpp"
#include "kvstore_core_types.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore::bind {
namespace {

using door::Door;

void make_door(Door* self, CoreClass& core, int listener, int payload_fd, std::uint64_t payload_bytes, const std::vector<uid_t>& trusted_uids,
                const std::vector<uid_t>& allowed_uids, std::uint32_t connections_max, std::uint32_t frame_bytes_max, std::uint32_t queue_bytes_max,
                std::uint32_t requests_max, std::uint32_t requests_per_connection_max, std::uint32_t hold_wait_ms_max,
                std::uint32_t hello_ms_max, std::uint32_t stall_ms_max, std::uint32_t spin_us_max, std::uint64_t streamed_bytes_max) {
  door::DoorConfig config;
  config.trusted_uids = trusted_uids;
  config.allowed_uids = allowed_uids;
  config.connections_max = connections_max;
  config.frame_bytes_max = frame_bytes_max;
  config.queue_bytes_max = queue_bytes_max;
  config.requests_max = requests_max;
  config.requests_per_connection_max = requests_per_connection_max;
  config.hold_wait_ms_max = hold_wait_ms_max;
  config.hello_ms_max = hello_ms_max;
  config.stall_ms_max = stall_ms_max;
  config.spin_us_max = spin_us_max;
  config.streamed_bytes_max = streamed_bytes_max;
  new (self) Door(core.core, listener, payload_fd, payload_bytes, config);
}

void set_tokens(Door& self, const std::vector<std::pair<nb::bytes, std::int64_t>>& tokens) {
  std::vector<door::TokenDigest> digests;
  for (const auto& [digest, number] : tokens) {
    const Key key = key_of(digest, "tokens");
    door::TokenDigest one;
    std::memcpy(one.sha256, key.bytes.data(), sizeof one.sha256);
    one.token = number;
    digests.push_back(one);
  }
  self.set_tokens(std::move(digests));
}

nb::dict stats_of(const door::DoorStats& s) {
  nb::dict d;
  const std::pair<const char*, std::uint64_t> rows[] = {
      {"connections", s.connections}, {"trusted", s.trusted}, {"accepted", s.accepted}, {"refused_full", s.refused_full},
      {"refused_token", s.refused_token}, {"cut_token", s.cut_token}, {"cut_malformed", s.cut_malformed}, {"cut_slow", s.cut_slow}, {"cut_hello", s.cut_hello},
      {"frames", s.frames}, {"bytes_in", s.bytes_in}, {"bytes_out", s.bytes_out}, {"requests_dropped", s.requests_dropped}};
  for (const auto& [name, value] : rows) d[name] = value;
  return d;
}

}  // namespace

void bind_door(nb::module_& m) {
  using door::Request;
  using door::Status;
  nb::enum_<Status>(m, "Status", nb::is_arithmetic())
      .value("OK", Status::kOk).value("STALE_NAMESPACE", Status::kStaleNamespace).value("REJECTED", Status::kRejected)
      .value("BAD_INPUT", Status::kBadInput).value("DENIED", Status::kDenied).value("GONE", Status::kGone)
      .value("UNAVAILABLE", Status::kUnavailable).value("LATE", Status::kLate).value("CANCELLED", Status::kCancelled);
  nb::class_<Request>(m, "Request", "A rare verb that a connection asks for; gone: the connection has ended.")
      .def_ro("owner", &Request::owner).def_ro("request", &Request::request).def_ro("method", &Request::method)
      .def_ro("trusted", &Request::trusted).def_ro("gone", &Request::gone).def_ro("uid", &Request::uid)
      .def_ro("token", &Request::token)
      .def_prop_ro("body", [](const Request& self) { return bytes_of(self.body); });
  const door::DoorConfig d;
  nb::class_<Door>(m, "Door", "The framed socket; see native/door/server.hpp.")
      .def("__init__", &make_door, nb::keep_alive<1, 2>(), "core"_a, "listener"_a, "payload_fd"_a, "payload_bytes"_a, nb::kw_only(),
           "trusted_uids"_a, "allowed_uids"_a = d.allowed_uids, "connections_max"_a = d.connections_max,
           "frame_bytes_max"_a = d.frame_bytes_max, "queue_bytes_max"_a = d.queue_bytes_max, "requests_max"_a = d.requests_max,
           "requests_per_connection_max"_a = d.requests_per_connection_max, "hold_wait_ms_max"_a = d.hold_wait_ms_max,
           "hello_ms_max"_a = d.hello_ms_max, "stall_ms_max"_a = d.stall_ms_max, "spin_us_max"_a = d.spin_us_max,
           "streamed_bytes_max"_a = d.streamed_bytes_max)
      .def("start", &Door::start, nb::call_guard<nb::gil_scoped_release>())
      .def("stop", &Door::stop, nb::call_guard<nb::gil_scoped_release>())
      .def("set_tokens", &set_tokens, "tokens"_a)
      .def("allow", &Door::allow, "owner"_a, "ns"_a)
      .def("disallow", &Door::disallow, "ns"_a)
      .def_prop_ro("request_fd", &Door::request_fd)
      .def("take_requests", &Door::take_requests, "max"_a)
      .def("answer", [](Door& self, OwnerId owner, std::uint64_t request, const nb::bytes& body) {
             return self.answer(owner, request, span_of(body));
           }, "owner"_a, "request"_a, "body"_a)
      .def("answer_error", [](Door& self, OwnerId owner, std::uint64_t request, int status, const std::string& field,
                              const std::string& reason, std::uint64_t limit) {
             if (status < 1 || status > 5) throw nb::value_error("status: one that says what is wrong, and travels");
             return self.answer_error(owner, request, static_cast<Status>(status), field.substr(0, 255), reason.substr(0, 4096), limit);
           }, "owner"_a, "request"_a, "status"_a, "field"_a, "reason"_a, "limit"_a = 0)
      .def("stats", [](Door& self) { return stats_of(self.stats()); }, nb::sig("def stats(self) -> dict[str, int]"));
}

}  // namespace kvstore::bind
