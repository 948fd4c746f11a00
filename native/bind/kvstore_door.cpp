// Python surface of the door (native/door/server.hpp).
//
//   class Door:
//     def __init__(self, core: NodeCore, listener: int, payload_fd: int, payload_bytes: int, *, trusted_uids: list[int], allowed_uids=[],
//                  anonymous_over_tcp=False, certified_over_tcp=False, connections_max=, frame_bytes_max=, queue_bytes_max=, requests_max=, requests_per_connection_max=, hold_wait_ms_max=,
//                  hello_ms_max=, stall_ms_max=, spin_us_max=) -> None
//     listen_tcp(listener: int, tls: Tls | None = None)   # before start, once; tls: with a certificate; with a CA it asks for theirs
//     renew_tls(tls: Tls | None)                     # for connections from now on
//     start(), stop()
//     set_bearers(tokens: list[tuple[bytes, int]], certificates: list[tuple[str, int]] = [])
//                                                    # SHA-256 of each token, name in each certificate, and the number that requests
//                                                    # of their bearers carry; ends the connections of numbers that are gone
//     allow(owner, ns) -> bool; disallow(ns); trust_until(until); set_draining(bool)
//     answer_locates(owner, method, claims: ClaimTable)   # of this connection, as far as claims.answer() does
//     request_fd: int; take_requests(max) -> list[Request]
//         # Request: owner request method trusted unanswered gone remote (by TCP: uid says nothing) uid token (-1: none) names (of the
//         # certificate it showed) body: bytes
//         # gone: that owner's connection has ended, there is nothing to answer
//     answer(owner, request, body: bytes) -> bool
//     answered(owner) -> None                        # an unanswered one is done
//     answer_error(owner, request, status: int, field: str, reason: str, limit: int = 0) -> bool
//     stats() -> dict[str, int]
//   class Tls:               # for the door and for Session: what is shown and what is believed; reads the files once
//     def __init__(self, certificate: str = "", key: str = "", ca: str = "") -> None
//         # RuntimeError names the file at fault, or what is not installed. ca "": a client believes whom the system trusts,
//         # and a server asks for no certificate
//   Methods of CALL are numbers Python agrees on with itself (kvstore/wire); the door does not look at them, but for the one of answer_locates.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "buffers.hpp"
#include "door/server.hpp"
#include "kvstore_claims.hpp"
#include "kvstore_core_class.hpp"
#include "kvstore_core_types.hpp"
#include "kvstore_tls.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore::bind {
namespace {

using door::Door;

void make_door(Door* self, CoreClass& core, int listener, int payload_fd, std::uint64_t payload_bytes, const std::vector<uid_t>& trusted_uids,
                const std::vector<uid_t>& allowed_uids, bool anonymous_over_tcp, bool certified_over_tcp, std::uint32_t connections_max, std::uint32_t frame_bytes_max, std::uint32_t queue_bytes_max,
                std::uint32_t requests_max, std::uint32_t requests_per_connection_max, std::uint32_t hold_wait_ms_max,
                std::uint32_t hello_ms_max, std::uint32_t stall_ms_max, std::uint32_t spin_us_max) {
  door::DoorConfig config;
  config.trusted_uids = trusted_uids;
  config.allowed_uids = allowed_uids;
  config.anonymous_over_tcp = anonymous_over_tcp;
  config.certified_over_tcp = certified_over_tcp;
  config.connections_max = connections_max;
  config.frame_bytes_max = frame_bytes_max;
  config.queue_bytes_max = queue_bytes_max;
  config.requests_max = requests_max;
  config.requests_per_connection_max = requests_per_connection_max;
  config.hold_wait_ms_max = hold_wait_ms_max;
  config.hello_ms_max = hello_ms_max;
  config.stall_ms_max = stall_ms_max;
  config.spin_us_max = spin_us_max;
  new (self) Door(core.core, listener, payload_fd, payload_bytes, config);
}

void set_bearers(Door& self, const std::vector<std::pair<nb::bytes, std::int64_t>>& tokens,
                 const std::vector<std::pair<std::string, std::int64_t>>& certificates) {
  std::vector<door::TokenDigest> digests;
  for (const auto& [digest, number] : tokens) {
    const Key key = key_of(digest, "tokens");
    door::TokenDigest one;
    std::memcpy(one.sha256, key.bytes.data(), sizeof one.sha256);
    one.token = number;
    digests.push_back(one);
  }
  std::vector<door::CertificateName> names;
  for (const auto& [name, number] : certificates) names.push_back({name, number});
  self.set_bearers(std::move(digests), std::move(names));
}

// What a certificate holds need not be text.
nb::list names_of(const door::Request& self) {
  nb::list names;
  if (self.names)
    for (const std::string& name : *self.names) names.append(nb::steal(PyUnicode_DecodeUTF8(name.data(), static_cast<Py_ssize_t>(name.size()), "replace")));
  return names;
}

nb::dict stats_of(const door::DoorStats& s) {
  nb::dict d;
  const std::pair<const char*, std::uint64_t> rows[] = {
      {"connections", s.connections}, {"trusted", s.trusted}, {"remote", s.remote}, {"accepted", s.accepted}, {"refused_full", s.refused_full},
      {"refused_token", s.refused_token}, {"cut_token", s.cut_token}, {"cut_malformed", s.cut_malformed}, {"cut_slow", s.cut_slow}, {"cut_hello", s.cut_hello}, {"cut_tls", s.cut_tls},
      {"frames", s.frames}, {"located", s.located}, {"bytes_in", s.bytes_in}, {"bytes_out", s.bytes_out}, {"requests_dropped", s.requests_dropped}};
  for (const auto& [name, value] : rows) d[name] = value;
  return d;
}

}  // namespace

