#include "job.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "transfer/bounds.hpp"

namespace kvstore::tcp {

Job::Job(std::uint64_t token, Direction direction, std::vector<LocalSpan> locals, std::vector<Access> accesses, Layout layout)
    : token_(token), direction_(direction), locals_(std::move(locals)), accesses_(std::move(accesses)), layout_(std::move(layout)),
      left_(layout_.slices().size()) {
  for (const transfer::Row& row : layout_.rows()) {
    const bool fits = row.local < locals_.size() && row.remote < accesses_.size() && row.length > 0 &&
                      transfer::within(row.local_offset, row.length, locals_[row.local].bytes) &&
                      (direction_ == Direction::kWrite || locals_[row.local].writable);
    if (!fits) throw std::invalid_argument("batch: a row is out of bounds");
  }
}

Job::Job(std::uint64_t token, std::vector<Access> accesses)
    : token_(token), direction_(Direction::kRead), accesses_(std::move(accesses)), layout_({}, {}, {}), probes_(accesses_.size(), 0),
      left_(accesses_.size()) {}

std::size_t Job::pieces(Place place, std::uint64_t bytes, std::span<iovec> out) const noexcept {
  const std::vector<transfer::Row>& rows = layout_.rows();
  std::size_t count = 0;
  for (; bytes > 0 && count < out.size() && place.row < rows.size(); ++place.row, place.offset = 0) {
    const transfer::Row& row = rows[place.row];
    const std::uint64_t step = std::min(bytes, row.length - place.offset);
    out[count++] = {locals_[row.local].base + row.local_offset + place.offset, static_cast<std::size_t>(step)};
    bytes -= step;
  }
  return count;
}

void Job::advance(Place& place, std::uint64_t bytes) const noexcept {
  const std::vector<transfer::Row>& rows = layout_.rows();
  while (bytes > 0) {
    const std::uint64_t step = std::min(bytes, rows[place.row].length - place.offset);
    place.offset += step;
    bytes -= step;
    if (place.offset == rows[place.row].length) place = {place.row + 1, 0};
  }
}

std::uint64_t Job::hash(const Slice& slice, Place& place, std::uint64_t hashed, std::uint64_t landed) noexcept {
  const std::uint64_t ready = layout_.whole_leaves(slice.position + hashed, landed - hashed);
  layout_.over_parts(slice.position + hashed, ready, [&](std::uint64_t bytes, std::uint64_t* leaves) {
    while (bytes > 0) {
      const std::uint64_t leaf = std::min<std::uint64_t>(bytes, kLeafBytes);
      iovec piece[1] = {};
      alignas(64) std::byte gathered[kLeafBytes];
      pieces(place, leaf, piece);
      if (piece[0].iov_len == leaf) {
        *leaves++ = xxh3(piece[0].iov_base, leaf);
        advance(place, leaf);
      } else {
        for (std::uint64_t at = 0; at < leaf;) {
          pieces(place, leaf - at, piece);
          std::memcpy(gathered + at, piece[0].iov_base, piece[0].iov_len);
          advance(place, piece[0].iov_len);
          at += piece[0].iov_len;
        }
        *leaves++ = xxh3(gathered, leaf);
      }
      bytes -= leaf;
    }
  });
  return hashed + ready;
}

void Job::stop(Reason reason) noexcept {
  std::uint8_t none = 0;
  stop_.compare_exchange_strong(none, static_cast<std::uint8_t>(reason));
}

bool Job::settle(std::size_t slice, Reason reason) noexcept {
  if (probes_.empty()) {
    layout_.set_state(slice, reason);
  } else {
    probes_[slice] = static_cast<std::uint8_t>(reason);
  }
  return left_.fetch_sub(1) == 1;
}

void Job::finish() noexcept {
  layout_.finish(stopped());
  for (std::uint8_t& state : probes_)
    if (state == 0) state = static_cast<std::uint8_t>(stopped());
  finished_.store(true);
}

}  // namespace kvstore::tcp
