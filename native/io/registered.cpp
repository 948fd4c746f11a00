#include "registered.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>

namespace kvstore::io {
namespace {

constexpr std::size_t kBufferBytesMax = 1ull << 30;  // the kernel's limit for one registered buffer
constexpr std::size_t kSmallBytesMax = 64ull << 20;  // of all small regions, which go into every window

// True if all of the region is one shared mapping: then, and only then, a second mapping shows the same bytes.
bool is_one_shared_mapping(const iovec& region) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> maps(std::fopen("/proc/self/maps", "re"), &std::fclose);
  if (!maps) return false;
  const auto from = reinterpret_cast<unsigned long>(region.iov_base), end = from + region.iov_len;
  char line[512];
  while (std::fgets(line, sizeof line, maps.get()) != nullptr) {
    unsigned long start = 0, stop = 0;
    char kind[5] = {};
    if (std::sscanf(line, "%lx-%lx %4s", &start, &stop, kind) == 3 && from >= start && end <= stop) return kind[3] == 's';
  }
  return false;
}

}  // namespace

RegisteredMemory::~RegisteredMemory() { unmap(); }

void RegisteredMemory::unmap() noexcept {
  for (const Window& window : windows_) munmap(window.base, window.bytes);
  windows_.clear();
}

bool RegisteredMemory::map(Window& window) {
  void* base = mmap(nullptr, window.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return false;
  window.base = static_cast<std::byte*>(base);
  return std::all_of(window.parts.begin(), window.parts.end(), [&window](const Part& part) {
    // An old size of 0 leaves the old mapping as it is and makes a second one of the same bytes.
    return mremap(const_cast<std::byte*>(part.at), 0, part.bytes, MREMAP_MAYMOVE | MREMAP_FIXED, window.base + part.offset) != MAP_FAILED;
  });
}

bool RegisteredMemory::map_windows(std::span<const iovec> regions) {
  std::vector<iovec> order(regions.begin(), regions.end());
  std::sort(order.begin(), order.end(), [](const iovec& a, const iovec& b) { return a.iov_len < b.iov_len; });
  std::size_t small = 0, bytes = 0;
  while (small + 1 < order.size() && bytes + order[small].iov_len <= kSmallBytesMax) bytes += order[small++].iov_len;
  if (small == 0 || !std::all_of(order.begin(), order.end(), is_one_shared_mapping)) return false;
  for (std::size_t large = small; large < order.size(); ++large) {
    const auto* start = static_cast<const std::byte*>(order[large].iov_base);
    for (std::size_t at = 0; at < order[large].iov_len; at += kBufferBytesMax - bytes) {
      const std::size_t some = std::min(kBufferBytesMax - bytes, order[large].iov_len - at);
      Window window{nullptr, some, {{start + at, some, 0}}};
      for (std::size_t i = 0; i < small; ++i) {
        window.parts.push_back({static_cast<const std::byte*>(order[i].iov_base), order[i].iov_len, window.bytes});
        window.bytes += order[i].iov_len;
      }
      const bool mapped = map(window);
      if (window.base != nullptr) windows_.push_back(std::move(window));
      if (!mapped) return false;
    }
  }
  return true;
}

int RegisteredMemory::open(Ring& ring, std::span<const iovec> regions, bool vectored) {
  for (const iovec& region : regions) {
    for (std::size_t at = 0; at < region.iov_len; at += kBufferBytesMax) {
      plain_.push_back({static_cast<std::byte*>(region.iov_base) + at, std::min(kBufferBytesMax, region.iov_len - at)});
    }
  }
  if (vectored && map_windows(regions)) {
    std::vector<iovec> both = plain_;
    for (const Window& window : windows_) both.push_back({window.base, window.bytes});
    if (ring.register_buffers(both) >= 0) {
      // The pages are pinned; only the addresses must stay ours.
      for (const Window& window : windows_) {
        mmap(window.base, window.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
      }
      return 0;
    }
  }
  unmap();
  const int error = ring.register_buffers(plain_);
  if (error < 0) plain_.clear();
  return error;
}

std::optional<std::uint16_t> RegisteredMemory::buffer_of(const iovec& piece) const noexcept {
  const auto* from = static_cast<const std::byte*>(piece.iov_base);
  for (std::size_t i = 0; i < plain_.size(); ++i) {
    const auto* start = static_cast<const std::byte*>(plain_[i].iov_base);
    if (from >= start && from + piece.iov_len <= start + plain_[i].iov_len) return static_cast<std::uint16_t>(i);
  }
  return std::nullopt;
}

const RegisteredMemory::Part* RegisteredMemory::part_of(const Window& window, const iovec& piece) noexcept {
  const auto* from = static_cast<const std::byte*>(piece.iov_base);
  for (const Part& part : window.parts) {
    if (from >= part.at && from + piece.iov_len <= part.at + part.bytes) return &part;
  }
  return nullptr;
}

std::optional<std::uint16_t> RegisteredMemory::together(std::span<iovec> pieces) const noexcept {
  for (std::size_t i = 0; i < windows_.size(); ++i) {
    const Window& window = windows_[i];
    if (!std::all_of(pieces.begin(), pieces.end(), [&window](const iovec& piece) { return part_of(window, piece) != nullptr; })) continue;
    for (iovec& piece : pieces) {
      const Part* part = part_of(window, piece);
      piece.iov_base = window.base + part->offset + (static_cast<const std::byte*>(piece.iov_base) - part->at);
    }
    return static_cast<std::uint16_t>(plain_.size() + i);
  }
  return std::nullopt;
}

}  // namespace kvstore::io
