// Namespaces, publishing, counters and the work queue of a node. Rules: node_core.hpp.
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <numeric>
#include <stdexcept>
#include <system_error>

#include "node_core_impl.hpp"

namespace kvstore {
namespace {

constexpr std::size_t kClosedRowsMax = 1'024;  // cleared namespaces whose counts are still told
constexpr std::size_t kCorruptQueuedMax = 4'096;

const CoreConfig& checked(const CoreConfig& config) {
  if (config.keys_per_call_max == 0) throw std::invalid_argument("keys_per_call_max: at least 1");
  if (!(config.free_share >= 0.0 && config.free_share <= 1.0)) throw std::invalid_argument("free_share: 0 to 1");
  if (config.file && config.memory.bytes == 0) throw std::invalid_argument("memory.bytes: at least one slab");
  return config;
}

bool good_shard(const ShardSpec& shard) {
  const std::uint64_t sum = std::accumulate(shard.part_bytes.begin(), shard.part_bytes.end(), std::uint64_t{0});
  const bool empty_part = std::find(shard.part_bytes.begin(), shard.part_bytes.end(), 0u) != shard.part_bytes.end();
  return !shard.part_bytes.empty() && shard.part_bytes.size() <= kPartsMax && !empty_part && sum == shard.bytes &&
         sum >= kBlockBytesMin && sum <= kBlockBytesMax;
}

}  // namespace

bool namespace_is_good(const NamespaceSpec& spec) {
  return spec.block_tokens > 0 && !spec.shards.empty() && spec.shards.size() <= kShardsMax &&
         std::all_of(spec.shards.begin(), spec.shards.end(), good_shard);
}

void SlotRows::add(const SlotInfo& info) {
  tickets.push_back(info.ticket);
  keys.push_back(info.key);
  parents.push_back(info.parent);
  ns.push_back(info.ns);
  shards.push_back(info.shard);
  states.push_back(static_cast<std::uint8_t>(info.state));
  clean.push_back(info.clean ? 1 : 0);
  wanted.push_back(info.wanted ? 1 : 0);
  offsets.push_back(info.offset);
  bytes.push_back(info.bytes);
  positions.push_back(info.position);
  holds.push_back(info.holds);
  checksum_counts.push_back(static_cast<std::uint32_t>(info.checksums.size()));
  checksums.insert(checksums.end(), info.checksums.begin(), info.checksums.end());
  metas.emplace_back(info.meta.begin(), info.meta.end());
}

NodeCore::Impl::Impl(const CoreConfig& given, void* meta_memory, std::size_t meta_bytes, std::uint64_t incarnation)
    : config(checked(given)),
      window(std::min(given.window_bytes, given.memory.bytes / 4)),
      pinned_max(given.pinned_bytes_max != 0 ? given.pinned_bytes_max : given.memory.bytes / 4),
      held_max(given.held_bytes_max != 0 ? given.held_bytes_max : given.memory.bytes / 2),
      meta(meta_memory, meta_bytes, given.memory, incarnation),
      memory(given.memory, meta.entries(), meta.entries_bytes()),
      events(given.events_max, given.event_meta_bytes_max),
      families(given.families_max) {
  if (given.file) file.emplace(*given.file, nullptr, 0);
  if (meta.recovered()) {
    recovered = memory.recover();
    if (meta.former_clients().empty()) memory.former_clients_gone();
  }
  memory.on_evict([this](const SlotInfo& info) { evicted(Tier::kMemory, info); });
  if (file) file->on_evict([this](const SlotInfo& info) { evicted(Tier::kFile, info); });
  work_event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  memory.on_progress([this](const ProgressOf& told) { progressed(told); });
  watch_event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (work_event < 0 || watch_event < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
}

NodeCore::Impl::~Impl() {
  close(work_event);
  close(watch_event);
}

NodeCore::NodeCore(const CoreConfig& config, void* meta, std::size_t meta_bytes, std::uint64_t incarnation)
    : impl_(std::make_unique<Impl>(config, meta, meta_bytes, incarnation)) {}
NodeCore::~NodeCore() = default;

const CoreConfig& NodeCore::config() const noexcept { return impl_->config; }
std::uint64_t NodeCore::window_bytes() const noexcept { return impl_->window; }
std::uint64_t NodeCore::incarnation() const noexcept { return impl_->meta.incarnation(); }
std::uint64_t NodeCore::former_incarnation() const noexcept { return impl_->meta.former_incarnation(); }
std::size_t NodeCore::recovered() const noexcept { return impl_->recovered; }
OwnerId NodeCore::new_owner() { return impl_->next_owner.fetch_add(1); }

// ---- clients of the segment

bool NodeCore::client_joined(OwnerId owner, std::uint32_t pid, std::uint64_t start) {
  std::lock_guard lock(impl_->mutex);
  return impl_->meta.joined(owner, pid, start);
}

void NodeCore::client_left(OwnerId owner) {
  std::lock_guard lock(impl_->mutex);
  impl_->meta.left(owner);
}

std::vector<ClientEntry> NodeCore::former_clients() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->meta.former_clients();
}

bool NodeCore::former_client_gone(std::uint32_t pid, std::uint64_t session, std::uint64_t incarnation) {
  std::lock_guard lock(impl_->mutex);
  if (!impl_->meta.forget(pid, session, incarnation)) return false;
  if (impl_->meta.former_clients().empty()) impl_->memory.former_clients_gone();
  return true;
}

bool NodeCore::quarantine_left() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->memory.quarantine_left();
}

