#include "job.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "transfer/bounds.hpp"

namespace kvstore::rdma {

Job::Job(std::uint64_t token, Direction direction, std::vector<Local> locals, std::vector<Window> windows,
         std::vector<std::uint32_t> windows_of_rows, Layout layout)
    : token_(token), direction_(direction), locals_(std::move(locals)), windows_(std::move(windows)),
      windows_of_rows_(std::move(windows_of_rows)), layout_(std::move(layout)), left_(layout_.slices().size()) {
  const std::vector<transfer::Row>& rows = layout_.rows();
  if (windows_of_rows_.size() != rows.size()) throw std::invalid_argument("batch: a window a row");
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const transfer::Row& row = rows[i];
    const bool fits = row.local < locals_.size() && windows_of_rows_[i] < windows_.size() && row.length > 0 &&
                      row.length <= std::numeric_limits<std::uint32_t>::max() / 2 &&
                      transfer::within(row.local_offset, row.length, locals_[row.local].span.bytes) &&
                      (direction_ == Direction::kWrite || locals_[row.local].span.writable);
    if (!fits) throw std::invalid_argument("batch: a row is out of bounds");
  }
  for (const Slice& slice : layout_.slices()) progress_.push_back({slice.row_end - slice.row_first});
}

Job::Request Job::request(std::uint32_t row, std::uint32_t device, std::uint32_t peer_device) const noexcept {
  const transfer::Row& asked = layout_.rows()[row];
  const Local& local = locals_[asked.local];
  const Window& window = windows_[windows_of_rows_[row]];
  return {reinterpret_cast<std::uint64_t>(local.span.base) + asked.local_offset, window.base + asked.remote_offset,
          static_cast<std::uint32_t>(asked.length), local.keys[device], window.keys[peer_device]};
}

bool Job::reaches(std::uint32_t device, std::uint32_t peer_device) const noexcept {
  return std::ranges::all_of(locals_, [=](const Local& local) { return device < local.keys.size(); }) &&
         std::ranges::all_of(windows_, [=](const Window& window) { return peer_device < window.keys.size(); });
}

bool Job::done(std::size_t slice, std::uint32_t rows, Reason reason) noexcept {
  Progress& progress = progress_[slice];
  if (progress.missing == Reason::kLanded) progress.missing = reason;
  progress.rows_left -= rows;
  if (progress.rows_left > 0) return false;
  if (progress.missing == Reason::kLanded && layout_.hashes()) hash(layout_.slices()[slice]);
  layout_.set_state(slice, progress.missing);
  return --left_ == 0;
}

void Job::hash(const Slice& slice) noexcept {
  const std::vector<transfer::Row>& rows = layout_.rows();
  std::uint32_t row = slice.row_first;
  std::uint64_t into = 0;
  const auto take = [&](std::uint64_t most) {  // the next bytes of the slice that lie in one place
    const std::byte* from = locals_[rows[row].local].span.base + rows[row].local_offset + into;
    const std::uint64_t step = std::min(most, rows[row].length - into);
    into += step;
    if (into == rows[row].length) {
      ++row;
      into = 0;
    }
    return std::pair(from, step);
  };
  layout_.over_parts(slice.position, layout_.bytes_of(slice), [&](std::uint64_t bytes, std::uint64_t* leaves) {
    for (; bytes > 0; ++leaves) {
      const std::uint64_t leaf = std::min<std::uint64_t>(bytes, kLeafBytes);
      auto [from, step] = take(leaf);
      alignas(64) std::byte gathered[kLeafBytes];
      if (step < leaf) {
        std::memcpy(gathered, from, step);
        for (std::uint64_t at = step; at < leaf; at += step) {
          std::tie(from, step) = take(leaf - at);
          std::memcpy(gathered + at, from, step);
        }
        from = gathered;
      }
      *leaves = xxh3(from, leaf);
      bytes -= leaf;
    }
  });
}

}  // namespace kvstore::rdma
