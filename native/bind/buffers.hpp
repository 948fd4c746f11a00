// What every binding needs to take memory from Python and to give it back.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/keys.hpp"

namespace kvstore::bind {

namespace nb = nanobind;

// A contiguous buffer of anything that has one, held while this object lives. Made and ended with the GIL held.
class Buffer {
 public:
  enum class Access { kRead, kWrite };
  // Throws TypeError or ValueError beginning with `name`.
  Buffer(nb::handle object, const char* name, Access access = Access::kRead) {
    const int flags = access == Access::kWrite ? PyBUF_WRITABLE : PyBUF_SIMPLE;
    if (PyObject_CheckBuffer(object.ptr()) == 0) {
      throw nb::type_error((std::string(name) + " must be a buffer (bytes, bytearray, memoryview, array)").c_str());
    }
    if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) {
      PyErr_Clear();
      const char* want = access == Access::kWrite ? " must be a contiguous, writable buffer" : " must be a contiguous buffer";
      throw nb::value_error((std::string(name) + want).c_str());
    }
  }
  ~Buffer() { PyBuffer_Release(&view_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const noexcept { return static_cast<std::byte*>(view_.buf); }
  std::size_t size() const noexcept { return static_cast<std::size_t>(view_.len); }
  std::span<const std::uint8_t> bytes() const noexcept { return {static_cast<const std::uint8_t*>(view_.buf), size()}; }

 private:
  Py_buffer view_{};
};

inline Digest digest_of(nb::handle object, const char* name) {
  const Buffer buffer(object, name);
  Digest digest;
  if (buffer.size() != digest.size()) {
    throw nb::value_error((std::string(name) + " must be 32 bytes, not " + std::to_string(buffer.size())).c_str());
  }
  std::memcpy(digest.data(), buffer.data(), digest.size());
  return digest;
}

inline nb::bytes to_bytes(const Digest& digest) { return nb::bytes(digest.data(), digest.size()); }

// Any sequence, so that its stub says what it is of.
using Objects = nb::typed<nb::sequence, nb::object>;

// Gives a vector's memory to numpy without a copy.
template <typename Scalar>
nb::ndarray<nb::numpy, Scalar, nb::ndim<1>> to_array(std::vector<Scalar>&& values) {
  auto* kept = new std::vector<Scalar>(std::move(values));
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<Scalar>*>(p); });
  return nb::ndarray<nb::numpy, Scalar, nb::ndim<1>>(kept->data(), {kept->size()}, owner);
}

using KeyArray = nb::ndarray<nb::numpy, std::uint8_t, nb::shape<-1, 32>>;
inline KeyArray to_key_array(std::vector<Digest>&& keys) {
  auto* kept = new std::vector<Digest>(std::move(keys));
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<Digest>*>(p); });
  return KeyArray(kept->data(), {kept->size(), 32}, owner);
}

// Gives the GIL back around work of more than a few microseconds; taking it again may cost much more than keeping it.
class MaybeRelease {
 public:
  explicit MaybeRelease(bool worth_it) : state_(worth_it ? PyEval_SaveThread() : nullptr) {}
  ~MaybeRelease() {
    if (state_ != nullptr) PyEval_RestoreThread(state_);
  }
  MaybeRelease(const MaybeRelease&) = delete;
  MaybeRelease& operator=(const MaybeRelease&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace kvstore::bind
