// The head of the memory tier's meta segment: what it is, whose it is, and which clients may still touch the payload.
//
//   0      Superblock (4096 bytes)
//   4096   client table: kClientsMax entries of 32 bytes
//   65536  entries of the slot table
//
// Rules
// - Plain structures over memory given by the caller, who serialises. No clock, no I/O.
// - Every write leaves a valid segment if the process is killed after any instruction: `magic` and an entry's `pid` are
//   written last, and cleared first.
// - A client is in the table from before it gets the segment's descriptor until its connection has ended. Those left by
//   a former incarnation are former clients: until they are dead or quiet, slots they may touch are not reused.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "slot_table.hpp"

namespace kvstore {

inline constexpr std::uint64_t kMetaMagic = 0x314154454d53564bull;  // "KVSMETA1"
inline constexpr std::uint32_t kMetaFormat = 1;
inline constexpr std::uint32_t kClientsMax = 1'024;
inline constexpr std::size_t kClientsOffset = 4'096;
inline constexpr std::size_t kEntriesOffset = 65'536;

struct Superblock {
  std::uint64_t magic;
  std::uint32_t format;
  std::uint32_t header_bytes;
  std::uint64_t payload_bytes;
  std::uint64_t slab_bytes;
  std::uint64_t entries_offset;
  std::uint64_t checksum;     // XXH3-64 of the bytes before it
  std::uint64_t incarnation;  // of the process that has it open, or had it last
};

struct ClientEntry {
  std::uint32_t pid;  // 0: the entry is free
  std::uint32_t zero;
  std::uint64_t start;  // of the process, in clock ticks since boot: a pid alone may be another's
  std::uint64_t session;
  std::uint64_t incarnation;
};
static_assert(sizeof(ClientEntry) == 32 && kClientsOffset + kClientsMax * sizeof(ClientEntry) <= kEntriesOffset);

enum class MetaState { kFresh, kUsable, kForeign };

class MetaSegment {
 public:
  static std::size_t bytes(const TableConfig& config) { return kEntriesOffset + SlotTable::meta_bytes(config); }
  // kForeign: another format or geometry, or damaged: nothing in it can be used.
  static MetaState inspect(const void* meta, std::size_t meta_bytes, const TableConfig& config);

  // Claims it for `incarnation`. Throws std::invalid_argument if it is kForeign or too short.
  MetaSegment(void* meta, std::size_t meta_bytes, const TableConfig& config, std::uint64_t incarnation);

  std::byte* entries() const noexcept { return base_ + kEntriesOffset; }
  std::size_t entries_bytes() const noexcept { return bytes_ - kEntriesOffset; }
  bool recovered() const noexcept { return recovered_; }
  std::uint64_t incarnation() const noexcept { return incarnation_; }
  std::uint64_t former_incarnation() const noexcept { return former_; }

  bool joined(std::uint64_t session, std::uint32_t pid, std::uint64_t start);  // false: the table is full
  void left(std::uint64_t session);
  std::vector<ClientEntry> former_clients() const;
  // True if such a former client was there; it is not any more.
  bool forget(std::uint32_t pid, std::uint64_t session, std::uint64_t incarnation);

 private:
  ClientEntry* clients() const noexcept;
  std::byte* base_;
  std::size_t bytes_;
  std::uint64_t incarnation_, former_ = 0;
  bool recovered_ = false;
};

}  // namespace kvstore
