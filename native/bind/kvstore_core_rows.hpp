// What a core hands out as Python objects: slots, work, events and the ends of fetches, in arrays and bytes of their own.
#pragma once
#include "kvstore_core_types.hpp"

namespace kvstore::bind {

struct Rows {
  ArrayOut<std::uint64_t> tickets;
  ArrayOut<std::uint8_t> keys, parents;
  ArrayOut<std::uint32_t> ns;
  ArrayOut<std::uint16_t> shards;
  ArrayOut<std::uint8_t> states;
  ArrayOut<bool> clean, wanted;
  ArrayOut<std::uint64_t> offsets, bytes;
  ArrayOut<std::uint32_t> positions, holds, checksum_counts;
  ArrayOut<std::uint64_t> checksums;
  std::vector<nb::bytes> metas;
};

struct WorkOut {
  int kind;
  NsId ns;
  std::uint16_t shard;
  bool wanted_now;
  ArrayOut<std::uint8_t> keys;
  nb::bytes tiers;
  std::uint64_t ticket;
  std::uint32_t position;
};

struct EventOut {
  std::uint64_t sequence;
  int kind;
  NsId ns;
  std::uint16_t shard;
  int tier;
  nb::bytes key, parent, meta;
};

struct DoneOut {
  std::uint64_t token;
  int status;
  std::string field;
  std::uint64_t limit, hold;
  Nanos lease;
  bool window_full;
  ArrayOut<std::uint64_t> tickets, offsets;
  ArrayOut<std::uint32_t> parts_ready;
  nb::bytes tiers;
  ArrayOut<std::uint64_t> checksums;
};

ArrayOut<bool> bools_of(const std::vector<std::uint8_t>& values);
Rows rows_of(SlotRows&& rows);
WorkOut work_of(Work&& work);
EventOut event_of(const Event& event);
DoneOut done_of(std::uint64_t token, FetchAnswer&& answer);

}  // namespace kvstore::bind
