// A block of one shard of one namespace, as a key of tables.
#pragma once

#include <cstddef>
#include <cstdint>

#include "types.hpp"

namespace kvstore {

struct BlockPlace {
  NsId ns;
  std::uint16_t shard;
  Key key;
  friend bool operator==(const BlockPlace&, const BlockPlace&) = default;
};

struct BlockPlaceHash {
  std::size_t operator()(const BlockPlace& place) const noexcept { return place.key.word(0) ^ (place.ns * 64ull + place.shard); }
};

}  // namespace kvstore
