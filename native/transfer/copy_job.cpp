#include "copy_job.hpp"

#include <algorithm>
#include <stdexcept>

#include "base/checksum.hpp"
#include "bounds.hpp"

namespace kvstore::transfer {

namespace {

constexpr std::uint32_t kRailsMax = 1024;

std::uint64_t leaves_of(std::uint64_t bytes) noexcept { return (bytes + kLeafBytes - 1) / kLeafBytes; }

}  // namespace

Reason Spans::check(const Row& row) const noexcept {
  if (row.local >= locals.size() || row.remote >= remotes.size()) return Reason::kOutOfBounds;
  const LocalSpan& local = locals[row.local];
  if (!within(row.local_offset, row.length, local.bytes)) return Reason::kOutOfBounds;
  if (direction == Direction::kRead && !local.writable) return Reason::kNotAllowed;
  return remotes[row.remote]->covers(row.remote_offset, row.length, direction == Direction::kWrite);
}

CopyJob::CopyJob(Spans spans, std::vector<Row> rows, std::vector<Slice> slices, const std::vector<std::uint64_t>& parts,
                 std::int64_t deadline_ns)
    : spans_(std::move(spans)), rows_(std::move(rows)), slices_(std::move(slices)), deadline_ns_(deadline_ns) {
  for (const Row& row : rows_) {
    if (spans_.check(row) != Reason::kNone) throw std::invalid_argument("copy job: a row is out of bounds");
    bytes_ += row.length;
  }
  lay_out_parts(parts);
  lay_out_slices();
}

void CopyJob::lay_out_parts(const std::vector<std::uint64_t>& lengths) {
  std::uint64_t position = 0, leaf = 0;
  for (const std::uint64_t length : lengths) {
    if (length > bytes_ - position) throw std::invalid_argument("copy job: parts are longer than the batch");
    parts_.push_back({position, length, leaf});
    position += length;
    leaf += leaves_of(length);
  }
  if (!lengths.empty() && position != bytes_) throw std::invalid_argument("copy job: parts are shorter than the batch");
  leaves_.assign(leaf, 0);
  checksums_.assign(lengths.size(), 0);
}

void CopyJob::lay_out_slices() {
  std::uint32_t row = 0, rails = 0;
  std::uint64_t position = 0;
  for (const Slice& slice : slices_) {
    const bool in_order = slice.row_first == row && slice.row_end > row && slice.row_end <= rows_.size();
    if (!in_order || slice.position != position || slice.rail >= kRailsMax) {
      throw std::invalid_argument("copy job: slices must cover the rows in order");
    }
    for (std::uint32_t i = slice.row_first + 1; i < slice.row_end; ++i) {
      if (rows_[i].remote != rows_[row].remote) throw std::invalid_argument("copy job: a slice lies in one grant");
    }
    if (!parts_.empty()) {
      const Part& part = parts_[part_at(position)];
      if ((position - part.position) % kLeafBytes != 0) throw std::invalid_argument("copy job: a slice begins at a leaf");
    }
    rails = std::max(rails, slice.rail + 1);
    row = slice.row_end;
    position += bytes_of(slice);
  }
  if (row != rows_.size()) throw std::invalid_argument("copy job: slices must cover the rows in order");
  rails_.resize(rails);
  for (std::uint32_t i = 0; i < slices_.size(); ++i) {
    Rail& rail = rails_[slices_[i].rail];
    rail.slices.push_back(i);
    const std::size_t rows = slices_[i].row_end - slices_[i].row_first;
    rail.from.reserve(rows);
    rail.to.reserve(rows);
  }
  states_.assign(slices_.size(), 0);
}

std::uint64_t CopyJob::bytes_of(const Slice& slice) const noexcept {
  std::uint64_t bytes = 0;
  for (std::uint32_t i = slice.row_first; i < slice.row_end; ++i) bytes += rows_[i].length;
  return bytes;
}

// The part that the byte at `position` belongs to; empty parts own no byte.
std::size_t CopyJob::part_at(std::uint64_t position) const noexcept {
  const auto after = std::upper_bound(parts_.begin(), parts_.end(), position,
                                      [](std::uint64_t at, const Part& part) { return at < part.position; });
  return static_cast<std::size_t>(after - parts_.begin()) - 1;
}

bool CopyJob::advance(std::uint32_t index, std::size_t slices_max) noexcept {
  Rail& rail = rails_[index];
  for (; slices_max > 0 && rail.next < rail.slices.size(); --slices_max, ++rail.next) {
    if (stop_.load(std::memory_order_relaxed) != 0) return true;
    if (monotonic_ns() >= deadline_ns_) {
      stop(Reason::kLate);
      return true;
    }
    const std::uint32_t slice = rail.slices[rail.next];
    states_[slice] = static_cast<std::uint8_t>(copy(slices_[slice], rail));
  }
  return rail.next == rail.slices.size();
}

Reason CopyJob::copy(const Slice& slice, Rail& rail) noexcept {
  const RemoteSpan& remote = *spans_.remotes[rows_[slice.row_first].remote];
  if (const Reason refused = remote.enter(monotonic_ns()); refused != Reason::kNone) return refused;
  const bool reading = spans_.direction == Direction::kRead;
  rail.from.clear();
  rail.to.clear();
  std::uint64_t bytes = 0;
  for (std::uint32_t i = slice.row_first; i < slice.row_end; ++i) {
    const Row& row = rows_[i];
    const Piece here{spans_.locals[row.local].base + row.local_offset, row.length};
    const Piece there{remote.base() + row.remote_offset, row.length};
    rail.from.push_back(reading ? there : here);
    rail.to.push_back(reading ? here : there);
    bytes += row.length;
  }
  PieceCursor from(rail.from), to(rail.to);
  if (parts_.empty()) {
    copy_pieces(from, to, bytes);
  } else {
    hash(slice.position, from, to, bytes);
  }
  store_fence();
  remote.leave();
  return Reason::kLanded;
}

void CopyJob::hash(std::uint64_t position, PieceCursor& from, PieceCursor& to, std::uint64_t bytes) noexcept {
  for (std::size_t k = part_at(position); bytes > 0; ++k) {
    const Part& part = parts_[k];
    const std::uint64_t into = position - part.position;
    const std::uint64_t step = std::min(bytes, part.length - into);
    copy_leaves(from, to, step, leaves_.data() + part.leaf_first + into / kLeafBytes);
    position += step;
    bytes -= step;
  }
}

void CopyJob::stop(Reason reason) noexcept {
  std::uint8_t none = 0;
  stop_.compare_exchange_strong(none, static_cast<std::uint8_t>(reason));
}

void CopyJob::finish() noexcept {
  whole_ = true;
  std::size_t slice = 0;
  std::vector<bool> missing(parts_.size(), false);
  for (; slice < slices_.size(); ++slice) {
    if (states_[slice] == 0) states_[slice] = stop_.load();
    if (states_[slice] == static_cast<std::uint8_t>(Reason::kLanded)) continue;
    whole_ = false;
    if (parts_.empty()) continue;
    const std::uint64_t end = slices_[slice].position + bytes_of(slices_[slice]);
    for (std::size_t k = part_at(slices_[slice].position); k < parts_.size() && parts_[k].position < end; ++k) missing[k] = true;
  }
  for (std::size_t k = 0; k < parts_.size(); ++k) {
    if (missing[k]) continue;
    checksums_[k] = combine_leaves(std::span(leaves_).subspan(parts_[k].leaf_first, leaves_of(parts_[k].length)));
  }
}

}  // namespace kvstore::transfer