// ---- namespaces

NsId NodeCore::open_namespace(const NamespaceSpec& spec) {
  if (!namespace_is_good(spec)) return kNoNamespace;
  std::lock_guard lock(impl_->mutex);
  if (const auto known = impl_->by_digest.find(spec.digest); known != impl_->by_digest.end()) return known->second;
  if (impl_->by_digest.size() >= impl_->config.namespaces_max) return kNoNamespace;
  const auto ns = static_cast<NsId>(impl_->namespaces.size());
  Impl::Namespace row;
  row.spec = spec;
  row.counts.tenant = spec.tenant;
  row.counts.block_tokens = spec.block_tokens;
  row.counts.digest = spec.digest;
  row.open = true;
  impl_->namespaces.push_back(std::move(row));
  impl_->by_digest.emplace(spec.digest, ns);
  impl_->memory.add_namespace(ns, spec);
  if (impl_->file) impl_->file->add_namespace(ns, spec);
  return ns;
}

bool NodeCore::drop_namespace(NsId ns) {
  Settled settled;
  {
    std::lock_guard lock(impl_->mutex);
    Impl::Namespace* row = impl_->open_row(ns);
    if (row == nullptr) return false;
    row->open = row->counts.open = false;
    impl_->by_digest.erase(row->spec.digest);
    impl_->memory.drop_namespace(ns);
    if (impl_->file) impl_->file->drop_namespace(ns);
    if (impl_->watches.dropped(ns)) impl_->wake_watchers();
    impl_->counters.cleared += 1;
    Event event;
    event.kind = Event::Kind::kCleared;
    event.ns = ns;
    impl_->events.push(std::move(event));
    impl_->closed_rows.push_back(ns);
    if (impl_->closed_rows.size() > kClosedRowsMax) {
      impl_->namespaces[impl_->closed_rows.front()].counted = false;
      impl_->closed_rows.pop_front();
    }
    std::vector<Parked> orphans;
    impl_->parked.take_namespace(ns, orphans);
    for (Parked& fetch : orphans) {
      FetchAnswer answer;
      answer.status = FetchStatus::kStaleNamespace;
      answer.field = "ns";
      settled.emplace_back(std::move(fetch.done), std::move(answer));
    }
  }
  give(settled);
  return true;
}

std::optional<NamespaceSpec> NodeCore::namespace_spec(NsId ns) const {
  std::lock_guard lock(impl_->mutex);
  const Impl::Namespace* row = impl_->open_row(ns);
  if (row == nullptr) return std::nullopt;
  return row->spec;
}

std::vector<NsId> NodeCore::namespaces() const {
  std::lock_guard lock(impl_->mutex);
  std::vector<NsId> open;
  for (NsId ns = 0; ns < impl_->namespaces.size(); ++ns)
    if (impl_->namespaces[ns].open) open.push_back(ns);
  return open;
}

FetchStatus NodeCore::Impl::check(NsId ns, std::uint32_t shard, std::size_t keys, FetchAnswer* why) {
  const auto say = [&](FetchStatus status, const char* field, std::uint64_t limit, std::uint64_t& counter) {
    counter += 1;
    if (why != nullptr) {
      why->field = field;
      why->limit = limit;
    }
    return status;
  };
  const Namespace* row = open_row(ns);
  if (row == nullptr) return say(FetchStatus::kStaleNamespace, "ns", 0, counters.stale_namespace);
  if (shard >= row->spec.shards.size())
    return say(FetchStatus::kBadInput, "shard", row->spec.shards.size(), counters.refused_input);
  if (keys > config.keys_per_call_max)
    return say(FetchStatus::kRejected, "keys_per_call_max", config.keys_per_call_max, counters.refused_limit);
  return FetchStatus::kOk;
}

// ---- publishing

