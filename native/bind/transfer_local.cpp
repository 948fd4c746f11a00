// Grants and copies of the local transport. Addresses are integers: Python keeps what they point at mapped.
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "base/clock.hpp"
#include "transfer/copy_pool.hpp"
#include "transfer_rows.hpp"

namespace kvstore::bind {

using namespace nb::literals;
using namespace kvstore::transfer;

namespace {

// Objects that copying threads share are held natively: a shared_ptr made by the binding would own a Python reference, and a
// copying thread that dropped the last one would have to wait for the interpreter.
struct PeerHandle {
  std::shared_ptr<Peer> held;
};
struct SpanHandle {
  std::shared_ptr<const RemoteSpan> held;
};
struct JobHandle {
  std::shared_ptr<CopyJob> held;
};

Spans spans_of(bool writing, const std::vector<Local>& locals, const std::vector<SpanHandle*>& remotes) {
  Spans spans;
  spans.direction = writing ? Direction::kWrite : Direction::kRead;
  for (const auto& [address, bytes, writable] : locals) spans.locals.push_back({at(address), bytes, writable});
  for (const SpanHandle* remote : remotes) {
    if (remote == nullptr) throw std::invalid_argument("remotes must not hold None");
    spans.remotes.push_back(remote->held);
  }
  return spans;
}

void bind_grants(nb::module_& m) {
  nb::class_<GrantTable>(m, "GrantTable")
      .def(
          "__init__",
          [](GrantTable* self, std::uint64_t address, std::size_t size, std::uint32_t slots) {
            new (self) GrantTable(at(address), size, slots);
          },
          "address"_a, "size"_a, "slots"_a)
      .def_static("bytes", &GrantTable::bytes, "slots"_a)
      .def_static("activity_bytes", &GrantTable::activity_bytes, "slots"_a)
      .def("issue", &GrantTable::issue, "slot"_a, "generation"_a, "expiry_ns"_a)
      .def("end", &GrantTable::end, "slot"_a)
      .def("live", &GrantTable::live, "slot"_a, "generation"_a, "now_ns"_a);
  m.def(
      "touches", [](std::uint64_t address, std::size_t size, std::uint32_t slot) { return touches(at(address), size, slot); },
      "address"_a, "size"_a, "slot"_a, "How many copies of one connection touch a grant just now.");
  nb::class_<PeerHandle>(m, "Peer")
      .def(
          "__init__",
          [](PeerHandle* self, std::uint64_t table, std::size_t table_bytes, std::uint64_t activity, std::size_t activity_bytes,
             int quiet_fd) {
            auto peer = std::make_shared<Peer>();
            peer->table = at(table);
            peer->table_bytes = table_bytes;
            peer->activity = at(activity);
            peer->activity_bytes = activity_bytes;
            peer->quiet_fd = quiet_fd;
            peer->check();
            new (self) PeerHandle{std::move(peer)};
          },
          "table"_a, "table_bytes"_a, "activity"_a, "activity_bytes"_a, "quiet_fd"_a)
      .def("set_gone", [](PeerHandle& self) { self.held->gone = true; });
  nb::class_<SpanHandle>(m, "RemoteSpan")
      .def(
          "__init__",
          [](SpanHandle* self, const PeerHandle& peer, std::uint32_t slot, std::uint32_t generation, std::uint64_t base,
             std::uint64_t bytes, bool readable, bool writable, const Table<2>& ranges) {
            new (self) SpanHandle{std::make_shared<RemoteSpan>(peer.held, slot, generation, at(base), bytes, readable, writable,
                                                               ranges_of(ranges))};
          },
          "peer"_a, "slot"_a, "generation"_a, "base"_a, "bytes"_a, "readable"_a, "writable"_a, "ranges"_a)
      .def(
          "covers",
          [](const SpanHandle& self, std::int64_t offset, std::int64_t length, bool writing) {
            return static_cast<int>(self.held->covers(natural(offset), natural(length), writing));
          },
          "offset"_a, "length"_a, "writing"_a)
      .def("enter", [](const SpanHandle& self) { return static_cast<int>(self.held->enter(monotonic_now())); },
           "Counts the caller in and returns 0, or a Reason why not. leave() must follow a 0.")
      .def("leave", [](const SpanHandle& self) { self.held->leave(); });
}

void bind_jobs(nb::module_& m) {
  m.def(
      "check_extents",
      [](bool writing, const std::vector<Local>& locals, const std::vector<SpanHandle*>& remotes,
         const Table<5>& table) -> nb::object {
        const Spans spans = spans_of(writing, locals, remotes);
        std::vector<std::uint8_t> reasons;
        const std::vector<Row> rows = rows_of(table);
        for (std::size_t i = 0; i < rows.size(); ++i) {
          const Reason reason = spans.check(rows[i]);
          if (reason == Reason::kNone) continue;
          if (reasons.empty()) reasons.assign(rows.size(), 0);
          reasons[i] = static_cast<std::uint8_t>(reason);
        }
        return reasons.empty() ? nb::object(nb::none()) : nb::cast(to_array(std::move(reasons)));
      },
      "writing"_a, "locals"_a, "remotes"_a, "rows"_a,
      nb::sig("def check_extents(writing: bool, locals: collections.abc.Sequence[tuple[int, int, bool]], "
              "remotes: collections.abc.Sequence[RemoteSpan], rows: numpy.typing.NDArray[numpy.int64]) -> "
              "numpy.typing.NDArray[numpy.uint8] | None"),
      "A Reason a row of (local, local offset, remote, remote offset, length), or None when all may be copied.");
  nb::class_<JobHandle>(m, "CopyJob")
      .def(
          "__init__",
          [](JobHandle* self, bool writing, const std::vector<Local>& locals,
             const std::vector<SpanHandle*>& remotes, const Table<5>& rows, const Table<4>& slices,
             const Column& parts, std::int64_t deadline_ns) {
            Layout layout = layout_of(rows, slices, parts);
            new (self) JobHandle{std::make_shared<CopyJob>(spans_of(writing, locals, remotes), std::move(layout), deadline_ns)};
          },
          "writing"_a, "locals"_a, "remotes"_a, "rows"_a, "slices"_a, "parts"_a, "deadline_ns"_a)
      .def(
          "run",
          [](JobHandle& self) {
            CopyJob& job = *self.held;
            for (std::uint32_t rail = 0; rail < job.rails(); ++rail) {
              job.advance(rail, std::numeric_limits<std::size_t>::max());
            }
            job.finish();
          },
          nb::call_guard<nb::gil_scoped_release>(), "Copies all of it in the calling thread.")
      .def_prop_ro("whole", [](const JobHandle& self) { return self.held->layout().whole(); })
      .def("states", [](const JobHandle& self) { return copied(self.held->layout().states()); })
      .def("leaves", [](const JobHandle& self) { return copied(self.held->layout().leaves()); })
      .def("checksums", [](const JobHandle& self) { return copied(self.held->layout().checksums()); });
  nb::class_<CopyPool>(m, "CopyPool")
      .def(nb::init<std::uint32_t, std::uint32_t>(), "workers"_a, "turn_slices"_a)
      .def_prop_ro("fd", &CopyPool::fd)
      .def(
          "submit", [](CopyPool& self, std::uint64_t token, const JobHandle& job) { self.submit(token, job.held); }, "token"_a,
          "job"_a)
      .def(
          "stop", [](CopyPool& self, std::uint64_t token, std::uint8_t reason) { self.stop(token, static_cast<Reason>(reason)); },
          "token"_a, "reason"_a)
      .def("finished", &CopyPool::finished)
      .def(
          "close",
          [](CopyPool& self, double wait_s) {
            const nb::gil_scoped_release release;
            return self.close(std::chrono::nanoseconds(static_cast<std::int64_t>(std::clamp(wait_s, 0.0, 3600.0) * 1e9)));
          },
          "wait_s"_a, "False: a thread has not come back; it is left to itself.");
}

}  // namespace

void bind_transfer_local(nb::module_& m) {
  bind_grants(m);
  bind_jobs(m);
  m.def(
      "keep_forever", [](nb::handle object) { object.inc_ref(); }, "object"_a,
      "For memory that a lost thread may still touch: never unmapped, not even at exit.");
}

}  // namespace kvstore::bind
