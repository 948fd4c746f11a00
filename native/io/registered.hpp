// Memory that the kernel has pinned, and under which number and address an operation names it.
//
// Rules
// - Each region is registered as it lies (in buffers of at most 1 GiB): one piece there is one FIXED operation.
// - A vectored FIXED operation (Linux 6.15) may name one buffer only, while headers and payloads lie in different regions. So
//   every stretch of large regions is registered a second time, together with all small ones behind it, under
//   addresses of their own: those are numbers that the kernel has checked once, with nothing mapped there afterwards.
// - Only shared mappings can be mapped twice. Where a region is anything else, nothing is put together.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <sys/uio.h>

#include "ring.hpp"

namespace kvstore::io {

class RegisteredMemory {
 public:
  RegisteredMemory() = default;
  ~RegisteredMemory();
  RegisteredMemory(const RegisteredMemory&) = delete;
  RegisteredMemory& operator=(const RegisteredMemory&) = delete;

  // 0 or -errno. vectored: the kernel knows vectored FIXED operations.
  int open(Ring& ring, std::span<const iovec> regions, bool vectored);

  std::optional<std::uint16_t> buffer_of(const iovec& piece) const noexcept;
  // One buffer with all pieces in it, whose addresses are then changed to those of that buffer; else nothing is changed.
  std::optional<std::uint16_t> together(std::span<iovec> pieces) const noexcept;
  bool has_together() const noexcept { return !windows_.empty(); }

 private:
  struct Part {
    const std::byte* at;   // where the program sees it
    std::size_t bytes;
    std::size_t offset;    // in the window
  };
  struct Window {
    std::byte* base;
    std::size_t bytes;
    std::vector<Part> parts;
  };
  static const Part* part_of(const Window& window, const iovec& piece) noexcept;
  bool map_windows(std::span<const iovec> regions);
  static bool map(Window& window);
  void unmap() noexcept;

  std::vector<iovec> plain_;
  std::vector<Window> windows_;
};

}  // namespace kvstore::io
