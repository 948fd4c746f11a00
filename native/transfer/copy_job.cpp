#include "base/clock.hpp"
#include "copy_job.hpp"

#include <algorithm>
#include <stdexcept>

#include "bounds.hpp"

namespace kvstore::transfer {

Reason Spans::check(const Row& row) const noexcept {
  if (row.local >= locals.size() || row.remote >= remotes.size()) return Reason::kOutOfBounds;
  const LocalSpan& local = locals[row.local];
  if (!within(row.local_offset, row.length, local.bytes)) return Reason::kOutOfBounds;
  if (direction == Direction::kRead && !local.writable) return Reason::kNotAllowed;
  return remotes[row.remote]->covers(row.remote_offset, row.length, direction == Direction::kWrite);
}

CopyJob::CopyJob(Spans spans, Layout layout, std::int64_t deadline_ns)
    : spans_(std::move(spans)), layout_(std::move(layout)), deadline_ns_(deadline_ns), rails_(layout_.rails()) {
  for (const Row& row : layout_.rows()) {
    if (spans_.check(row) != Reason::kNone) throw std::invalid_argument("copy job: a row is out of bounds");
  }
  const std::vector<Slice>& slices = layout_.slices();
  for (std::uint32_t i = 0; i < slices.size(); ++i) {
    Rail& rail = rails_[slices[i].rail];
    rail.slices.push_back(i);
    const std::size_t rows = slices[i].row_end - slices[i].row_first;
    rail.from.reserve(rows);
    rail.to.reserve(rows);
  }
}

bool CopyJob::advance(std::uint32_t index, std::size_t slices_max) noexcept {
  Rail& rail = rails_[index];
  for (; slices_max > 0 && rail.next < rail.slices.size(); --slices_max, ++rail.next) {
    if (stop_.load(std::memory_order_relaxed) != 0) return true;
    if (monotonic_now() >= deadline_ns_) {
      stop(Reason::kLate);
      return true;
    }
    const std::uint32_t slice = rail.slices[rail.next];
    layout_.set_state(slice, copy(layout_.slices()[slice], rail));
  }
  return rail.next == rail.slices.size();
}

Reason CopyJob::copy(const Slice& slice, Rail& rail) noexcept {
  const std::vector<Row>& rows = layout_.rows();
  const RemoteSpan& remote = *spans_.remotes[rows[slice.row_first].remote];
  if (const Reason refused = remote.enter(monotonic_now()); refused != Reason::kNone) return refused;
  const bool reading = spans_.direction == Direction::kRead;
  rail.from.clear();
  rail.to.clear();
  std::uint64_t bytes = 0;
  for (std::uint32_t i = slice.row_first; i < slice.row_end; ++i) {
    const Row& row = rows[i];
    const Piece here{spans_.locals[row.local].base + row.local_offset, row.length};
    const Piece there{remote.base() + row.remote_offset, row.length};
    rail.from.push_back(reading ? there : here);
    rail.to.push_back(reading ? here : there);
    bytes += row.length;
  }
  PieceCursor from(rail.from), to(rail.to);
  if (layout_.hashes()) {
    layout_.over_parts(slice.position, bytes, [&](std::uint64_t step, std::uint64_t* leaves) { copy_leaves(from, to, step, leaves); });
  } else {
    copy_pieces(from, to, bytes);
  }
  store_fence();
  remote.leave();
  return Reason::kLanded;
}

void CopyJob::stop(Reason reason) noexcept {
  std::uint8_t none = 0;
  stop_.compare_exchange_strong(none, static_cast<std::uint8_t>(reason));
}

void CopyJob::finish() noexcept { layout_.finish(static_cast<Reason>(stop_.load())); }

}  // namespace kvstore::transfer
