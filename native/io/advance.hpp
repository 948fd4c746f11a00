// What is left of a task after a short transfer.
#pragma once
#include <cstddef>

#include "ledger.hpp"

namespace kvstore::io {

// Drops the first `moved` bytes from the task's pieces and moves its offset on. True if nothing is left.
inline bool advance(Task& task, std::uint64_t moved) {
  task.offset += moved;
  std::size_t gone = 0;
  while (gone < task.pieces.size() && moved >= task.pieces[gone].iov_len) moved -= task.pieces[gone++].iov_len;
  task.pieces.drop_front(gone);
  if (task.pieces.empty()) return true;
  task.pieces[0].iov_base = static_cast<std::byte*>(task.pieces[0].iov_base) + moved;
  task.pieces[0].iov_len -= moved;
  return false;
}

}  // namespace kvstore::io