FetchStatus NodeCore::reserve(Tier tier, OwnerId owner, NsId ns, std::uint16_t shard, std::span<const Key> keys,
                              const Key* parent, std::span<const std::span<const std::uint8_t>> meta, const Hint& hint,
                              bool in_place, Nanos now, std::span<Reserved> out) {
  for (const auto& one : meta)
    if (one.size() > kMetaBytesMax) return FetchStatus::kBadInput;
  if (out.size() != keys.size() || (!meta.empty() && meta.size() != keys.size())) return FetchStatus::kBadInput;
  std::lock_guard lock(impl_->mutex);
  if (!has(tier)) return FetchStatus::kBadInput;
  if (const auto status = impl_->check(ns, shard, keys.size()); status != FetchStatus::kOk) return status;
  std::vector<std::span<const std::uint8_t>> empty;
  if (meta.empty()) {
    empty.resize(keys.size());
    meta = empty;
  }
  impl_->table(tier).reserve(owner, ns, shard, keys, parent, meta, hint, in_place, now, impl_->config.reserve_lapse, out);
  if (tier != Tier::kMemory) return FetchStatus::kOk;
  CoreCounters& counters = impl_->counters;
  counters.puts += 1;
  counters.put_keys += keys.size();
  for (const Reserved& one : out) {
    switch (one.status) {
      case ReserveStatus::kGranted: counters.put_granted += 1; break;
      case ReserveStatus::kHeld: counters.put_held += 1; break;
      case ReserveStatus::kPending: counters.put_pending += 1; break;
      case ReserveStatus::kFull: counters.put_full += 1; break;
      case ReserveStatus::kTooLarge: counters.put_too_large += 1; break;
    }
  }
  if (!out.empty() && out.back().status == ReserveStatus::kFull) impl_->want_write_behind();  // no seal may follow
  return FetchStatus::kOk;
}

Outcome NodeCore::publish_part(OwnerId owner, Ticket ticket, std::uint32_t part, std::uint64_t checksum) {
  std::lock_guard lock(impl_->mutex);
  return impl_->memory.publish_part(owner, ticket, part, checksum);
}

void NodeCore::seal(Tier tier, OwnerId owner, std::span<const Ticket> tickets, std::span<const std::uint64_t> checksums,
                    std::span<Outcome> out, MovePath path, Nanos elapsed) {
  std::fill(out.begin(), out.end(), Outcome::kBadInput);
  if (tickets.empty() || out.size() != tickets.size() || checksums.size() % tickets.size() != 0 || !has(tier)) return;
  const std::size_t each = checksums.size() / tickets.size();
  std::lock_guard lock(impl_->mutex);
  SlotTable& table = impl_->table(tier);
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < tickets.size(); ++i) {
    out[i] = table.seal(owner, tickets[i], checksums.subspan(i * each, each));
    if (out[i] == Outcome::kOk) {
      const SlotInfo info = table.info(tickets[i].slot);
      bytes += info.bytes;
      impl_->stored(tier, info);
    } else if (tier == Tier::kMemory) {
      impl_->counters.put_lapsed += 1;
    }
  }
  if (tier != Tier::kMemory || bytes == 0) return;
  if (path == MovePath::kPutMapped || path == MovePath::kPutTransferred)
    impl_->counters.paths[static_cast<std::size_t>(path)].add(elapsed, bytes);
  impl_->want_write_behind();
}

void NodeCore::abort(Tier tier, OwnerId owner, std::span<const Ticket> tickets) {
  if (!has(tier)) return;
  std::lock_guard lock(impl_->mutex);
  for (const Ticket ticket : tickets) impl_->table(tier).abort(owner, ticket);
}

Outcome NodeCore::release(Tier tier, OwnerId owner, HoldId hold) {
  if (!has(tier)) return Outcome::kBadInput;
  std::lock_guard lock(impl_->mutex);
  return impl_->table(tier).release(owner, hold);
}

void NodeCore::Impl::stored(Tier tier, const SlotInfo& info) {
  if (tier == Tier::kMemory) {
    counters.stored += 1;
    counters.stored_bytes += info.bytes;
    if (Namespace* row = open_row(info.ns)) {
      row->counts.stored += 1;
      row->counts.stored_bytes += info.bytes;
    }
  }
  events.push({0, Event::Kind::kStored, info.ns, info.shard, tier, info.key, info.parent, {info.meta.begin(), info.meta.end()}});
}

void NodeCore::Impl::removed(Tier tier, const SlotInfo& info) {
  if (info.ns == kNoNamespace) return;  // what a process before this one left, and none has opened here: nobody was told of it
  // With its meta: whoever reads events knows blocks by that, and the slot is gone by then.
  events.push({0, Event::Kind::kRemoved, info.ns, info.shard, tier, info.key, info.parent, {info.meta.begin(), info.meta.end()}});
}

// ---- work

void NodeCore::Impl::want_write_behind() {
  if (write_behind_queued || !(file || object_tier)) return;
  const auto free_wanted = static_cast<std::uint64_t>(config.free_share * static_cast<double>(config.memory.bytes));
  if (memory.stats().bytes_free >= free_wanted) return;
  Work work;
  work.kind = Work::Kind::kWriteBehind;
  write_behind_queued = push(std::move(work), false);
}

