// The TCP engine and its jobs. Addresses are integers: Python keeps what they point at alive until a job is finished.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <chrono>

#include "tcp/engine.hpp"
#include "tcp/tls.hpp"
#include "transfer_rows.hpp"

namespace kvstore::bind {

using namespace nb::literals;
using namespace kvstore::tcp;

namespace {

// Held natively: a worker thread that dropped the last reference must not wait for the interpreter.
struct TcpJobHandle {
  std::shared_ptr<Job> held;
};

template <std::size_t N>
std::array<std::uint8_t, N> exactly(nb::handle object, const char* name) {
  const Buffer buffer(object, name);
  std::array<std::uint8_t, N> bytes;
  if (buffer.size() != N) throw nb::value_error((std::string(name) + " must be " + std::to_string(N) + " bytes").c_str());
  std::memcpy(bytes.data(), buffer.data(), N);
  return bytes;
}

struct TlsHandle {
  std::shared_ptr<const TlsContext> held;
};

using AccessArguments = std::tuple<std::uint32_t, std::uint32_t, nb::bytes>;  // slot, generation, proof

std::vector<Access> accesses_of(const std::vector<AccessArguments>& given) {
  std::vector<Access> accesses;
  for (const auto& [slot, generation, proof] : given) accesses.push_back({slot, generation, exactly<kProofBytes>(proof, "proof")});
  return accesses;
}

void bind_jobs(nb::module_& m) {
  nb::class_<TcpJobHandle>(m, "TcpJob")
      .def(
          "__init__",
          [](TcpJobHandle* self, std::uint64_t token, bool writing, const std::vector<Local>& locals,
             const std::vector<AccessArguments>& accesses, const Table<5>& rows, const Table<4>& slices, const Column& parts) {
            std::vector<LocalSpan> spans;
            for (const auto& [address, bytes, writable] : locals) spans.push_back({at(address), bytes, writable});
            new (self) TcpJobHandle{std::make_shared<Job>(token, writing ? Direction::kWrite : Direction::kRead, std::move(spans),
                                                          accesses_of(accesses), layout_of(rows, slices, parts))};
          },
          "token"_a, "writing"_a, "locals"_a, "accesses"_a, "rows"_a, "slices"_a, "parts"_a)
      .def_static(
          "probe",
          [](std::uint64_t token, const std::vector<AccessArguments>& accesses) {
            return TcpJobHandle{std::make_shared<Job>(token, accesses_of(accesses))};
          },
          "token"_a, "accesses"_a, "Moves nothing; its states say of each access whether it is live.")
      .def_prop_ro("whole", [](const TcpJobHandle& self) { return self.held->layout().whole(); })
      .def("states", [](const TcpJobHandle& self) { return copied(self.held->states()); })
      .def("leaves", [](const TcpJobHandle& self) { return copied(self.held->layout().leaves()); })
      .def("checksums", [](const TcpJobHandle& self) { return copied(self.held->layout().checksums()); });
}

void bind_engine(nb::module_& m) {
  nb::class_<Engine>(m, "TcpEngine")
      .def(
          "__init__",
          [](Engine* self, std::uint32_t workers, std::uint32_t grants_max, std::uint32_t requests_max, double spin_s_max,
             nb::bytes incarnation) {
            new (self) Engine({workers, grants_max, requests_max, static_cast<std::int64_t>(spin_s_max * 1e9), exactly<16>(incarnation, "incarnation")});
          },
          "workers"_a, "grants_max"_a, "requests_max"_a, "spin_s_max"_a, "incarnation"_a)
      .def_prop_ro("fd", &Engine::fd)
      .def(
          "events",
          [](Engine& self) {
            nb::list told;
            for (const Event& event : self.events())
              told.append(nb::make_tuple(static_cast<int>(event.kind), event.id, nb::bytes(event.text.data(), event.text.size())));
            return told;
          },
          nb::sig("def events(self) -> list[tuple[int, int, bytes]]"),
          "(kind, id, text): 1 opened, with its incarnation; 2 closed, and why; 3 a finished job's token; 4 a grant is quiet.")
      .def(
          "add_plain", [](Engine& self, std::uint64_t connection, std::uint64_t peer, int fd) { self.add(connection, peer, plain_stream(fd)); },
          "connection"_a, "peer"_a, "fd"_a, "Takes the descriptor over. connection: from 1, never again. peer 0: not known yet.")
      .def(
          "add_tls",
          [](Engine& self, std::uint64_t connection, std::uint64_t peer, int fd, const TlsHandle& context, const std::string& name) {
            self.add(connection, peer, name.empty() ? tls_server(context.held, fd) : tls_client(context.held, fd, name));
          },
          "connection"_a, "peer"_a, "fd"_a, "context"_a, "name"_a, "name: whom the peer's certificate must be of; \"\": we accept.")
      .def("set_peer", &Engine::set_peer, "connection"_a, "peer"_a)
      .def("drop", &Engine::drop, "connection"_a)
      .def(
          "issue",
          [](Engine& self, std::uint32_t slot, std::uint32_t generation, std::int64_t expiry_ns, std::uint64_t address,
             std::uint64_t bytes, bool readable, bool writable, nb::bytes proof, const Table<2>& ranges) {
            auto grant = std::make_shared<Served>();
            grant->slot = slot;
            grant->generation = generation;
            grant->expiry_ns = expiry_ns;
            grant->base = at(address);
            grant->bytes = bytes;
            grant->readable = readable;
            grant->writable = writable;
            grant->proof = exactly<kProofBytes>(proof, "proof");
            grant->ranges = ranges_of(ranges);
            self.issue(std::move(grant));
          },
          "slot"_a, "generation"_a, "expiry_ns"_a, "address"_a, "bytes"_a, "readable"_a, "writable"_a, "proof"_a, "ranges"_a)
      .def("end", &Engine::end, "slot"_a)
      .def("quiet", &Engine::quiet, "slot"_a)
      .def("submit", [](Engine& self, const TcpJobHandle& job, std::uint64_t peer) { self.submit(job.held, peer); }, "job"_a, "peer"_a)
      .def(
          "run",
          [](Engine& self, const TcpJobHandle& job, std::uint64_t peer, std::int64_t deadline_ns) { self.run(job.held, peer, deadline_ns); },
          "job"_a, "peer"_a, "deadline_ns"_a, nb::call_guard<nb::gil_scoped_release>(), "Submits and waits in the calling thread; no event.")
      .def(
          "stop", [](Engine& self, std::uint64_t token, std::uint8_t reason) { self.stop(token, static_cast<Reason>(reason)); },
          "token"_a, "reason"_a)
      .def(
          "stats",
          [](const Engine& self) {
            const EngineStats stats = self.stats();
            return std::make_tuple(stats.bytes_read, stats.bytes_written, stats.bytes_served, stats.bytes_taken);
          },
          "Bytes that our batches read and wrote, and that peers read and wrote by our grants.")
      .def(
          "close",
          [](Engine& self, double wait_s) {
            const nb::gil_scoped_release release;
            return self.close(std::chrono::nanoseconds(static_cast<std::int64_t>(std::clamp(wait_s, 0.0, 3600.0) * 1e9)));
          },
          "wait_s"_a, "False: a thread has not come back; it is left to itself.");
}

}  // namespace

void bind_transfer_tcp(nb::module_& m) {
  nb::class_<TlsHandle>(m, "TcpTls")
      .def(
          "__init__",
          [](TlsHandle* self, const std::string& certificate, const std::string& key, const std::string& ca) {
            new (self) TlsHandle{std::make_shared<const TlsContext>(certificate, key, ca)};
          },
          "certificate"_a, "key"_a, "ca"_a,
          "Paths of PEM files, or \"\"; see native/tcp/tls.hpp. RuntimeError names the one at fault, or what is not installed.");
  bind_jobs(m);
  bind_engine(m);
}

}  // namespace kvstore::bind
