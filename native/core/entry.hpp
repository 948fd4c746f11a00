// The slot entry as it lies in the table's meta memory (docs/format/slot.md, "Entry in memory").
//
// Rules
// - 64 bytes: one cache line answers "is this the name, and is it sealed". The parent key lies apart, 32 bytes a slot.
// - `control` is the last word written of every change and is stored with release: what it says holds of the rest, at
//   whatever instruction the process ends.
// - What a restart must know of holders is here too: `views` counts zero-copy holds, kWriter says that somebody may
//   still write. The other flags and the count of holds mean nothing to the next process.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "slot_table.hpp"
#include "types.hpp"

namespace kvstore {

inline constexpr std::uint32_t kHoldsPerSlotMax = 0xffff;  // a hold that would pass it is not made: its run ends there

inline constexpr std::uint32_t kPositionMax = 0xffffff;  // later blocks of a chain all say this
inline constexpr std::uint64_t kCheckMask = (1ull << 40) - 1;

enum EntryFlag : std::uint32_t {
  kSunk = 1u << 7,     // went down since it was last touched, whether or not it is still there
  kClean = 1u << 8,    // a lower tier has it too
  kAside = 1u << 9,    // the policy was refused it and waits for released()
  kWriter = 1u << 10,  // a reservation record belongs to it: `check` holds its place
  kFormer = 1u << 11,  // kept for clients of a former process
  kLogged = 1u << 12,  // in the list of changes
  kRanked = 1u << 13,  // the policy knows it
  kWanted = 1u << 14,  // fetched or put again since it came, or its caller says that it will be
  kPassed = 1u << 15,  // write-behind was asked about it since it was last touched, and did not want it
};

struct alignas(64) Entry {
  std::uint32_t control;   // bits 0-6 state, 7-15 flags, 16-31 holds of any kind
  std::uint32_t tenancy;   // counts the tenancies of this slot, from 1
  std::uint16_t row;       // of its namespace, in the meta memory's namespace rows
  std::uint16_t views;     // holds without copy
  std::uint32_t shape;     // bits 0-8 parts, 9-19 meta bytes, 20-25 shard
  std::uint32_t bytes;     // of the payload
  std::uint32_t tail;      // where its checksums and meta lie in the tail pool, in units of 8 bytes; FREE: next free + 1
  std::uint64_t check;     // bits 0-39 SEALED: the same bits of XXH3-64 of what must not change; 40-63 position
  Key key;

  SlotState state() const noexcept { return static_cast<SlotState>(control & 0x7f); }
  std::uint32_t holds() const noexcept { return control >> 16; }
  bool has(EntryFlag flag) const noexcept { return (control & flag) != 0; }
  std::uint32_t parts() const noexcept { return shape & 0x1ff; }
  std::uint32_t meta_bytes() const noexcept { return shape >> 9 & 0x7ff; }
  std::uint16_t shard() const noexcept { return static_cast<std::uint16_t>(shape >> 20 & 0x3f); }
  std::uint32_t tail_units() const noexcept { return parts() + (meta_bytes() + 7) / 8; }
  std::uint32_t position() const noexcept { return static_cast<std::uint32_t>(check >> 40); }
  std::uint64_t checksum() const noexcept { return check & kCheckMask; }
  std::uint32_t writer() const noexcept { return static_cast<std::uint32_t>(check); }
  void set_check(std::uint64_t checksum, std::uint32_t position) noexcept {
    check = (checksum & kCheckMask) | static_cast<std::uint64_t>(std::min(position, kPositionMax)) << 40;
  }
  static std::uint32_t make_shape(std::uint32_t parts, std::uint32_t meta_bytes, std::uint32_t shard) noexcept {
    return parts | meta_bytes << 9 | shard << 20;
  }

  void store_control(std::uint32_t value) noexcept {
    std::atomic_ref<std::uint32_t>(control).store(value, std::memory_order_release);
    std::atomic_signal_fence(std::memory_order_seq_cst);  // nor may what follows be stored before it
  }
  // A new state drops every flag that is not named (but kLogged: a list has it), and keeps the count of holds.
  void set_state(SlotState state, std::uint32_t flags) noexcept {
    store_control((control & (0xffff0000u | kLogged)) | flags | static_cast<std::uint32_t>(state));
  }
  void set(EntryFlag flag, bool on) noexcept { store_control(on ? control | flag : control & ~std::uint32_t{flag}); }
  // Somebody asked for it: what write-behind decided of it before counts no more.
  void touch() noexcept { store_control((control | kWanted) & ~(std::uint32_t{kSunk} | kPassed)); }
  void add_hold() noexcept { store_control(control + 0x10000u); }
  void drop_hold() noexcept { store_control(control - 0x10000u); }
};
static_assert(sizeof(Entry) == 64);

}  // namespace kvstore
