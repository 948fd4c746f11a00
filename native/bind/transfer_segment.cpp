// MappedSegment as a Python object: arrays over it keep its mapping, and close() refuses while there are any.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cerrno>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>

#include "transfer/mapped_segment.hpp"

namespace nb = nanobind;

namespace kvstore::bind {

using namespace nb::literals;
using namespace kvstore::transfer;

namespace {

using Held = std::shared_ptr<MappedSegment>;
using ReadOnly = nb::ndarray<nb::numpy, const std::uint8_t, nb::ndim<1>>;
using Writable = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>;

std::uint64_t positive(std::int64_t size) {
  if (size <= 0) throw nb::value_error(("size must be positive, not " + std::to_string(size)).c_str());
  return static_cast<std::uint64_t>(size);
}

// Unmapping much memory takes a while: not with the GIL.
void let_go(Held&& held) {
  nb::gil_scoped_release release;
  const Held last = std::move(held);
}

template <typename Call>
auto or_os_error(Call call) {
  try {
    return call();
  } catch (const std::system_error& error) {
    errno = error.code().value();
    PyErr_SetFromErrno(PyExc_OSError);
  }
  throw nb::python_error();
}

class SegmentHandle {
 public:
  SegmentHandle(Held held, bool writable)
      : held_(std::move(held)), bytes_(held_->bytes()), writable_(writable),
        address_(writable ? held_->writable(0, bytes_) : held_->readable(0, bytes_)) {}
  ~SegmentHandle() {
    if (held_) let_go(std::move(held_));
  }
  SegmentHandle(const SegmentHandle&) = delete;
  SegmentHandle& operator=(const SegmentHandle&) = delete;

  std::uint64_t address() const noexcept { return reinterpret_cast<std::uint64_t>(address_); }
  std::uint64_t size() const noexcept { return bytes_; }
  bool writable() const noexcept { return writable_; }
  bool closed() const noexcept { return held_ == nullptr; }
  const MappedSegment& open() const {
    if (held_ == nullptr) throw nb::value_error("this segment is closed");
    return *held_;
  }

  ReadOnly array(std::int64_t offset, std::int64_t length) const {
    const std::byte* at = open().readable(static_cast<std::uint64_t>(offset), static_cast<std::uint64_t>(length));
    if (at == nullptr) beyond(offset, length);
    return {reinterpret_cast<const std::uint8_t*>(at), {static_cast<std::size_t>(length)}, kept()};
  }
  Writable writable_array(std::int64_t offset, std::int64_t length) const {
    if (!writable_) throw nb::value_error("this segment is mapped read-only");
    std::byte* at = open().writable(static_cast<std::uint64_t>(offset), static_cast<std::uint64_t>(length));
    if (at == nullptr) beyond(offset, length);
    return {reinterpret_cast<std::uint8_t*>(at), {static_cast<std::size_t>(length)}, kept()};
  }

  void close() {
    if (held_ == nullptr) return;
    if (held_.use_count() > 1) throw nb::buffer_error("an array, a view or a region of this segment is alive");
    let_go(std::move(held_));
  }

 private:
  [[noreturn]] void beyond(std::int64_t offset, std::int64_t length) const {
    throw nb::value_error(("[" + std::to_string(offset) + ", " + std::to_string(offset) + " + " + std::to_string(length) +
                           ") is not within the segment's " + std::to_string(bytes_) + " bytes").c_str());
  }
  nb::capsule kept() const {
    return nb::capsule(new Held(held_), [](void* p) noexcept {
      const std::unique_ptr<Held> held(static_cast<Held*>(p));
      let_go(std::move(*held));
    });
  }

  Held held_;
  std::uint64_t bytes_;
  bool writable_;
  const std::byte* address_;
};

}  // namespace

void bind_transfer_segment(nb::module_& m) {
  nb::class_<SegmentHandle>(
      m, "MappedSegment",
      "`size` bytes of the file behind a descriptor, mapped shared. The descriptor stays the caller's; the segment keeps one of "
      "its own.\nRaises ValueError where the file is smaller than `size`, and OSError where the system refuses the mapping.")
      .def(
          "__init__",
          [](SegmentHandle* self, int fd, std::int64_t size, bool writable) {
            const std::uint64_t bytes = positive(size);
            const Access access = writable ? Access::kReadWrite : Access::kRead;
            Held held = or_os_error([&] { return std::make_shared<MappedSegment>(fd, bytes, access); });
            new (self) SegmentHandle(std::move(held), writable);
          },
          "fd"_a, "size"_a, nb::kw_only(), "writable"_a)
      .def_static(
          "create",
          [](std::int64_t size, const std::string& name) {
            const std::uint64_t bytes = positive(size);
            Held held = or_os_error([&] {
              nb::gil_scoped_release release;  // every page of it is allocated
              return MappedSegment::create(bytes, name.c_str());
            });
            return new SegmentHandle(std::move(held), true);
          },
          nb::rv_policy::take_ownership, "size"_a, nb::kw_only(), "name"_a = "segment",
          "New zeroed memory without a name in any file system, allocated in full and sealed against truncation.")
      .def_prop_ro("address", &SegmentHandle::address, "Where it is mapped in this process: writable, where it is that.")
      .def_prop_ro("size", &SegmentHandle::size)
      .def_prop_ro("writable", &SegmentHandle::writable)
      .def_prop_ro("closed", &SegmentHandle::closed)
      .def("fileno", [](const SegmentHandle& self) { return self.open().fd(); }, "The segment's own descriptor, closed with it.")
      .def(
          "read_only_fd", [](const SegmentHandle& self) { return or_os_error([&] { return self.open().read_only_fd(); }); },
          "A new descriptor of the same file that cannot be mapped for writing; the caller closes it.")
      .def("array", &SegmentHandle::array, "offset"_a, "length"_a,
           "A read-only view. Raises ValueError where it would reach beyond the segment.")
      .def("writable_array", &SegmentHandle::writable_array, "offset"_a, "length"_a,
           "A view to write through. Raises ValueError for a read-only segment.")
      .def("close", &SegmentHandle::close,
           "Unmaps. Raises BufferError, and changes nothing, while a view, an array or a region of it is alive.")
      .def("__enter__", [](nb::handle self) { return nb::borrow(self); }, nb::sig("def __enter__(self) -> MappedSegment"))
      .def("__exit__", [](SegmentHandle& self, const nb::args&) { self.close(); },
           nb::sig("def __exit__(self, *args: object) -> None"));
}

}  // namespace kvstore::bind
