// What the core knows of the object tier: which blocks lie there, and which holes are worth a probe. Rules: node_core.hpp.
#include <algorithm>

#include "node_core_impl.hpp"

namespace kvstore {
namespace {

constexpr std::size_t kProbeKeysMax = 8'192;  // of one probe: a prompt of 128K tokens in blocks of 16
constexpr std::size_t kProbesQueuedMax = 64;

}  // namespace

void NodeCore::set_object_tier(std::size_t blocks_max) {
  std::lock_guard lock(impl_->mutex);
  impl_->object_tier = blocks_max > 0;
  impl_->object_answers = blocks_max > 0;
  impl_->asked_probes.forget();
  // The index forgets by halves: twice the size remembers at least the latest `blocks_max`.
  if (blocks_max > 0) impl_->objects.emplace(2 * blocks_max);
  else impl_->objects.reset();
}

void NodeCore::object_answers(bool answers) {
  std::lock_guard lock(impl_->mutex);
  impl_->object_answers = answers && impl_->object_tier;
}

void NodeCore::object_known(NsId ns, std::uint16_t shard, std::span<const Key> keys) {
  std::lock_guard lock(impl_->mutex);
  if (impl_->objects && impl_->open_row(ns) != nullptr) impl_->objects->add(ns, shard, keys);
}

void NodeCore::object_gone(NsId ns, std::uint16_t shard, std::span<const Key> keys, PacksGone why) {
  std::lock_guard lock(impl_->mutex);
  if (impl_->objects) impl_->objects->remove(ns, shard, keys);
  if (why != PacksGone::kForgotten) impl_->pack_gone(ns, shard, keys, why == PacksGone::kSwept);
}

std::size_t NodeCore::object_blocks() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->objects ? impl_->objects->size() : 0;
}

void NodeCore::forget_probes() {
  std::lock_guard lock(impl_->mutex);
  impl_->asked_probes.forget();
}

void NodeCore::Impl::ask_probe(NsId ns, std::uint16_t shard, std::span<const Key> keys, std::uint64_t position, bool wanted) {
  if (!object_answers || keys.empty() || probes_queued >= kProbesQueuedMax || position > 0xffffffffu) return;
  if (!asked_probes.ask(ns, shard, keys.front())) return;
  Work work;
  work.kind = Work::Kind::kProbe;
  work.ns = ns;
  work.shard = shard;
  work.wanted_now = wanted;
  work.position = static_cast<std::uint32_t>(position);
  const std::size_t count = std::min(keys.size(), kProbeKeysMax);
  work.keys.assign(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(count));
  if (push(std::move(work), true)) probes_queued += 1;
}

}  // namespace kvstore
