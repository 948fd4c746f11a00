// Room for what an entry has no fixed room for: its parts' checksums and its meta, 8 bytes a unit.
//
// Rules
// - Pages of 64 KiB, each serving one size while it holds any; so a tail costs its own units and nothing else.
// - The pool's own state is private: a restart rebuilds it from the entries that name their tails.
// - A free cell's first four bytes link to the next; nothing points at free cells but that.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "types.hpp"

namespace kvstore {

class TailPool {
 public:
  static constexpr std::uint32_t kUnitBytes = 8;
  static constexpr std::uint32_t kPageUnits = 8192;
  static constexpr std::uint32_t kUnitsMax = kPartsMax + kMetaBytesMax / kUnitBytes;
  static constexpr std::uint32_t kNone = 0xffffffffu;

  // `memory`: `units` * 8 bytes, sparse. units is a multiple of kPageUnits.
  TailPool(std::uint64_t* memory, std::uint32_t units);

  std::uint32_t take(std::uint32_t units);  // 1..kUnitsMax; kNone: no room
  void give(std::uint32_t at, std::uint32_t units);
  std::uint64_t* data(std::uint32_t at) noexcept { return memory_ + at; }
  const std::uint64_t* data(std::uint32_t at) const noexcept { return memory_ + at; }
  std::uint64_t bytes_used() const noexcept { return units_used_ * kUnitBytes; }

  // Restart: claim every tail that an entry names (false: it cannot be one), then rebuild() the free lists.
  bool claim(std::uint32_t at, std::uint32_t units);
  void rebuild();

  void check_integrity() const;

 private:
  struct Page {
    std::uint16_t units = 0, used = 0, filled = 0;
    std::uint16_t free_head = 0;       // cell + 1
    std::uint32_t prev = 0, next = 0;  // page + 1
    bool linked = false;
  };
  static std::uint32_t cells(const Page& page) noexcept { return kPageUnits / page.units; }
  std::uint32_t cell_at(std::uint32_t page, std::uint32_t cell) const noexcept {
    return page * kPageUnits + cell * pages_[page].units;
  }
  void link(std::uint32_t page);
  void unlink(std::uint32_t page);

  std::uint64_t* memory_;
  std::uint32_t page_count_;
  std::vector<Page> pages_;           // those ever used; the rest are fresh
  std::vector<std::uint32_t> heads_;  // by units: pages with room; [0]: pages used before and free now
  std::vector<std::uint32_t> claims_;
  std::uint64_t units_used_ = 0;
};

}  // namespace kvstore