bool NodeCore::Impl::push(Work&& work, bool may_drop) {
  if (may_drop && works.size() >= config.works_max) {
    counters.work_dropped += 1;
    return false;
  }
  const bool wake = works.empty();
  works.push_back(std::move(work));
  const std::uint64_t one = 1;
  if (wake) [[maybe_unused]] const auto written = write(work_event, &one, sizeof one);
  return true;
}

int NodeCore::work_fd() const { return impl_->work_event; }

std::vector<Work> NodeCore::take_work(std::size_t max) {
  std::lock_guard lock(impl_->mutex);
  std::vector<Work> taken;
  while (!impl_->works.empty() && taken.size() < max) {
    Work& work = impl_->works.front();
    if (work.kind == Work::Kind::kWriteBehind) impl_->write_behind_queued = false;
    if (work.kind == Work::Kind::kProbe) impl_->probes_queued -= 1;
    if (work.kind == Work::Kind::kCorrupt) impl_->corrupt_queued.erase(as_word(work.ticket));
    taken.push_back(std::move(work));
    impl_->works.pop_front();
  }
  if (impl_->works.empty()) {
    std::uint64_t count = 0;
    [[maybe_unused]] const auto drained = read(impl_->work_event, &count, sizeof count);
  }
  return taken;
}

void NodeCore::report_corrupt(OwnerId, Ticket ticket) {
  std::lock_guard lock(impl_->mutex);
  impl_->counters.corrupt_reported += 1;
  const SlotInfo info = impl_->live(impl_->memory, ticket);
  if (info.state != SlotState::kSealed || impl_->corrupt_queued.size() >= kCorruptQueuedMax) return;
  if (!impl_->corrupt_queued.insert(as_word(ticket)).second) return;
  Work work;
  work.kind = Work::Kind::kCorrupt;
  work.ns = info.ns;
  work.shard = info.shard;
  work.keys = {info.key};
  work.ticket = ticket;
  impl_->push(std::move(work), false);
}

// ---- counters and events

void NodeCore::fetched(const FetchedReport& report) {
  std::lock_guard lock(impl_->mutex);
  Impl::Namespace* row = impl_->open_row(report.ns);
  if (row == nullptr || !report.plausible()) {
    impl_->counters.refused_input += 1;
    return;
  }
  CoreCounters& counters = impl_->counters;
  counters.blocks.add(report);
  const std::uint64_t tokens = row->spec.block_tokens;
  counters.tokens_asked += tokens * report.blocks_asked;
  for (std::size_t tier = 1; tier < kTiers; ++tier) counters.tokens_by_tier[tier] += tokens * report.blocks_by_tier[tier];
  counters.paths[static_cast<std::size_t>(report.path)].add(report.elapsed, report.bytes);
  row->counts.blocks.add(report);
  impl_->families.add(report);
  impl_->rates.observe(report);
}

void NodeCore::put_took(MovePath path, std::uint64_t bytes, Nanos elapsed) {
  std::lock_guard lock(impl_->mutex);
  impl_->counters.paths[static_cast<std::size_t>(path)].add(elapsed, bytes);
}

void NodeCore::count_failed_reads(Tier tier, std::uint64_t blocks) {
  std::lock_guard lock(impl_->mutex);
  impl_->counters.read_failed[static_cast<std::size_t>(tier)] += blocks;
}

void NodeCore::count_moved(Tier from, Tier to, std::uint64_t blocks) {
  std::lock_guard lock(impl_->mutex);
  if (to > from)
    impl_->counters.demoted[static_cast<std::size_t>(to)] += blocks;
  else
    impl_->counters.promoted[static_cast<std::size_t>(from)] += blocks;
}

CountersCopy NodeCore::counters() const {
  std::lock_guard lock(impl_->mutex);
  CountersCopy copy;
  copy.totals = impl_->counters;
  for (NsId ns = 0; ns < impl_->namespaces.size(); ++ns) {
    if (!impl_->namespaces[ns].counted) continue;
    copy.ns.push_back(ns);
    copy.namespaces.push_back(impl_->namespaces[ns].counts);
  }
  copy.families = impl_->families.rows();
  copy.parked = impl_->parked.size();
  copy.works = impl_->works.size();
  copy.namespaces_open = impl_->by_digest.size();
  return copy;
}

std::vector<Event> NodeCore::events_since(std::uint64_t sequence, std::size_t max, bool& gap) const {
  std::lock_guard lock(impl_->mutex);
  return impl_->events.since(sequence, max, gap);
}

std::uint64_t NodeCore::event_sequence() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->events.sequence();
}

}  // namespace kvstore
