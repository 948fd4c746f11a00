#include "copy.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "checksum.hpp"
#include "kernels.hpp"
#if KVSTORE_X86
#include <emmintrin.h>
#endif

namespace kvstore {

namespace kernels {
#if KVSTORE_X86
void stream_portable(void* dst, const void* src, std::size_t bytes) noexcept {
  auto* to = static_cast<__m128i*>(dst);
  const auto* from = static_cast<const __m128i*>(src);
  for (std::size_t i = 0; i < bytes / 16; ++i) _mm_stream_si128(to + i, _mm_loadu_si128(from + i));
}
#else
void stream_portable(void* dst, const void* src, std::size_t bytes) noexcept { std::memcpy(dst, src, bytes); }
#endif
}  // namespace kernels

namespace {

constexpr std::size_t kLine = 64;
// A shorter run is mostly ragged ends, which go through the caches anyway.
constexpr std::size_t kStreamRunMin = 4 * kLine;

bool aligned(const void* p, std::size_t to) noexcept { return (reinterpret_cast<std::uintptr_t>(p) & (to - 1)) == 0; }

// One contiguous run: ragged ends through the caches, whole lines past them.
void stream_run(void* dst, const void* src, std::size_t bytes) noexcept {
  if (bytes < kStreamRunMin) {
    if (bytes > 0) std::memcpy(dst, src, bytes);
    return;
  }
  auto* to = static_cast<std::byte*>(dst);
  const auto* from = static_cast<const std::byte*>(src);
  const std::size_t head = (kLine - (reinterpret_cast<std::uintptr_t>(dst) & (kLine - 1))) & (kLine - 1);
  const std::size_t body = (bytes - head) & ~(kLine - 1);
  const std::size_t tail = bytes - head - body;
  if (head > 0) std::memcpy(to, from, head);
  kernels::chosen().stream(to + head, from + head, body);
  if (tail > 0) std::memcpy(to + head + body, from + head + body, tail);
}

void gather(std::byte* leaf, PieceCursor& from, std::size_t bytes) noexcept {
  for (std::size_t at = 0; at < bytes;) {
    const std::size_t step = std::min(bytes - at, from.contiguous());
    std::memcpy(leaf + at, from.at(), step);
    from.advance(step);
    at += step;
  }
  // From here on only the leaf may be read: the compiler must not go back to the source.
  asm volatile("" : : "r"(leaf) : "memory");
}

void scatter(PieceCursor& to, const std::byte* leaf, std::size_t bytes) noexcept {
  for (std::size_t at = 0; at < bytes;) {
    const std::size_t step = std::min(bytes - at, to.contiguous());
    stream_run(to.at(), leaf + at, step);
    to.advance(step);
    at += step;
  }
}

}  // namespace

void copy_bytes(void* dst, const void* src, std::size_t bytes) noexcept {
  if (bytes >= kStreamBytesMin) {
    stream_run(dst, src, bytes);
  } else if (bytes > 0) {
    std::memcpy(dst, src, bytes);
  }
}

void store_fence() noexcept {
#if KVSTORE_X86
  _mm_sfence();
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

void copy_pieces(PieceCursor& from, PieceCursor& to, std::size_t bytes) noexcept {
  const bool stream = bytes >= kStreamBytesMin;
  while (bytes > 0) {
    const std::size_t step = std::min({bytes, from.contiguous(), to.contiguous()});
    if (stream) {
      stream_run(to.at(), from.at(), step);
    } else {
      std::memcpy(to.at(), from.at(), step);
    }
    from.advance(step);
    to.advance(step);
    bytes -= step;
  }
}

namespace {

// Hands each leaf's digest to `take`, in order.
template <typename Take>
void each_leaf(PieceCursor& from, PieceCursor& to, std::size_t bytes, Take take) noexcept {
  const kernels::Chosen& use = kernels::chosen();
  alignas(64) std::byte bounce[kLeafBytes];
  while (bytes > 0) {
    const std::size_t leaf = std::min(bytes, kLeafBytes);
    if (use.stream_leaf != nullptr && leaf == kLeafBytes && from.contiguous() >= leaf && to.contiguous() >= leaf &&
        aligned(to.at(), 16)) {
      take(use.stream_leaf(to.at(), from.at()));
      from.advance(leaf);
      to.advance(leaf);
    } else {
      gather(bounce, from, leaf);
      take(use.xxh3(bounce, leaf));
      scatter(to, bounce, leaf);
    }
    bytes -= leaf;
  }
}

}  // namespace

void copy_leaves(PieceCursor& from, PieceCursor& to, std::size_t bytes, std::uint64_t* digests) noexcept {
  each_leaf(from, to, bytes, [&digests](std::uint64_t digest) { *digests++ = digest; });
}

std::uint64_t copy_part(PieceCursor& from, PieceCursor& to, std::size_t bytes) noexcept {
  LeafFold fold;
  each_leaf(from, to, bytes, [&fold](std::uint64_t digest) { fold.add(digest); });
  return fold.finish();
}

}  // namespace kvstore
