#include "layout.hpp"

#include <stdexcept>

namespace kvstore::transfer {

namespace {

constexpr std::uint32_t kRailsMax = 1024;

std::uint64_t leaves_of(std::uint64_t bytes) noexcept { return (bytes + kLeafBytes - 1) / kLeafBytes; }

}  // namespace

Layout::Layout(std::vector<Row> rows, std::vector<Slice> slices, const std::vector<std::uint64_t>& parts)
    : rows_(std::move(rows)), slices_(std::move(slices)) {
  for (const Row& row : rows_) bytes_ += row.length;
  lay_out_parts(parts);
  lay_out_slices();
}

void Layout::lay_out_parts(const std::vector<std::uint64_t>& lengths) {
  std::uint64_t position = 0, leaf = 0;
  for (const std::uint64_t length : lengths) {
    if (length > bytes_ - position) throw std::invalid_argument("batch: parts are longer than the batch");
    parts_.push_back({position, length, leaf});
    position += length;
    leaf += leaves_of(length);
  }
  if (!lengths.empty() && position != bytes_) throw std::invalid_argument("batch: parts are shorter than the batch");
  leaves_.assign(leaf, 0);
  checksums_.assign(lengths.size(), 0);
}

void Layout::lay_out_slices() {
  std::uint32_t row = 0;
  std::uint64_t position = 0;
  for (const Slice& slice : slices_) {
    const bool in_order = slice.row_first == row && slice.row_end > row && slice.row_end <= rows_.size();
    if (!in_order || slice.position != position || slice.rail >= kRailsMax) {
      throw std::invalid_argument("batch: slices must cover the rows in order");
    }
    for (std::uint32_t i = slice.row_first + 1; i < slice.row_end; ++i) {
      if (rows_[i].remote != rows_[row].remote) throw std::invalid_argument("batch: a slice lies in one grant");
    }
    if (!parts_.empty()) {
      const Part& part = parts_[part_at(position)];
      if ((position - part.position) % kLeafBytes != 0) throw std::invalid_argument("batch: a slice begins at a leaf");
    }
    rails_ = std::max(rails_, slice.rail + 1);
    row = slice.row_end;
    position += bytes_of(slice);
  }
  if (row != rows_.size()) throw std::invalid_argument("batch: slices must cover the rows in order");
  states_.assign(slices_.size(), 0);
}

std::uint64_t Layout::bytes_of(const Slice& slice) const noexcept {
  std::uint64_t bytes = 0;
  for (std::uint32_t i = slice.row_first; i < slice.row_end; ++i) bytes += rows_[i].length;
  return bytes;
}

// The part that the byte at `position` belongs to; empty parts own no byte.
std::size_t Layout::part_at(std::uint64_t position) const noexcept {
  const auto after = std::upper_bound(parts_.begin(), parts_.end(), position,
                                      [](std::uint64_t at, const Part& part) { return at < part.position; });
  return static_cast<std::size_t>(after - parts_.begin()) - 1;
}

std::uint64_t Layout::whole_leaves(std::uint64_t position, std::uint64_t bytes) const noexcept {
  if (bytes == 0) return 0;
  const std::uint64_t end = position + bytes;
  const Part& last = parts_[part_at(end - 1)];
  if (end == last.position + last.length) return bytes;
  const std::uint64_t border = last.position + (end - last.position) / kLeafBytes * kLeafBytes;
  return border > position ? border - position : 0;
}

void Layout::finish(Reason left) noexcept {
  whole_ = true;
  std::vector<bool> missing(parts_.size(), false);
  for (std::size_t slice = 0; slice < slices_.size(); ++slice) {
    if (states_[slice] == 0) states_[slice] = static_cast<std::uint8_t>(left);
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
