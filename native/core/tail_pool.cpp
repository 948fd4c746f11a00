#include "tail_pool.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace kvstore {
namespace {

// Links are 16 bits: a page has at most 8192 cells.
std::uint16_t load_link(const std::uint64_t* cell) noexcept {
  std::uint16_t link;
  std::memcpy(&link, cell, sizeof link);
  return link;
}
void store_link(std::uint64_t* cell, std::uint16_t link) noexcept { std::memcpy(cell, &link, sizeof link); }

}  // namespace

TailPool::TailPool(std::uint64_t* memory, std::uint32_t units)
    : memory_(memory), page_count_(units / kPageUnits), heads_(kUnitsMax + 1, 0) {}

void TailPool::link(std::uint32_t page) {
  Page& p = pages_[page];
  std::uint32_t& head = heads_[p.units];
  p.prev = 0;
  p.next = head;
  if (head != 0) pages_[head - 1].prev = page + 1;
  head = page + 1;
  p.linked = true;
}

void TailPool::unlink(std::uint32_t page) {
  Page& p = pages_[page];
  (p.prev != 0 ? pages_[p.prev - 1].next : heads_[p.units]) = p.next;
  if (p.next != 0) pages_[p.next - 1].prev = p.prev;
  p.linked = false;
}

std::uint32_t TailPool::take(std::uint32_t units) {
  if (heads_[units] == 0) {
    std::uint32_t page = 0;
    if (heads_[0] != 0) {
      page = heads_[0] - 1;
      unlink(page);
    } else if (pages_.size() < page_count_) {
      page = static_cast<std::uint32_t>(pages_.size());
      pages_.emplace_back();
    } else {
      return kNone;
    }
    pages_[page] = Page{};
    pages_[page].units = static_cast<std::uint16_t>(units);
    link(page);
  }
  const std::uint32_t page = heads_[units] - 1;
  Page& p = pages_[page];
  std::uint32_t cell = 0;
  if (p.free_head != 0) {
    cell = p.free_head - 1u;
    p.free_head = load_link(memory_ + cell_at(page, cell));
  } else {
    cell = p.filled++;
  }
  ++p.used;
  if (p.used == cells(p)) unlink(page);
  units_used_ += units;
  return cell_at(page, cell);
}

void TailPool::give(std::uint32_t at, std::uint32_t units) {
  const std::uint32_t page = at / kPageUnits;
  Page& p = pages_[page];
  store_link(memory_ + at, p.free_head);
  p.free_head = static_cast<std::uint16_t>(at % kPageUnits / p.units + 1);
  --p.used;
  units_used_ -= units;
  if (p.used > 0) {
    if (!p.linked) link(page);
    return;
  }
  if (p.linked) unlink(page);
  p = Page{};
  link(page);
}

bool TailPool::claim(std::uint32_t at, std::uint32_t units) {
  if (units == 0 || units > kUnitsMax || at / kPageUnits >= page_count_) return false;
  const std::uint32_t page = at / kPageUnits, within = at % kPageUnits;
  if (within % units != 0 || within + units > kPageUnits) return false;
  if (page >= pages_.size()) pages_.resize(page + 1);
  Page& p = pages_[page];
  if (p.units != 0 && p.units != units) return false;
  p.units = static_cast<std::uint16_t>(units);
  claims_.push_back(at);
  units_used_ += units;
  return true;
}

void TailPool::rebuild() {
  std::sort(claims_.begin(), claims_.end());
  std::fill(heads_.begin(), heads_.end(), 0);
  auto next = claims_.begin();
  for (std::uint32_t page = 0; page < pages_.size(); ++page) {
    Page& p = pages_[page];
    p.used = p.filled = p.free_head = 0;
    p.linked = false;
    for (; next != claims_.end() && *next / kPageUnits == page; ++next) {
      const std::uint32_t cell = *next % kPageUnits / p.units;
      for (; p.filled < cell; ++p.filled) {
        store_link(memory_ + cell_at(page, p.filled), p.free_head);
        p.free_head = static_cast<std::uint16_t>(p.filled + 1);
      }
      ++p.used;
      p.filled = static_cast<std::uint16_t>(cell + 1);
    }
    if (p.used == 0) p.units = 0;
    if (p.units == 0 || p.used < cells(p)) link(page);
  }
  claims_ = {};
}

void TailPool::check_integrity() const {
  const auto fail = [](const std::string& what) { throw std::logic_error("tail pool: " + what); };
  std::uint64_t units = 0;
  for (std::uint32_t page = 0; page < pages_.size(); ++page) {
    const Page& p = pages_[page];
    if (p.units == 0) {
      if (p.used != 0 || !p.linked) fail("a free page that is not");
      continue;
    }
    std::uint32_t free = 0;
    for (std::uint16_t at = p.free_head; at != 0; at = load_link(memory_ + cell_at(page, at - 1u))) {
      if (at > p.filled || ++free > p.filled) fail("a broken free list");
    }
    if (p.used + free != p.filled || p.used == 0) fail("cells do not add up");
    if (p.linked != (p.used < cells(p))) fail("a page with room that is not offered");
    units += std::uint64_t{p.used} * p.units;
  }
  if (units != units_used_) fail("units do not add up");
}

}  // namespace kvstore
