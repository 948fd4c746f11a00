// Who waits for what becomes of blocks that somebody is publishing, or is about to publish.
//
// Rules
// - Decides nothing, holds nothing, calls nobody. Its owner (NodeCore) serialises.
// - A watch is told that something came about, not what: who watches looks at the table then. Only an end without a seal is
//   kept, since the table shows nothing of it afterwards.
// - Told once until it is taken: what comes about in between changes nothing.
#pragma once
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "block_place.hpp"
#include "slot_table.hpp"

namespace kvstore {

struct Woken {
  std::uint64_t watch = 0;
  bool abandoned = false;  // of one of its keys, a reservation ended without a seal; or its namespace is gone
};

class Watches {
 public:
  std::uint64_t add(NsId ns, std::uint16_t shard, std::span<const Key> keys);
  void remove(std::uint64_t watch);  // unknown ones are none
  std::size_t size() const noexcept { return watches_.size(); }
  // Whether somebody has become to be woken by it.
  bool happened(NsId ns, std::uint16_t shard, const Key& key, bool abandoned);
  bool dropped(NsId ns);
  std::vector<Woken> take();  // in the order in which they were first told

 private:
  struct Watch {
    NsId ns;
    std::uint16_t shard;
    std::vector<Key> keys;  // each once
    bool told = false, abandoned = false;
  };
  bool tell(std::uint64_t id, Watch& watch, bool abandoned);

  std::unordered_map<std::uint64_t, Watch> watches_;
  std::unordered_map<BlockPlace, std::vector<std::uint64_t>, BlockPlaceHash> by_place_;
  std::vector<std::uint64_t> told_;
  std::uint64_t next_ = 1;
};

}  // namespace kvstore
