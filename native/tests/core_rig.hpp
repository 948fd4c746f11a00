// A NodeCore of 16 MiB of memory, and files as large, in slabs of 1 MiB. Time is a number, and payloads are not looked at.
#pragma once
#include "check.hpp"
#include "core/node_core.hpp"
#include "door_rig.hpp"

namespace kvstore::test {

inline constexpr std::uint64_t kBytes = 16ull << 20;

struct Core {
  explicit Core(CoreConfig config = {}, std::uint32_t file_slabs = 16) {
    config.memory.bytes = kBytes;
    config.memory.slab_bytes = kBytes / 16;
    if (file_slabs > 0) config.file = TableConfig{kBytes / 16 * file_slabs, kBytes / 16, 4096, "leaf_lru", 1};
    const std::size_t bytes = MetaSegment::bytes(config.memory);
    room = std::make_unique<std::uint8_t[]>(bytes + 4096);
    meta = {reinterpret_cast<std::uint8_t*>((reinterpret_cast<std::uintptr_t>(room.get()) + 4095) / 4096 * 4096), bytes};
    kept = config;
    core = std::make_unique<NodeCore>(config, meta.data(), meta.size(), 11);
    owner = core->new_owner();
  }
  void store(Tier tier, NsId ns, std::uint16_t shard, const std::vector<Key>& keys) {
    std::vector<Reserved> slots(keys.size());
    CHECK(core->reserve(tier, owner, ns, shard, keys, nullptr, {}, {}, true, 0, slots) == FetchStatus::kOk);
    const std::size_t parts = core->namespace_spec(ns)->shards[shard].part_bytes.size();
    for (const Reserved& slot : slots) {
      std::vector<Outcome> out(1);
      core->seal(tier, owner, std::array{slot.ticket}, std::vector<std::uint64_t>(parts, 7), out, MovePath::kPutMapped, 1'000);
      CHECK(out[0] == Outcome::kOk);
    }
  }
  // Asks, and gives where the answer will be.
  std::shared_ptr<std::vector<FetchAnswer>> fetch(NsId ns, const std::vector<Key>& keys, Nanos now, Nanos deadline,
                                                 HoldKind kind = HoldKind::kLease) {
    auto answers = std::make_shared<std::vector<FetchAnswer>>();
    FetchRequest request;
    request.owner = owner;
    request.ns = ns;
    request.kind = kind;
    request.deadline = deadline;
    core->fetch(request, keys, now, [answers](FetchAnswer&& answer) { answers->push_back(std::move(answer)); });
    return answers;
  }
  CoreConfig kept;
  std::unique_ptr<std::uint8_t[]> room;
  std::span<std::uint8_t> meta;
  std::unique_ptr<NodeCore> core;
  OwnerId owner = 0;
};

inline std::vector<Key> head(const std::vector<Key>& keys, std::size_t count) { return {keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(count)}; }

}  // namespace kvstore::test
