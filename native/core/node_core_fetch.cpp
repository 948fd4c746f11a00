// Fetches: a run that is up is held and answered at once; else the request is parked, holding nothing, until the
// promotions it waits for have ended or its deadline has come, and is answered with the run that is up then.
#include <algorithm>

#include "node_core_impl.hpp"

namespace kvstore {
namespace {

constexpr std::uint32_t kAttemptsMax = 3;  // promotions evicted again before the fetch could hold them
constexpr std::uint64_t kAnswerBytesPerSlot = 24;
constexpr std::uint64_t kAnswerBytesPerPart = 8;
constexpr std::uint64_t kAnswerHeadBytes = 64;

FetchAnswer refusal(FetchStatus status, const char* field, std::uint64_t limit) {
  FetchAnswer answer;
  answer.status = status;
  answer.field = field;
  answer.limit = limit;
  return answer;
}

}  // namespace

// How many blocks one answer may have: by bytes of the window, by bytes of the answer, for pins by what is left of their budget.
std::size_t NodeCore::Impl::cut(const FetchRequest& request, const ShardSpec& shard, std::size_t keys) const {
  const std::uint64_t slot = (shard.bytes + kSlotAlign - 1) / kSlotAlign * kSlotAlign;
  std::uint64_t blocks = std::max<std::uint64_t>(1, window / slot);
  const std::uint64_t answer = kAnswerBytesPerSlot + kAnswerBytesPerPart * shard.part_bytes.size();
  const std::uint64_t room = config.answer_bytes_max > kAnswerHeadBytes ? config.answer_bytes_max - kAnswerHeadBytes : 0;
  blocks = std::min(blocks, std::max<std::uint64_t>(1, room / answer));
  if (request.kind == HoldKind::kPin) {
    const std::uint64_t used = memory.stats().pinned_bytes;
    blocks = std::min(blocks, used >= pinned_max ? 0 : (pinned_max - used) / slot);
  }
  return static_cast<std::size_t>(std::min<std::uint64_t>(blocks, keys));
}

void NodeCore::fetch(const FetchRequest& request, std::span<const Key> keys, Nanos now, FetchDone done) {
  Settled settled;
  bool nearer = false;
  {
    std::lock_guard lock(impl_->mutex);
    FetchAnswer refused;
    refused.status = impl_->check(request.ns, request.shard, keys.size(), &refused);
    if (refused.status == FetchStatus::kOk && impl_->memory.holds_of(request.owner) >= impl_->config.holds_per_owner_max)
      refused = refusal(FetchStatus::kRejected, "holds_per_connection_max", impl_->config.holds_per_owner_max);
    Parked fetch;
    fetch.request = request;
    if (request.lease <= 0) fetch.request.lease = impl_->config.lease_max;
    if (request.kind != HoldKind::kPin) fetch.request.lease = std::min(fetch.request.lease, impl_->config.lease_max);
    fetch.asked = now;
    fetch.done = std::move(done);
    if (refused.status != FetchStatus::kOk) {
      settled.emplace_back(std::move(fetch.done), std::move(refused));
    } else {
      const ShardSpec& shard = impl_->namespaces[request.ns].spec.shards[request.shard];
      const std::size_t blocks = impl_->cut(request, shard, keys.size());
      if (blocks == 0 && !keys.empty()) {
        impl_->counters.refused_limit += 1;
        settled.emplace_back(std::move(fetch.done), refusal(FetchStatus::kRejected, "pinned_bytes_max", impl_->pinned_max));
      } else {
        fetch.keys.assign(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(blocks));
        fetch.window_full = blocks < keys.size();
        const auto before = impl_->next_deadline_locked();
        impl_->start_fetch(std::move(fetch), now, settled, keys);
        if (settled.size() == 1 && settled[0].second.slots.size() == blocks)
          impl_->prefetch_rest({.request = request, .keys = {}, .tiers = {}, .done = nullptr}, keys.subspan(blocks), blocks);
        const auto after = impl_->next_deadline_locked();
        nearer = after && (!before || *after < *before);
      }
    }
  }
  give(settled);
  if (nearer && impl_->earlier) impl_->earlier();
}

// Holds the run if it is up, else parks. May be called again for a fetch whose promotions have been evicted meanwhile.
void NodeCore::Impl::start_fetch(Parked&& fetch, Nanos now, Settled& out, std::span<const Key> whole) {
  const FetchRequest& request = fetch.request;
  std::vector<std::uint8_t> tiers;
  probe(request.ns, request.shard, fetch.keys, tiers);
  std::vector<std::uint32_t> missing;
  for (std::uint32_t i = 0; i < tiers.size(); ++i)
    if (tiers[i] != static_cast<std::uint8_t>(Tier::kMemory)) missing.push_back(i);
  if (fetch.attempts == 0) {
    fetch.tiers = tiers;
    if (tiers.size() < fetch.keys.size())
      ask_probe(request.ns, request.shard, whole.subspan(tiers.size()), std::uint64_t{request.hint.position} + tiers.size(), true);
  }
  const bool may_park = now < request.deadline && fetch.attempts < kAttemptsMax;
  if (!missing.empty() && may_park && parked.size() >= config.parked_max) counters.parked_refused += 1;
  if (missing.empty() || !may_park || parked.size() >= config.parked_max) {
    FetchAnswer answer = take_hold(fetch, now);
    finish(std::move(fetch), std::move(answer), now, out);
    return;
  }
  if (tiers.size() < fetch.keys.size()) {  // what follows is nowhere, so the window is not what cut the run
    fetch.keys.resize(tiers.size());
    fetch.window_full = false;
  }
  // Of all that the caller will come to: what this window brings up pushes something down, and that must not push out the rest.
  // Nor what is up already, which a waiting fetch does not hold.
  if (fetch.attempts == 0) {
    memory.touch(request.ns, request.shard, whole, request.hint, now);
    if (file) file->touch(request.ns, request.shard, whole, request.hint, now);
  }
  fetch.attempts += 1;
  counters.holds_parked += fetch.attempts == 1;
  std::vector<std::uint32_t> ask;
  Parked copy_for_ask{.request = request, .keys = fetch.keys, .tiers = tiers, .done = nullptr};
  parked.park(std::move(fetch), missing, now, config.promote_retry, ask);
  ask_promotion(copy_for_ask, ask, true);
}

FetchAnswer NodeCore::Impl::take_hold(const Parked& fetch, Nanos now) {
  const FetchRequest& request = fetch.request;
  FetchAnswer answer;
  answer.lease = request.lease;
  answer.block_bytes = namespaces[request.ns].spec.shards[request.shard].bytes;
  answer.hold = memory.hold(request.owner, request.ns, request.shard, fetch.keys, request.kind, request.following, request.hint,
                            now, request.lease, answer.slots, request.held_open ? held_max : 0);
  answer.window_full = fetch.window_full && answer.slots.size() == fetch.keys.size();
  answer.tiers.assign(answer.slots.size(), static_cast<std::uint8_t>(Tier::kMemory));
  std::copy_n(fetch.tiers.begin(), std::min(fetch.tiers.size(), answer.tiers.size()), answer.tiers.begin());
  for (Held& held : answer.slots) {
    const std::span<const std::uint64_t> checksums = memory.info(held.ticket.slot).checksums;
    held.parts_ready = static_cast<std::uint32_t>(std::min<std::size_t>(held.parts_ready, checksums.size()));
    answer.checksums.insert(answer.checksums.end(), checksums.begin(), checksums.begin() + held.parts_ready);
  }
  return answer;
}

void NodeCore::Impl::finish(Parked&& fetch, FetchAnswer&& answer, Nanos now, Settled& out) {
  const MovePath path = fetch.attempts == 0 ? MovePath::kHoldMemory : MovePath::kHoldParked;
  counters.paths[static_cast<std::size_t>(path)].add(now - fetch.asked, answer.block_bytes * answer.slots.size());
  out.emplace_back(std::move(fetch.done), std::move(answer));
}

void NodeCore::Impl::settle(std::vector<Parked>&& fetches, Nanos now, bool may_wait, Settled& out) {
  for (Parked& fetch : fetches) {
    if (!may_wait) fetch.attempts = kAttemptsMax;
    start_fetch(std::move(fetch), now, out);
  }
}

void NodeCore::Impl::ask_promotion(const Parked& fetch, std::span<const std::uint32_t> indices, bool wanted_now) {
  if (indices.empty()) return;
  Work work;
  work.kind = Work::Kind::kPromote;
  work.ns = fetch.request.ns;
  work.shard = fetch.request.shard;
  work.wanted_now = wanted_now;
  for (const std::uint32_t index : indices) {
    work.keys.push_back(fetch.keys[index]);
    work.tiers.push_back(fetch.tiers[index]);
  }
  counters.promotions_asked += indices.size();
  push(std::move(work), !wanted_now);
}

// The next window of the prompt, so that it is up when it is asked for. Nobody waits for it yet.
void NodeCore::Impl::prefetch_rest(const Parked& fetch, std::span<const Key> rest, std::size_t before) {
  if (rest.empty() || !(file || object_tier)) return;
  const ShardSpec& shard = namespaces[fetch.request.ns].spec.shards[fetch.request.shard];
  Parked next{.request = fetch.request, .keys = {}, .tiers = {}, .done = nullptr};
  next.request.kind = HoldKind::kLease;
  const std::size_t blocks = cut(next.request, shard, rest.size());
  next.keys.assign(rest.begin(), rest.begin() + static_cast<std::ptrdiff_t>(blocks));
  probe(next.request.ns, next.request.shard, next.keys, next.tiers);
  ask_probe(next.request.ns, next.request.shard, std::span(next.keys).subspan(next.tiers.size()),
            std::uint64_t{next.request.hint.position} + before + next.tiers.size(), true);
  std::vector<std::uint32_t> below;
  for (std::uint32_t i = 0; i < next.tiers.size(); ++i)
    if (next.tiers[i] != static_cast<std::uint8_t>(Tier::kMemory)) below.push_back(i);
  ask_promotion(next, below, false);
}

void NodeCore::promoted(NsId ns, std::uint16_t shard, std::span<const Key> keys, Nanos now) {
  Settled settled;
  {
    std::lock_guard lock(impl_->mutex);
    impl_->counters.promotions_ended += keys.size();
    std::vector<Parked> ready;
    impl_->parked.settle(ns, shard, keys, ready);
    impl_->settle(std::move(ready), now, true, settled);
  }
  give(settled);
}

void NodeCore::tick(Nanos now) {
  Settled settled;
  {
    std::lock_guard lock(impl_->mutex);
    impl_->memory.expire(now);
    if (impl_->file) impl_->file->expire(now);
    std::vector<Parked> overdue;
    impl_->parked.take_overdue(now, overdue);
    impl_->counters.parked_late += overdue.size();
    impl_->settle(std::move(overdue), now, false, settled);
  }
  give(settled);
}

void NodeCore::owner_gone(OwnerId owner) {
  Settled settled;
  {
    std::lock_guard lock(impl_->mutex);
    std::vector<Parked> orphans;
    impl_->parked.take_owner(owner, orphans);
    for (Parked& fetch : orphans) settled.emplace_back(std::move(fetch.done), FetchAnswer{});
    impl_->memory.owner_gone(owner);
    if (impl_->file) impl_->file->owner_gone(owner);
  }
  give(settled);
}

std::optional<Nanos> NodeCore::Impl::next_deadline_locked() const {
  std::optional<Nanos> next = parked.next_deadline();
  for (const std::optional<Nanos>& other : {memory.next_expiry(), file ? file->next_expiry() : std::nullopt})
    if (other && (!next || *other < *next)) next = other;
  return next;
}

std::optional<Nanos> NodeCore::next_deadline() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->next_deadline_locked();
}

void NodeCore::on_earlier_deadline(std::function<void()> hook) {
  std::lock_guard lock(impl_->mutex);
  impl_->earlier = std::move(hook);
}

}  // namespace kvstore
