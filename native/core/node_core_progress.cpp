// What becomes of blocks that are being published: told to who watches, and to the directory.
#include <unistd.h>

#include <algorithm>

#include "node_core_impl.hpp"

namespace kvstore {
namespace {

constexpr std::size_t kBegunMax = 16'384;

}  // namespace

void NodeCore::Impl::progressed(const ProgressOf& told) {
  const bool abandoned = told.progress == Progress::kAbandoned;
  if (watches.happened(told.ns, told.shard, told.key, abandoned)) wake_watchers();
  // A seal is an event, and events are the directory's anyway.
  const bool begun = told.progress == Progress::kPart && told.parts_ready == 1;
  if (!begun && !(abandoned && told.parts_ready > 0)) return;
  if (begun_keys.size() >= kBegunMax) {  // a directory that is not asked, or late: a digest finds what it was not told
    begun_keys.pop_front();
    ++begun_first;
  }
  begun_keys.emplace_back(told.ns, told.key);
}

void NodeCore::Impl::wake_watchers() {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(watch_event, &one, sizeof one);
}

std::uint64_t NodeCore::watch(NsId ns, std::uint16_t shard, std::span<const Key> keys) {
  std::lock_guard lock(impl_->mutex);
  if (impl_->open_row(ns) == nullptr || impl_->watches.size() >= impl_->config.watches_max) return 0;
  return impl_->watches.add(ns, shard, keys);
}

void NodeCore::unwatch(std::uint64_t watch) {
  std::lock_guard lock(impl_->mutex);
  impl_->watches.remove(watch);
}

int NodeCore::watch_fd() const { return impl_->watch_event; }

std::vector<Woken> NodeCore::take_woken() {
  std::uint64_t count = 0;
  [[maybe_unused]] const auto got = ::read(impl_->watch_event, &count, sizeof count);
  std::lock_guard lock(impl_->mutex);
  return impl_->watches.take();
}

Changes NodeCore::begun_since(std::uint64_t sequence, std::size_t max) const {
  std::lock_guard lock(impl_->mutex);
  Changes out;
  const std::uint64_t end = impl_->begun_first + impl_->begun_keys.size();
  std::uint64_t at = std::min(std::max(sequence, impl_->begun_first), end);
  for (; at < end && out.keys.size() < max; ++at) {
    const auto& [ns, key] = impl_->begun_keys[at - impl_->begun_first];
    out.keys.push_back(key);
    out.ns.push_back(ns);
  }
  out.sequence = at;
  return out;
}

std::uint64_t NodeCore::begun_sequence() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->begun_first + impl_->begun_keys.size();
}

}  // namespace kvstore
