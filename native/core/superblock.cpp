#include "superblock.hpp"

#include <atomic>
#include <cstring>
#include <stdexcept>

#include "base/checksum.hpp"

namespace kvstore {
namespace {

Superblock describe(const TableConfig& config) {
  Superblock block{};
  block.magic = kMetaMagic;
  block.format = kMetaFormat;
  block.header_bytes = config.header_bytes;
  block.payload_bytes = config.bytes;
  block.slab_bytes = config.slab_bytes;
  block.entries_offset = kEntriesOffset;
  block.checksum = xxh3(&block, offsetof(Superblock, checksum));
  return block;
}

// What is written before it is seen before it, by whoever opens the segment after a kill.
void barrier() { std::atomic_signal_fence(std::memory_order_seq_cst); }

template <class T>
void store_last(T& where, T value) {
  barrier();
  *static_cast<volatile T*>(&where) = value;
  barrier();
}

}  // namespace

MetaState MetaSegment::inspect(const void* meta, std::size_t meta_bytes, const TableConfig& config) {
  if (meta_bytes < bytes(config)) return MetaState::kForeign;
  Superblock found;
  std::memcpy(&found, meta, sizeof found);
  if (found.magic == 0) return MetaState::kFresh;
  const Superblock wanted = describe(config);
  return std::memcmp(&found, &wanted, offsetof(Superblock, incarnation)) == 0 ? MetaState::kUsable : MetaState::kForeign;
}

MetaSegment::MetaSegment(void* meta, std::size_t meta_bytes, const TableConfig& config, std::uint64_t incarnation)
    : base_(static_cast<std::byte*>(meta)), bytes_(meta_bytes), incarnation_(incarnation) {
  if (incarnation == 0) throw std::invalid_argument("incarnation: 0 stands for none");
  const MetaState state = inspect(meta, meta_bytes, config);
  if (state == MetaState::kForeign) throw std::invalid_argument("meta: another format or geometry, or too short");
  auto* block = reinterpret_cast<Superblock*>(base_);
  if (state == MetaState::kUsable) {
    recovered_ = true;
    former_ = block->incarnation;
  } else {
    Superblock fresh = describe(config);
    fresh.magic = 0;
    std::memcpy(block, &fresh, sizeof fresh);
  }
  block->incarnation = incarnation;
  store_last(block->magic, kMetaMagic);
}

ClientEntry* MetaSegment::clients() const noexcept { return reinterpret_cast<ClientEntry*>(base_ + kClientsOffset); }

bool MetaSegment::joined(std::uint64_t session, std::uint32_t pid, std::uint64_t start) {
  ClientEntry* entries = clients();
  for (std::uint32_t i = 0; i < kClientsMax; ++i) {
    if (entries[i].pid != 0) continue;
    entries[i].start = start;
    entries[i].session = session;
    entries[i].incarnation = incarnation_;
    store_last(entries[i].pid, pid);
    return true;
  }
  return false;
}

void MetaSegment::left(std::uint64_t session) {
  ClientEntry* entries = clients();
  for (std::uint32_t i = 0; i < kClientsMax; ++i)
    if (entries[i].pid != 0 && entries[i].session == session && entries[i].incarnation == incarnation_)
      store_last(entries[i].pid, 0u);
}

std::vector<ClientEntry> MetaSegment::former_clients() const {
  std::vector<ClientEntry> former;
  const ClientEntry* entries = clients();
  for (std::uint32_t i = 0; i < kClientsMax; ++i)
    if (entries[i].pid != 0 && entries[i].incarnation != incarnation_) former.push_back(entries[i]);
  return former;
}

bool MetaSegment::forget(std::uint32_t pid, std::uint64_t session, std::uint64_t incarnation) {
  if (incarnation == incarnation_) return false;
  ClientEntry* entries = clients();
  for (std::uint32_t i = 0; i < kClientsMax; ++i) {
    ClientEntry& entry = entries[i];
    if (entry.pid == 0 || entry.pid != pid || entry.session != session || entry.incarnation != incarnation) continue;
    store_last(entry.pid, 0u);
    return true;
  }
  return false;
}

}  // namespace kvstore
