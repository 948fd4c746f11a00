// Copies between cold memory, with and without checksums.
//
// Rules
// - Large copies use non-temporal stores: glibc's threshold is far too high where the L3 looks large (1.8 times slower here).
//   store_fence() must come before anything that tells another thread or process that the bytes are there.
// - A checksummed copy reads each source byte exactly once, into a register or an L1 bounce leaf, and hashes and stores
//   that: what was hashed is what was stored, even if somebody writes to the source meanwhile.
// - Fastest where a leaf lies in one piece on both sides and its destination is 16-byte aligned; right everywhere.
// - Vector width is chosen once by what the CPU has.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvstore {

inline constexpr std::size_t kStreamBytesMin = 16 << 10;  // from here on copy_bytes and copy_pieces bypass the caches

void copy_bytes(void* dst, const void* src, std::size_t bytes) noexcept;  // no fence; the two do not overlap
void store_fence() noexcept;

struct Piece {
  std::byte* data = nullptr;
  std::size_t bytes = 0;
};

// Walks a list of pieces. Empty pieces are passed over.
class PieceCursor {
 public:
  explicit PieceCursor(std::span<const Piece> pieces) noexcept : pieces_(pieces) { settle(); }
  std::size_t contiguous() const noexcept { return index_ < pieces_.size() ? pieces_[index_].bytes - offset_ : 0; }
  std::byte* at() const noexcept { return pieces_[index_].data + offset_; }
  void advance(std::size_t bytes) noexcept {  // may cross pieces
    while (bytes > 0) {
      const std::size_t step = bytes < contiguous() ? bytes : contiguous();
      offset_ += step;
      bytes -= step;
      settle();
    }
  }

 private:
  void settle() noexcept {
    while (index_ < pieces_.size() && offset_ == pieces_[index_].bytes) {
      ++index_;
      offset_ = 0;
    }
  }
  std::span<const Piece> pieces_;
  std::size_t index_ = 0;
  std::size_t offset_ = 0;
};

// Moves the next `bytes` of `from` to `to` (both have that much left) and advances both.
void copy_pieces(PieceCursor& from, PieceCursor& to, std::size_t bytes) noexcept;
// The same for a run of leaves of one part (it begins at a leaf; only the part's last leaf may be short): writes the XXH3-64 of
// each to `digests`, for whoever copies a part in several steps or on several threads and folds them later.
void copy_leaves(PieceCursor& from, PieceCursor& to, std::size_t bytes, std::uint64_t* digests) noexcept;
// The same for one part, in one pass, returning the part checksum of exactly the bytes that were stored.
std::uint64_t copy_part(PieceCursor& from, PieceCursor& to, std::size_t bytes) noexcept;

}  // namespace kvstore
