// One batch in motion over RDMA: where its bytes lie here and there, by which keys, and what has come of it.
//
// Rules
// - Of the engine's thread alone, from submit to the event that tells Python that it is finished.
// - A row is one work request. A slice is settled when all of its rows are back; its leaves are hashed then, if it landed.
// - The last slice to settle ends the job: then nothing touches its local memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "transfer/layout.hpp"
#include "transfer/reason.hpp"

namespace kvstore::rdma {

using transfer::Direction;
using transfer::Layout;
using transfer::LocalSpan;
using transfer::Reason;
using transfer::Slice;

constexpr std::uint32_t kAnywhere = ~std::uint32_t{0};

struct Local {
  LocalSpan span;
  std::vector<std::uint32_t> keys;  // one a device of ours
  std::uint32_t near = kAnywhere;   // the devices of ours that lie near this memory, a bit each
};

// A granted range of the peer's memory as its devices know it.
struct Window {
  std::uint64_t access;             // the grant: a number of Python's, never used again
  std::uint64_t base;               // what a row's offset counts from, in the devices' addresses
  std::vector<std::uint32_t> keys;  // one a device of the peer's
};

class Job {
 public:
  // `windows_of_rows`: the window of each row. Throws std::invalid_argument for rows outside of `locals`, without bytes, or of a
  // window that is not there, and for locals and windows without keys.
  Job(std::uint64_t token, Direction direction, std::vector<Local> locals, std::vector<Window> windows,
      std::vector<std::uint32_t> windows_of_rows, Layout layout);

  std::uint64_t token() const noexcept { return token_; }
  Direction direction() const noexcept { return direction_; }
  const Layout& layout() const noexcept { return layout_; }
  std::uint64_t access(const Slice& slice) const noexcept { return windows_[windows_of_rows_[slice.row_first]].access; }

  // A row, as a work request over these devices wants it.
  struct Request {
    std::uint64_t local, remote;
    std::uint32_t bytes, local_key, remote_key;
  };
  Request request(std::uint32_t row, std::uint32_t device, std::uint32_t peer_device) const noexcept;
  std::uint32_t near(std::uint32_t row) const noexcept { return locals_[layout_.rows()[row].local].near; }
  bool reaches(std::uint32_t device, std::uint32_t peer_device) const noexcept;  // whether there are keys for them

  void stop(Reason reason) noexcept {
    if (stopped_ == Reason::kNone) stopped_ = reason;
  }
  Reason stopped() const noexcept { return stopped_; }

  // `rows` of a slice are back, or will not be asked for: kNone where the job was stopped. True: the job is over.
  bool done(std::size_t slice, std::uint32_t rows, Reason reason) noexcept;
  bool over() const noexcept { return left_ == 0; }
  void finish() noexcept { layout_.finish(stopped_); }

 private:
  struct Progress {
    std::uint32_t rows_left;
    Reason missing = Reason::kLanded;  // what came of the first row that did not land
  };
  void hash(const Slice& slice) noexcept;

  std::uint64_t token_;
  Direction direction_;
  std::vector<Local> locals_;
  std::vector<Window> windows_;
  std::vector<std::uint32_t> windows_of_rows_;
  Layout layout_;
  std::vector<Progress> progress_;  // a slice
  std::size_t left_;                // slices
  Reason stopped_ = Reason::kNone;
};

}  // namespace kvstore::rdma
