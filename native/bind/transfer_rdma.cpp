// The RDMA engine and its jobs. Addresses are integers: Python keeps what they point at alive until a job is finished, and verbs
// objects until their lane is down.
#ifdef KVSTORE_RDMA
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <chrono>

#include "rdma/engine.hpp"
#include "transfer_rows.hpp"

namespace kvstore::bind {

using namespace nb::literals;
using namespace kvstore::rdma;

namespace {

struct RdmaJobHandle {
  std::shared_ptr<Job> held;
};

template <typename Thing>
Thing* thing(std::uint64_t address) {
  return reinterpret_cast<Thing*>(address);
}

std::chrono::nanoseconds seconds(double s) {
  return std::chrono::nanoseconds(static_cast<std::int64_t>(std::clamp(s, 0.0, 3600.0) * 1e9));
}

[[noreturn]] void raise_os_error(int error, const char* what) {
  errno = error;
  PyErr_SetFromErrnoWithFilename(PyExc_OSError, what);
  throw nb::python_error();
}

using TrialArguments = std::tuple<std::uint64_t, std::uint32_t, std::uint64_t, std::uint32_t, std::uint32_t>;
using WindowArguments = std::tuple<std::uint64_t, std::uint64_t, std::vector<std::uint32_t>>;  // access, base, a key a device

void bind_jobs(nb::module_& m) {
  nb::class_<RdmaJobHandle>(m, "RdmaJob")
      .def(
          "__init__",
          [](RdmaJobHandle* self, std::uint64_t token, bool writing, const std::vector<bind::Local>& locals,
             const std::vector<std::vector<std::uint32_t>>& keys, const std::vector<std::uint32_t>& near,
             const std::vector<WindowArguments>& windows, const Column& windows_of_rows, const Table<5>& rows, const Table<4>& slices,
             const Column& parts) {
            if (keys.size() != locals.size() || near.size() != locals.size()) throw std::invalid_argument("keys, near: one a local");
            std::vector<rdma::Local> places;
            for (std::size_t i = 0; i < locals.size(); ++i) {
              const auto& [address, bytes, writable] = locals[i];
              places.push_back({{at(address), bytes, writable}, keys[i], near[i]});
            }
            std::vector<Window> shown;
            for (const auto& [access, base, peer_keys] : windows) shown.push_back({access, base, peer_keys});
            std::vector<std::uint32_t> of_rows(windows_of_rows.shape(0));
            for (std::size_t i = 0; i < of_rows.size(); ++i) of_rows[i] = index(windows_of_rows(i));
            new (self) RdmaJobHandle{std::make_shared<Job>(token, writing ? Direction::kWrite : Direction::kRead, std::move(places),
                                                           std::move(shown), std::move(of_rows), layout_of(rows, slices, parts))};
          },
          "token"_a, "writing"_a, "locals"_a, "keys"_a, "near"_a, "windows"_a, "windows_of_rows"_a, "rows"_a, "slices"_a, "parts"_a)
      .def_prop_ro("whole", [](const RdmaJobHandle& self) { return self.held->layout().whole(); })
      .def("states", [](const RdmaJobHandle& self) { return copied(self.held->layout().states()); })
      .def("leaves", [](const RdmaJobHandle& self) { return copied(self.held->layout().leaves()); })
      .def("checksums", [](const RdmaJobHandle& self) { return copied(self.held->layout().checksums()); });
}

void bind_calls(nb::module_& m) {
  m.def(
      "rdma_missing",
      [] {
        std::string why;
        verbs(&why);
        return why;
      },
      "Why verbs cannot be used natively; empty where they can.");
  m.def(
      "rdma_connect",
      [](std::uint64_t qp, nb::bytes gid, std::uint8_t gid_index, bool global, std::uint16_t lid, std::uint32_t peer_qpn,
         std::uint32_t peer_psn, std::uint32_t psn, std::uint8_t mtu, std::uint8_t reads, std::uint8_t timeout, std::uint8_t retries,
         bool serving) {
        Route route;
        if (gid.size() != route.gid.size()) throw nb::value_error("gid must be 16 bytes");
        std::memcpy(route.gid.data(), gid.c_str(), route.gid.size());
        route.gid_index = gid_index;
        route.global = global;
        route.lid = lid;
        route.peer_qpn = peer_qpn;
        route.peer_psn = peer_psn;
        route.psn = psn;
        route.mtu = mtu;
        route.reads = reads;
        route.timeout = timeout;
        route.retries = retries;
        route.serving = serving;
        int error = 0;
        {
          const nb::gil_scoped_release release;
          error = connect(thing<ibv_qp>(qp), route);
        }
        if (error != 0) raise_os_error(error, "a queue pair to its peer");
      },
      "qp"_a, nb::kw_only(), "gid"_a, "gid_index"_a, "is_global"_a, "lid"_a, "peer_qpn"_a, "peer_psn"_a, "psn"_a, "mtu"_a, "reads"_a,
      "timeout"_a, "retries"_a, "serving"_a, "A fresh queue pair, to where it sends. May wait seconds. Raises OSError.");
  m.def(
      "rdma_destroy",
      [](std::uint64_t qp) {
        const Verbs* v = verbs();
        int error = ENOSYS;
        if (v != nullptr) {
          const nb::gil_scoped_release release;
          error = v->destroy_qp(thing<ibv_qp>(qp));
        }
        if (error != 0) raise_os_error(error, "a queue pair");
      },
      "qp"_a, "May wait seconds. Nothing of it is out, and nobody else destroys it. Raises OSError.");
  m.def(
      "rdma_register",
      [](std::uint64_t pd, std::uint64_t address, std::uint64_t bytes, std::uint64_t device_address, bool write_here, bool peer_reads,
         bool peer_writes, int dma_buf) {
        const Verbs* v = verbs();
        ibv_mr* made = nullptr;
        int error = ENOSYS;
        if (v != nullptr) {
          const nb::gil_scoped_release release;
          const int access = (write_here || peer_writes ? IBV_ACCESS_LOCAL_WRITE : 0) | (peer_reads ? IBV_ACCESS_REMOTE_READ : 0) |
                             (peer_writes ? IBV_ACCESS_REMOTE_WRITE : 0);
          if (dma_buf < 0) {
            made = v->reg_mr_iova(thing<ibv_pd>(pd), at(address), bytes, device_address, access);
          } else if (v->reg_dmabuf_mr != nullptr) {
            made = v->reg_dmabuf_mr(thing<ibv_pd>(pd), address, bytes, device_address, dma_buf, access);
          } else {
            errno = EOPNOTSUPP;
          }
          error = errno;
        }
        if (made == nullptr) raise_os_error(error, "memory for a device");
        return std::make_tuple(reinterpret_cast<std::uint64_t>(made), made->lkey, made->rkey);
      },
      "pd"_a, "address"_a, "bytes"_a, "device_address"_a, nb::kw_only(), "write_here"_a, "peer_reads"_a, "peer_writes"_a,
      "dma_buf"_a = -1,
      "(handle, local key, remote key). May wait while memory is pinned. dma_buf: a descriptor; `address` is then an offset in that "
      "buffer. Raises OSError.");
  m.def(
      "rdma_deregister",
      [](std::uint64_t handle) {
        const Verbs* v = verbs();
        int error = ENOSYS;
        if (v != nullptr) {
          const nb::gil_scoped_release release;
          error = v->dereg_mr(thing<ibv_mr>(handle));
        }
        if (error != 0) raise_os_error(error, "memory of a device");
      },
      "handle"_a, "Its keys open nothing any more when this returns. Raises OSError.");
}

void bind_engine(nb::module_& m) {
  nb::class_<Engine>(m, "RdmaEngine")
      .def(
          "__init__",
          [](Engine* self, std::uint32_t window, std::uint32_t tries_max, double linger_s, double spin_s) {
            new (self) Engine({window, tries_max, seconds(linger_s), seconds(spin_s)});
          },
          "window"_a, "tries_max"_a, "linger_s"_a, "spin_s"_a)
      .def_prop_ro("fd", &Engine::fd)
      .def(
          "events",
          [](Engine& self) {
            nb::list told;
            for (const Event& event : self.events()) told.append(nb::make_tuple(static_cast<int>(event.kind), event.id, event.status));
            return told;
          },
          nb::sig("def events(self) -> list[tuple[int, int, int]]"),
          "(kind, id, status): 1 a finished job's token; 2 a lane that is down, and what broke it; 3 an access that was refused; "
          "4 a lane that takes slices from now on.")
      .def("add_device", [](Engine& self, std::uint64_t cq) { self.add_device(thing<ibv_cq>(cq)); }, "cq"_a)
      .def(
          "add_lane",
          [](Engine& self, std::uint64_t lane, std::uint64_t peer, std::uint64_t qp, std::uint32_t device, std::uint32_t peer_device,
             const std::optional<TrialArguments>& trial) {
            Trial asked;
            if (trial) std::tie(asked.local, asked.local_key, asked.remote, asked.remote_key, asked.bytes) = *trial;
            self.add_lane({lane, peer, thing<ibv_qp>(qp), device, peer_device, asked});
          },
          "lane"_a, "peer"_a, "qp"_a, "device"_a, "peer_device"_a, "trial"_a = nb::none(),
          "trial: (address, key, address at the peer, its key, bytes) of a read that must land before the lane takes slices.")
      .def("drop_lane", &Engine::drop_lane, "lane"_a)
      .def("give_up", &Engine::give_up, "peer"_a, "gone"_a)
      .def("forget", &Engine::forget, "peer"_a)
      .def(
          "end_access",
          [](Engine& self, std::uint64_t peer, std::uint64_t access, std::uint8_t reason) {
            self.end_access(peer, access, static_cast<Reason>(reason));
          },
          "peer"_a, "access"_a, "reason"_a)
      .def("submit", [](Engine& self, const RdmaJobHandle& job, std::uint64_t peer) { self.submit(job.held, peer); }, "job"_a, "peer"_a)
      .def(
          "stop", [](Engine& self, std::uint64_t token, std::uint8_t reason) { self.stop(token, static_cast<Reason>(reason)); },
          "token"_a, "reason"_a)
      .def(
          "stats",
          [](const Engine& self) {
            const EngineStats stats = self.stats();
            return std::make_tuple(stats.requests, stats.bytes, stats.again, stats.flushes);
          },
          "Requests and bytes that landed, requests asked for again, lanes flushed for stopped batches.")
      .def(
          "close",
          [](Engine& self, double wait_s) {
            const nb::gil_scoped_release release;
            return self.close(seconds(wait_s));
          },
          "wait_s"_a, "False: a request has not come back; what it touches must stay.");
}

}  // namespace

void bind_transfer_rdma(nb::module_& m) {
  bind_jobs(m);
  bind_calls(m);
  bind_engine(m);
}

}  // namespace kvstore::bind
#endif
