// kvstore._native.IoEngine: batches of buffers to and from a row of equal files, answered through an event descriptor.
//
// Rules
// - A buffer stays exported from submit until its batch is reaped, so that Python cannot free or unmap it before.
// - close() and the end of the object wait for the kernel with the GIL released.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <system_error>
#include <unordered_map>

#include "io/engine.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore {
namespace {

using Regions = nb::typed<nb::sequence, nb::any>;
using Offsets = nb::typed<nb::list, nb::int_>;
using Pieces = nb::typed<nb::list, nb::any>;

class Exports {
 public:
  Exports() = default;
  Exports(Exports&& other) noexcept = default;
  Exports& operator=(Exports&& other) noexcept = default;
  ~Exports() {
    for (Py_buffer& view : views_) PyBuffer_Release(&view);
  }
  iovec add(nb::handle object, bool writable) {
    Py_buffer view;
    if (PyObject_GetBuffer(object.ptr(), &view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) != 0) throw nb::python_error();
    views_.push_back(view);
    return {view.buf, static_cast<std::size_t>(view.len)};
  }

 private:
  std::vector<Py_buffer> views_;
};

class IoEngine {
 public:
  IoEngine(const std::string& kind, std::vector<int> files, std::uint64_t file_bytes, const Regions& regions,
           std::uint32_t depth, std::uint32_t pending_max, bool register_memory)
      : file_bytes_(file_bytes), files_(files.size()) {
    if (file_bytes == 0) throw std::invalid_argument("file_bytes: at least 1");
    io::EngineConfig config;
    config.files = std::move(files);
    for (const nb::handle region : regions) config.regions.push_back(regions_.add(region, true));
    config.depth = depth;
    config.pending_max = pending_max;
    config.register_memory = register_memory;
    const nb::gil_scoped_release released;
    if (kind == "io_uring") {
      engine_ = io::open_uring_engine(config);
    } else if (kind == "threads") {
      engine_ = io::open_thread_engine(config);
    } else {
      throw std::invalid_argument("engine: io_uring or threads");
    }
  }
  ~IoEngine() {
    if (!engine_ || close(closed_ ? 0 : io::kCloseMax)) return;
    // A device has not answered, and the kernel may write where it was told to until the process ends. So memory and books
    // stay for as long: nobody has them any more, and nobody gives them back.
    new Exports(std::move(regions_));
    new auto(std::move(in_flight_));
    static_cast<void>(engine_.release());
  }

  std::uint64_t submit(bool write, const Offsets& offsets, const Pieces& buffers, std::int64_t deadline_ns,
                       bool background) {
    if (offsets.size() != buffers.size()) throw std::invalid_argument("offsets and buffers: as many of each");
    std::vector<io::Request> requests(offsets.size());
    Exports exports;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      fill(requests[i], nb::cast<std::uint64_t>(offsets[i]), buffers[i], exports, !write);
    }
    const io::Submitted out = engine_->submit(write ? io::Op::kWrite : io::Op::kRead,
                                              background ? io::Lane::kBackground : io::Lane::kForeground,
                                              std::move(requests), deadline_ns);
    switch (out.status) {
      case io::SubmitStatus::kOk:
        in_flight_.emplace(out.batch, std::move(exports));
        return out.batch;
      case io::SubmitStatus::kBusy:
        return 0;
      case io::SubmitStatus::kClosed:
        throw std::runtime_error("the I/O engine is closed");
      case io::SubmitStatus::kBadInput:
        break;
    }
    throw std::invalid_argument("requests: at least one; buffers not empty, and at most 8 pieces and 1 GiB each");
  }

  // Batches that have ended: their errnos by request (0 where all is well), or None where all of it is.
  nb::list reap() {
    nb::list out;
    for (io::Done& done : engine_->reap()) {
      in_flight_.erase(done.batch);
      const bool well = std::all_of(done.results.begin(), done.results.end(), [](auto result) { return result >= 0; });
      if (well) {
        out.append(nb::make_tuple(done.batch, nb::none()));
        continue;
      }
      nb::list errors;
      for (const std::int64_t result : done.results) errors.append(result < 0 ? -result : 0);
      out.append(nb::make_tuple(done.batch, errors));
    }
    return out;
  }