void bind_door(nb::module_& m) {
  using door::Request;
  using door::Status;
  nb::enum_<Status>(m, "Status", nb::is_arithmetic())
      .value("OK", Status::kOk).value("STALE_NAMESPACE", Status::kStaleNamespace).value("REJECTED", Status::kRejected)
      .value("BAD_INPUT", Status::kBadInput).value("DENIED", Status::kDenied)
      .value("UNAVAILABLE", Status::kUnavailable).value("LATE", Status::kLate).value("CANCELLED", Status::kCancelled);
  nb::class_<Request>(m, "Request", "A rare verb that a connection asks for; gone: the connection has ended.")
      .def_ro("owner", &Request::owner).def_ro("request", &Request::request).def_ro("method", &Request::method)
      .def_ro("trusted", &Request::trusted).def_ro("unanswered", &Request::unanswered)
      .def_ro("gone", &Request::gone).def_ro("remote", &Request::remote)
      .def_ro("uid", &Request::uid).def_ro("token", &Request::token)
      .def_prop_ro("names", &names_of, nb::for_getter(nb::sig("def names(self) -> list[str]")))
      .def_prop_ro("body", [](const Request& self) { return bytes_of(self.body); });
  nb::class_<TlsFiles>(m, "Tls", "What one end of TLS shows and believes; see native/tcp/tls.hpp.")
      .def("__init__", [](TlsFiles* self, const std::string& certificate, const std::string& key, const std::string& ca) {
             new (self) TlsFiles{std::make_shared<const tcp::TlsContext>(certificate, key, ca)};
           }, "certificate"_a = "", "key"_a = "", "ca"_a = "");
  const door::DoorConfig d;
  nb::class_<Door>(m, "Door", "The framed socket; see native/door/server.hpp.")
      .def("__init__", &make_door, nb::keep_alive<1, 2>(), "core"_a, "listener"_a, "payload_fd"_a, "payload_bytes"_a, nb::kw_only(),
           "trusted_uids"_a, "allowed_uids"_a = d.allowed_uids, "anonymous_over_tcp"_a = d.anonymous_over_tcp,
           "certified_over_tcp"_a = d.certified_over_tcp, "connections_max"_a = d.connections_max,
           "frame_bytes_max"_a = d.frame_bytes_max, "queue_bytes_max"_a = d.queue_bytes_max, "requests_max"_a = d.requests_max,
           "requests_per_connection_max"_a = d.requests_per_connection_max, "hold_wait_ms_max"_a = d.hold_wait_ms_max,
           "hello_ms_max"_a = d.hello_ms_max, "stall_ms_max"_a = d.stall_ms_max, "spin_us_max"_a = d.spin_us_max)
      .def("start", &Door::start, nb::call_guard<nb::gil_scoped_release>())
      .def("stop", &Door::stop, nb::call_guard<nb::gil_scoped_release>())
      .def("listen_tcp", [](Door& self, int listener, const std::optional<TlsFiles>& tls) { self.listen_tcp(listener, context_of(tls)); },
           "listener"_a, "tls"_a = nb::none())
      .def("renew_tls", [](Door& self, const std::optional<TlsFiles>& tls) { self.renew_tls(context_of(tls)); }, "tls"_a.none())
      .def("set_bearers", &set_bearers, "tokens"_a, "certificates"_a = std::vector<std::pair<std::string, std::int64_t>>{})
      .def("allow", &Door::allow, "owner"_a, "ns"_a)
      .def("disallow", &Door::disallow, "ns"_a)
      .def("trust_until", &Door::trust_until, "until"_a)
      .def("answer_locates", [](Door& self, OwnerId owner, std::uint32_t method, const Claims& claims) {
             self.answer_locates(owner, method, claims.desk);
           }, "owner"_a, "method"_a, "claims"_a)
      .def("set_draining", &Door::set_draining, "draining"_a)
      .def_prop_ro("request_fd", &Door::request_fd)
      .def("take_requests", &Door::take_requests, "max"_a)
      .def("answer", [](Door& self, OwnerId owner, std::uint64_t request, const nb::bytes& body) {
             return self.answer(owner, request, span_of(body));
           }, "owner"_a, "request"_a, "body"_a)
      .def("answered", &Door::answered, "owner"_a)
      .def("answer_error", [](Door& self, OwnerId owner, std::uint64_t request, int status, const std::string& field,
                              const std::string& reason, std::uint64_t limit) {
             if (status < 1 || status > 4) throw nb::value_error("status: one that says what is wrong, and travels");
             return self.answer_error(owner, request, static_cast<Status>(status), field.substr(0, 255), reason.substr(0, 4096), limit);
           }, "owner"_a, "request"_a, "status"_a, "field"_a, "reason"_a, "limit"_a = 0)
      .def("stats", [](Door& self) { return stats_of(self.stats()); }, nb::sig("def stats(self) -> dict[str, int]"));
}

}  // namespace kvstore::bind
