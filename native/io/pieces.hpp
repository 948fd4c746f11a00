// The memory of one request, by value: what an engine does with a request allocates nothing, and nothing is freed on
// another thread than its own.
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <initializer_list>
#include <span>

#include "engine.hpp"

namespace kvstore::io {

class Pieces {
 public:
  Pieces() = default;
  Pieces(std::initializer_list<iovec> pieces) : Pieces(std::span<const iovec>(pieces.begin(), pieces.size())) {}
  // At most kPiecesMax: the ledger has checked it.
  explicit Pieces(std::span<const iovec> pieces) : count_(pieces.size()) {
    std::copy(pieces.begin(), pieces.end(), pieces_.begin());
  }

  std::size_t size() const noexcept { return count_; }
  bool empty() const noexcept { return count_ == 0; }
  const iovec* data() const noexcept { return pieces_.data(); }
  iovec& operator[](std::size_t i) noexcept { return pieces_[i]; }
  const iovec& operator[](std::size_t i) const noexcept { return pieces_[i]; }
  const iovec* begin() const noexcept { return pieces_.data(); }
  const iovec* end() const noexcept { return pieces_.data() + count_; }
  void drop_front(std::size_t gone) noexcept {
    std::copy(begin() + gone, end(), pieces_.begin());
    count_ -= gone;
  }

 private:
  std::array<iovec, kPiecesMax> pieces_{};
  std::size_t count_ = 0;
};

}  // namespace kvstore::io
