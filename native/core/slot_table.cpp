// Set-up, namespaces, finding. Rules: slot_table.hpp, slot_table_impl.hpp.
#include "slot_table.hpp"

#include <cstring>
#include <stdexcept>

#include "base/checksum.hpp"
#include "slot_table_impl.hpp"

namespace kvstore {
namespace {

constexpr std::size_t kMetaAlign = 4096;
// Room for checksums and meta per possible slot. Most slots are far larger than the smallest, so this is plenty; where
// it is not (4 KiB blocks of more than 32 parts and meta), the coldest make way as they do for payload.
constexpr std::uint64_t kTailBytesPerId = 256;

std::size_t aligned(std::size_t at) noexcept { return (at + kMetaAlign - 1) / kMetaAlign * kMetaAlign; }

void refuse(bool wrong, const char* what) {
  if (wrong) throw std::invalid_argument(what);
}

const TableConfig& checked(const TableConfig& config) {
  refuse(config.slab_bytes == 0 || config.slab_bytes % kSlotAlign != 0, "slab_bytes must be a multiple of 4096");
  refuse(config.bytes == 0 || config.bytes % config.slab_bytes != 0, "bytes must be a multiple of slab_bytes");
  refuse(config.header_bytes % kSlotAlign != 0, "header_bytes must be 0 or a multiple of 4096");
  refuse(config.slab_bytes < kSlotAlign + config.header_bytes, "slab_bytes is less than the smallest slot");
  refuse(config.slab_bytes > (4ull << 30), "slab_bytes must be at most 4 GiB");
  const std::uint64_t ids = config.bytes / config.slab_bytes * Slabs::ids_per_slab(config);
  refuse(ids >= 0xfffffff0u, "bytes: more slots than ids (2^32)");
  return config;
}

std::uint64_t row_check(const Key& digest, std::uint64_t row) {
  std::uint8_t bytes[40];
  std::memcpy(bytes, digest.bytes.data(), 32);
  std::memcpy(bytes + 32, &row, 8);
  return xxh3(bytes, sizeof bytes) | 1;  // never the "unused" of zero
}

std::uint8_t* given_memory(void* memory, std::size_t bytes, std::size_t needed) {
  refuse(bytes < needed, "meta_bytes is less than meta_bytes(config)");
  refuse(reinterpret_cast<std::uintptr_t>(memory) % alignof(Entry) != 0, "meta must be aligned to 64 bytes");
  return static_cast<std::uint8_t*>(memory);
}

void check_spec(const NamespaceSpec& spec) {
  refuse(spec.shards.empty() || spec.shards.size() > kShardsMax, "shards must be 1..64");
  for (const ShardSpec& shard : spec.shards) {
    refuse(shard.bytes == 0 || shard.bytes > kBlockBytesMax, "shard bytes must be 1..64 MiB");
    refuse(shard.part_bytes.empty() || shard.part_bytes.size() > kPartsMax, "parts of a shard must be 1..256");
    std::uint64_t sum = 0;
    for (const std::uint32_t part : shard.part_bytes) sum += part;
    refuse(sum != shard.bytes, "part_bytes must add up to the shard's bytes");
  }
}

}  // namespace

MetaLayout::MetaLayout(const TableConfig& given) {
  const TableConfig& config = checked(given);
  const std::size_t slab_count = config.bytes / config.slab_bytes;
  ids = static_cast<std::uint32_t>(slab_count * Slabs::ids_per_slab(config));
  const std::uint64_t page = TailPool::kPageUnits;
  const std::uint64_t units = (std::uint64_t{ids} * kTailBytesPerId / TailPool::kUnitBytes + page) / page * page;
  tail_units = static_cast<std::uint32_t>(std::min<std::uint64_t>(units + 64 * page, 0xffffffffu / page * page));
  rows = 0;
  slab_rows = aligned(rows + kNamespaceRowsMax * sizeof(NamespaceRow));
  entries = aligned(slab_rows + slab_count * sizeof(SlabRow));
  parents = aligned(entries + std::size_t{ids} * sizeof(Entry));
  tails = aligned(parents + std::size_t{ids} * sizeof(Key));
  end = tails + std::size_t{tail_units} * TailPool::kUnitBytes;
}

std::size_t SlotTable::meta_bytes(const TableConfig& config) { return MetaLayout(config).end; }

SlotTable::Impl::Impl(const TableConfig& given, void* memory, std::size_t bytes)
    : config(given),
      layout(given),
      own_memory(memory == nullptr ? layout.end : 0),
      base(memory == nullptr ? own_memory.data() : given_memory(memory, bytes, layout.end)),
      ns_rows(reinterpret_cast<NamespaceRow*>(base + layout.rows)),
      entries(reinterpret_cast<Entry*>(base + layout.entries)),
      parents(reinterpret_cast<Key*>(base + layout.parents)),
      index(layout.ids),
      slabs(config, reinterpret_cast<SlabRow*>(base + layout.slab_rows), entries),
      tails(reinterpret_cast<std::uint64_t*>(base + layout.tails), layout.tail_units),
      policy(make_policy(config.policy, layout.ids)) {}

SlotTable::SlotTable(const TableConfig& config, void* meta, std::size_t meta_bytes)
    : impl_(std::make_unique<Impl>(config, meta, meta_bytes)) {}
SlotTable::~SlotTable() = default;

// ---- names

std::uint64_t SlotTable::Impl::hash(std::uint16_t row, std::uint16_t shard, const Key& key) const noexcept {
  // A multiply-fold of the first 16 bytes under a seed. Keys may be an engine's own, so they are not taken for random.
  const std::uint64_t salt = config.hash_seed + (static_cast<std::uint64_t>(row) << 6 | shard) * 0xd6e8feb86659fd93ull;
  const auto product = static_cast<unsigned __int128>(key.word(0) ^ salt) *
                       static_cast<unsigned __int128>(key.word(1) ^ (config.hash_seed ^ 0xa0761d6478bd642full));
  return static_cast<std::uint64_t>(product >> 64) ^ static_cast<std::uint64_t>(product);
}

SlotId SlotTable::Impl::lookup(std::uint16_t row, std::uint16_t shard, const Key& key) const {
  return index.find(tag(hash(row, shard, key)), [&](SlotId s) { return named(s, row, shard, key); });
}

std::uint16_t SlotTable::Impl::row_of(NsId ns) const {
  const auto found = rows_by_ns.find(ns);
  return found == rows_by_ns.end() ? kNoRow : found->second;
}

std::uint16_t SlotTable::Impl::take_row(const Key& digest) {
  if (const auto found = rows_by_digest.find(digest); found != rows_by_digest.end()) return found->second;
  std::uint16_t row = 0;
  if (!rows_free.empty()) {
    row = rows_free.back();
    rows_free.pop_back();
  } else {
    if (rows.size() >= kNamespaceRowsMax) throw std::length_error("namespaces: all 8192 rows of the table are in use");
    row = static_cast<std::uint16_t>(rows.size());
    rows.emplace_back();
  }
  rows[row] = {.digest = digest, .ns = kNoNamespace, .shards = {}, .slots = 0};
  rows_by_digest.emplace(digest, row);
  ns_rows[row].digest = digest;
  std::atomic_ref<std::uint64_t>(ns_rows[row].check).store(row_check(digest, row), std::memory_order_release);
  return row;
}

void SlotTable::Impl::leave_row(std::uint16_t row) {
  if (row == kNoRow || rows[row].slots > 0 || rows[row].ns != kNoNamespace) return;
  std::atomic_ref<std::uint64_t>(ns_rows[row].check).store(0, std::memory_order_release);
  rows_by_digest.erase(rows[row].digest);
  rows_free.push_back(row);
}

void SlotTable::Impl::load_rows() {
  std::uint32_t end = 0;
  for (std::uint32_t row = 0; row < kNamespaceRowsMax; ++row) {
    if (ns_rows[row].check != 0) end = row + 1;
  }
  rows.assign(end, {});
  rows_free.clear();
  rows_by_digest.clear();
  for (std::uint32_t row = 0; row < end; ++row) {
    const NamespaceRow& kept = ns_rows[row];
    const bool good = kept.check == row_check(kept.digest, row) && !rows_by_digest.contains(kept.digest);
    if (!good) {
      ns_rows[row].check = 0;
      rows_free.push_back(static_cast<std::uint16_t>(row));
      continue;
    }
    rows[row].digest = kept.digest;
    rows_by_digest.emplace(kept.digest, static_cast<std::uint16_t>(row));
  }
}

void SlotTable::add_namespace(NsId ns, const NamespaceSpec& spec) {
  check_spec(spec);
  refuse(ns == kNoNamespace, "ns must be a handle");
  Impl& t = *impl_;
  const std::uint16_t row = t.take_row(spec.digest);
  refuse(t.rows[row].ns != kNoNamespace && t.rows[row].ns != ns, "this digest is open under another handle");
  refuse(t.row_of(ns) != kNoRow && t.row_of(ns) != row, "this handle is open for another digest");
  t.rows[row].ns = ns;
  t.rows[row].shards = spec.shards;
  t.rows_by_ns[ns] = row;
}

std::uint64_t SlotTable::drop_namespace(NsId ns) {
  Impl& t = *impl_;
  const std::uint16_t row = t.row_of(ns);
  if (row == kNoRow) return 0;
  t.rows_by_ns.erase(ns);
  std::uint64_t unlisted = 0, left = t.rows[row].slots;
  for (std::uint32_t slab = 0; slab < t.slabs.count() && left > 0; ++slab) {
    // filled() shrinks to zero when the slab's last slot goes.
    for (std::uint32_t cell = 0; cell < t.slabs.filled(slab) && left > 0; ++cell) {
      const SlotId slot = t.slabs.first_of(slab) + cell;
      if (t.entries[slot].state() == SlotState::kFree || t.entries[slot].row != row) continue;
      --left;
      if (t.retire(slot)) ++unlisted;
    }
  }
  t.rows[row].ns = kNoNamespace;
  t.leave_row(row);
  return unlisted;
}

// ---- finding

void SlotTable::find(NsId ns, std::uint16_t shard, std::span<const Key> keys, std::span<Found> out) const {
  const Impl& t = *impl_;
  refuse(out.size() < keys.size(), "out is shorter than keys");
  const std::uint16_t row = t.row_of(ns);
  if (row == kNoRow) return void(std::fill_n(out.begin(), keys.size(), Found{}));
  t.find_each(row, shard, keys, [&](std::size_t i, SlotId slot) {
    out[i].slot = slot != kNoSlot && t.entries[slot].state() == SlotState::kSealed ? slot : kNoSlot;
    return true;
  });
}

std::size_t SlotTable::longest(NsId ns, std::uint16_t shard, std::span<const Key> keys) const {
  const Impl& t = *impl_;
  const std::uint16_t row = t.row_of(ns);
  std::size_t run = 0;
  if (row == kNoRow) return 0;
  t.find_each(row, shard, keys, [&](std::size_t, SlotId slot) {
    const bool here = slot != kNoSlot && t.entries[slot].state() == SlotState::kSealed;
    run += here ? 1 : 0;
    return here;
  });
  return run;
}

template <class Wanted>
std::uint64_t SlotTable::Impl::shards_of(NsId ns, const Key& key, const Wanted& wanted) const {
  const Impl& t = *this;
  const std::uint16_t row = t.row_of(ns);
  if (row == kNoRow) return 0;
  const std::size_t shards = t.rows[row].shards.size();
  std::uint64_t bitmap = 0;
  for (std::uint16_t shard = 0; shard < shards; ++shard) t.index.prefetch(t.tag(t.hash(row, shard, key)));
  for (std::uint16_t shard = 0; shard < shards; ++shard) {
    const SlotId slot = t.lookup(row, shard, key);
    if (slot != kNoSlot && wanted(t.entries[slot])) bitmap |= 1ull << shard;
  }
  return bitmap;
}

std::uint64_t SlotTable::shards_of(NsId ns, const Key& key) const {
  return impl_->shards_of(ns, key, [](const Entry& e) { return e.state() == SlotState::kSealed; });
}

std::uint64_t SlotTable::publishing_of(NsId ns, const Key& key) const {
  return impl_->shards_of(ns, key, [this](const Entry& e) { return impl_->followable(e); });
}

// ---- what is to be known

std::uint32_t SlotTable::Impl::parts_ready(const Entry& e) const noexcept {
  if (e.state() != SlotState::kReserved) return e.parts();
  const auto* writer = writers.peek(e.writer());
  return writer != nullptr ? writer->body.parts_ready : 0;
}

SlotInfo SlotTable::Impl::info(SlotId slot) const {
  SlotInfo out;
  if (slot >= layout.ids || entries[slot].state() == SlotState::kFree) return out;
  const Entry& e = entries[slot];
  out.key = e.key;
  out.parent = parents[slot];
  out.ns = e.row == kNoRow ? kNoNamespace : rows[e.row].ns;
  out.shard = e.shard();
  out.position = e.position();
  out.state = e.state();
  out.clean = e.has(kClean);
  out.sunk = e.has(kSunk);
  out.passed = e.has(kPassed);
  out.wanted = e.has(kWanted);
  out.ticket = {slot, e.tenancy};
  out.offset = slabs.offset(slot);
  out.bytes = e.bytes;
  out.holds = e.holds();
  if (e.tail_units() > 0) {
    const std::uint64_t* tail = tails.data(e.tail);
    out.parts_ready = parts_ready(e);
    out.checksums = {tail, out.parts_ready};
    out.meta = {reinterpret_cast<const std::uint8_t*>(tail + e.parts()), e.meta_bytes()};
  }
  return out;
}

SlotInfo SlotTable::info(SlotId slot) const { return impl_->info(slot); }

SlotId SlotTable::slots_end() const {
  const Slabs& slabs = impl_->slabs;
  for (std::uint32_t slab = slabs.count(); slab-- > 0;) {
    if (slabs.filled(slab) > 0) return slabs.first_of(slab) + slabs.filled(slab);
  }
  return 0;
}

// An empty slab has none of its ids in use, and one of large blocks few of hundreds: they are jumped over.
SlotId SlotTable::next_used(SlotId from) const {
  const Slabs& slabs = impl_->slabs;
  for (std::uint32_t slab = slabs.slab_of(from); slab < slabs.count(); ++slab) {
    const SlotId first = slabs.first_of(slab), slot = std::max(from, first);
    if (slot < first + slabs.filled(slab)) return slot;
  }
  return kNoSlot;
}

void SlotTable::for_each_sealed(const std::function<void(const SlotInfo&)>& visit) const {
  const Impl& t = *impl_;
  for (std::uint32_t slab = 0; slab < t.slabs.count(); ++slab) {
    for (std::uint32_t cell = 0; cell < t.slabs.filled(slab); ++cell) {
      const SlotId slot = t.slabs.first_of(slab) + cell;
      const Entry& e = t.entries[slot];
      if (e.state() == SlotState::kSealed && t.rows[e.row].ns != kNoNamespace) visit(t.info(slot));
    }
  }
}

void SlotTable::on_evict(std::function<void(const SlotInfo&)> observer) { impl_->observer = std::move(observer); }

void SlotTable::on_progress(std::function<void(const ProgressOf&)> observer) {
  impl_->progress_observer = std::move(observer);
}

void SlotTable::Impl::tell(SlotId slot, Progress progress, std::uint32_t ready) const {
  const Entry& e = entries[slot];
  if (!progress_observer || e.row == kNoRow || rows[e.row].ns == kNoNamespace) return;
  progress_observer({rows[e.row].ns, e.shard(), e.key, progress, ready});
}

TableStats SlotTable::stats() const {
  const Impl& t = *impl_;
  TableStats out = t.counts;
  out.bytes_free = t.slabs.bytes_free();
  out.holds = t.holds.size();
  std::uint64_t filled = 0;
  for (std::uint32_t slab = 0; slab < t.slabs.count(); ++slab) filled += t.slabs.filled(slab);
  out.index_bytes = filled * (sizeof(Entry) + sizeof(Key)) + t.index.memory_bytes() + t.policy->memory_bytes() +
                    t.tails.bytes_used() + t.holds.memory_bytes() + t.writers.memory_bytes();
  return out;
}

void SlotTable::check_integrity() const { impl_->check(); }

}  // namespace kvstore
