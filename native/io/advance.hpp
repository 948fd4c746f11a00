// What is left of an operation after a short transfer.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include <sys/uio.h>

namespace kvstore::io {

// Where the next byte goes: the file's offset, and the pieces, which are changed in place.
struct Rest {
  std::uint64_t offset = 0;
  std::span<iovec> pieces;
};

// Moves on by the first `moved` bytes. True if nothing is left.
inline bool advance(Rest& rest, std::uint64_t moved) {
  rest.offset += moved;
  std::size_t gone = 0;
  while (gone < rest.pieces.size() && moved >= rest.pieces[gone].iov_len) moved -= rest.pieces[gone++].iov_len;
  rest.pieces = rest.pieces.subspan(gone);
  if (rest.pieces.empty()) return true;
  rest.pieces[0].iov_base = static_cast<std::byte*>(rest.pieces[0].iov_base) + moved;
  rest.pieces[0].iov_len -= moved;
  return false;
}

}  // namespace kvstore::io
