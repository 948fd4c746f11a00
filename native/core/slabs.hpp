// Where slots lie: slabs of a medium, each cut into cells of one size while it has any.
//
// Rules
// - A slot's id is its place: slab * ids_per_slab + cell. So an offset needs no memory, and a slab's slots are a range.
// - A cell is header + payload rounded up to kSlotAlign. A slab is given to a cell size when first needed and is free
//   again when its last cell is.
// - `busy` counts a slab's slots that may not go (reserved, held, retired): a slab can be emptied when it is zero.
// - Each slab's size and how far it was ever filled lie in the meta memory: they bound what a restart must look at.
// - Free cells are linked through their entries (Entry::tail), newest first; cells never used follow.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "entry.hpp"

namespace kvstore {

struct SlabRow {            // in meta memory
  std::uint32_t cell_units;  // of kSlotAlign bytes; 0: free
  std::uint32_t filled;      // cells ever used under this size
};

class Slabs {
 public:
  Slabs(const TableConfig& config, SlabRow* rows, Entry* entries);

  std::uint32_t cell_units(std::uint64_t payload_bytes) const noexcept {
    return static_cast<std::uint32_t>((payload_bytes + header_bytes_ + kSlotAlign - 1) / kSlotAlign);
  }
  bool fits(std::uint32_t units) const noexcept { return units != 0 && units <= slab_units_; }
  static std::uint32_t ids_per_slab(const TableConfig& config) noexcept {
    return static_cast<std::uint32_t>(config.slab_bytes / (kSlotAlign + config.header_bytes));
  }

  // A free cell, from a slab of this size or a free slab; kNoSlot: neither is left.
  SlotId take(std::uint32_t units);
  void give(SlotId slot);

  std::uint32_t count() const noexcept { return static_cast<std::uint32_t>(slabs_.size()); }
  std::uint32_t slab_of(SlotId slot) const noexcept { return slot / per_slab_; }
  SlotId first_of(std::uint32_t slab) const noexcept { return slab * per_slab_; }
  std::uint32_t filled(std::uint32_t slab) const noexcept { return rows_[slab].filled; }
  std::uint32_t units_of(std::uint32_t slab) const noexcept { return rows_[slab].cell_units; }
  std::uint32_t used(std::uint32_t slab) const noexcept { return slabs_[slab].used; }
  std::uint32_t epoch(std::uint32_t slab) const noexcept { return slabs_[slab].epoch; }
  std::uint64_t offset(SlotId slot) const noexcept;  // of the payload
  SlotId slot_at(std::uint64_t payload_offset, std::uint32_t units) const noexcept;  // kNoSlot: no cell begins there
  void add_busy(SlotId slot) noexcept { ++slabs_[slab_of(slot)].busy; }
  void drop_busy(SlotId slot) noexcept { --slabs_[slab_of(slot)].busy; }
  std::uint32_t busy(std::uint32_t slab) const noexcept { return slabs_[slab].busy; }
  std::uint64_t bytes_free() const noexcept;

  // Restart. claim() takes the cell of a known slot (false: it does not fit what its slab is by now), then rebuild()
  // links what is left over. reset_for_claims() first forgets all but the rows in meta memory. continue_after(): what a
  // former process may have written under; slabs claimed from here on are of a later epoch, and so is all that is written.
  void reset_for_claims();
  bool claim(SlotId slot, std::uint32_t units);
  void continue_after(std::uint32_t epoch) noexcept { epochs_ = std::max(epochs_, epoch); }
  std::uint32_t epochs() const noexcept { return epochs_; }  // the latest given
  void rebuild();
  // True where the meta memory says something possible of this slab.
  bool row_is_sane(std::uint32_t slab) const noexcept;
  void clear_row(std::uint32_t slab) noexcept { rows_[slab] = {}; }

  void check_integrity() const;

 private:
  struct Slab {
    std::uint32_t used = 0, busy = 0;
    std::uint32_t free_head = 0;  // slot + 1
    std::uint32_t epoch = 0;      // counts the times that a slab was given a size, over the whole table
    std::uint32_t prev = 0, next = 0;  // of the slabs of its size with room, or of the free ones; slab + 1
    bool linked = false;
  };
  std::uint32_t cells(std::uint32_t slab) const noexcept { return slab_units_ / rows_[slab].cell_units; }
  std::uint32_t& head_for(std::uint32_t slab) noexcept { return heads_[rows_[slab].cell_units]; }
  bool has_room(std::uint32_t slab) const noexcept { return slabs_[slab].used < cells(slab); }
  // Never back to zero: at its end the order of claims is lost, which costs blocks and no wrong byte.
  std::uint32_t next_epoch() noexcept { return epochs_ += epochs_ != 0xffffffffu ? 1 : 0; }
  void link(std::uint32_t slab);
  void unlink(std::uint32_t slab);

  SlabRow* rows_;
  Entry* entries_;
  std::uint64_t slab_bytes_;
  std::uint32_t header_bytes_, slab_units_, per_slab_;
  std::uint32_t epochs_ = 0;
  std::vector<Slab> slabs_;
  std::vector<std::uint32_t> heads_;  // by cell units: slabs with room; [0]: free slabs
};

}  // namespace kvstore
