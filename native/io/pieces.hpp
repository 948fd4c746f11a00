// The memory of one operation, by value: what an engine does with it allocates nothing, and nothing is freed on another
// thread than its own.
#pragma once
#include <array>
#include <cassert>
#include <cstddef>
#include <span>

#include "join.hpp"

namespace kvstore::io {

class Pieces {
 public:
  Pieces() = default;
  // Only what is there is copied.
  Pieces(const Pieces& other) { append(other.all()); }
  Pieces& operator=(const Pieces& other) {
    if (this == &other) return *this;
    count_ = 0;
    append(other.all());
    return *this;
  }

  // At most kJoinedPiecesMax: the plan has seen to it.
  void append(std::span<const iovec> more) {
    assert(count_ + more.size() <= kJoinedPiecesMax);
    for (const iovec& piece : more) pieces_[count_++] = piece;
  }
  std::size_t size() const noexcept { return count_; }
  std::span<iovec> all() noexcept { return {pieces_.data(), count_}; }
  std::span<const iovec> all() const noexcept { return {pieces_.data(), count_}; }

 private:
  std::array<iovec, kJoinedPiecesMax> pieces_;  // the first count_ of them
  std::size_t count_ = 0;
};

}  // namespace kvstore::io