  void cancel(std::uint64_t batch) { engine_->cancel(batch); }
  int event_fd() const { return engine_->event_fd(); }

  bool close(std::int64_t limit_ns) {
    closed_ = true;
    const nb::gil_scoped_release released;
    return engine_->close(limit_ns);
  }

  nb::dict features() const {
    const io::Features& f = engine_->features();
    nb::dict out;
    out["engine"] = f.engine;
    out["registered_files"] = f.registered_files;
    out["registered_memory"] = f.registered_memory;
    out["vectored_registered"] = f.vectored_registered;
    out["single_issuer"] = f.single_issuer;
    out["deferred_task_run"] = f.deferred_task_run;
    out["note"] = f.note;
    return out;
  }

  std::map<std::string, std::uint64_t> stats() const {
    const io::EngineStats s = engine_->stats();
    return {{"waiting", s.waiting},       {"running", s.running},
            {"reads", s.reads},           {"writes", s.writes},
            {"read_bytes", s.read_bytes}, {"written_bytes", s.written_bytes},
            {"failed", s.failed},         {"late", s.late},
            {"cancelled", s.cancelled},   {"continued", s.continued},
            {"operations", s.operations}, {"cpu_ns", s.cpu_ns}};
  }

 private:
  void fill(io::Request& request, std::uint64_t offset, nb::handle buffer, Exports& exports, bool writable) const {
    std::uint64_t bytes = 0;
    if (nb::isinstance<nb::tuple>(buffer)) {
      for (const nb::handle piece : nb::borrow<nb::tuple>(buffer)) {
        request.pieces.push_back(exports.add(piece, writable));
        bytes += request.pieces.back().iov_len;
      }
    } else {
      request.pieces.push_back(exports.add(buffer, writable));
      bytes = request.pieces.back().iov_len;
    }
    request.file = static_cast<std::uint32_t>(std::min<std::uint64_t>(offset / file_bytes_, 0xffffffffu));
    request.offset = offset % file_bytes_;
    if (request.file >= files_ || bytes > file_bytes_ - request.offset) {
      throw std::invalid_argument("offsets: an extent lies within one file");
    }
  }

  std::uint64_t file_bytes_;
  std::size_t files_;
  bool closed_ = false;
  Exports regions_;
  std::unordered_map<std::uint64_t, Exports> in_flight_;
  std::unique_ptr<io::Engine> engine_;  // ends before the buffers that it may touch
};

}  // namespace

void bind_io(nb::module_& m) {
  nb::class_<IoEngine>(m, "IoEngine", "Batches of buffers to and from a row of equal files.")
      .def(nb::init<const std::string&, std::vector<int>, std::uint64_t, const Regions&, std::uint32_t, std::uint32_t,
                    bool>(),
           "kind"_a, "files"_a, "file_bytes"_a, "regions"_a, "depth"_a, "pending_max"_a, "register_memory"_a)
      .def("submit", &IoEngine::submit, "write"_a, "offsets"_a, "buffers"_a, "deadline_ns"_a, "background"_a,
           "A batch's number, or 0 if too many requests wait. A buffer may be a tuple of them: one extent, in order.")
      .def("reap", &IoEngine::reap, nb::sig("def reap(self) -> list[tuple[int, list[int] | None]]"),
           "Ended batches with an errno a request, or None where all went well. Their buffers are quiet.")
      .def("cancel", &IoEngine::cancel, "batch"_a)
      .def("close", &IoEngine::close, "limit_ns"_a = io::kCloseMax,
           "Cancels what waits, and waits for what runs. False: a device did not answer within the limit; what it was asked for "
           "is not answered, and its memory is kept until the process ends. Keep the files open.")
      .def("features", &IoEngine::features, nb::sig("def features(self) -> dict[str, bool | str]"))
      .def("stats", &IoEngine::stats, nb::sig("def stats(self) -> dict[str, int]"))
      .def_prop_ro("event_fd", &IoEngine::event_fd);
  m.def("uring_refused", &io::uring_refused, "Why io_uring cannot be used here, or None.");
}

}  // namespace kvstore
