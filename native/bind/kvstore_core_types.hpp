// How what is asked of a core crosses: tiers, needs, metas. Slots are in kvstore_slots.hpp.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "core/node_core.hpp"
#include "kvstore_slots.hpp"

namespace kvstore::bind {

using Release = nb::call_guard<nb::gil_scoped_release>;

inline Tier tier_of(int tier) {
  if (tier != 1 && tier != 2) throw nb::value_error("tier: 1 (memory) or 2 (file)");
  return static_cast<Tier>(tier);
}
inline ArrayOut<std::uint8_t> array_of(std::vector<Key>&& keys) {
  auto* kept = new std::vector<Key>(std::move(keys));
  const nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<Key>*>(p); });
  return ArrayOut<std::uint8_t>(kept->data(), {kept->size(), 32}, owner);
}
inline nb::bytes bytes_of(const std::vector<std::uint8_t>& bytes) {
  return nb::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}
inline std::span<const std::uint8_t> span_of(const nb::bytes& bytes) {
  return {reinterpret_cast<const std::uint8_t*>(bytes.c_str()), bytes.size()};
}
using NeedTuple = std::tuple<std::uint16_t, int, std::uint32_t>;
inline std::vector<Need> needs_of(const std::vector<NeedTuple>& tuples) {
  std::vector<Need> needs;
  for (const auto& [shard, kind, blocks] : tuples) {
    if (kind < 0 || kind > 2) throw nb::value_error("needs: kind is 0 (all), 1 (last) or 2 (state)");
    needs.push_back({shard, static_cast<NeedKind>(kind), blocks});
  }
  return needs;
}
inline std::vector<std::vector<std::uint8_t>> metas_of(const std::vector<nb::bytes>& metas, std::size_t keys) {
  if (!metas.empty() && metas.size() != keys) throw nb::value_error("metas: none, or one a key");
  std::vector<std::vector<std::uint8_t>> out;
  for (const nb::bytes& meta : metas) {
    const auto span = span_of(meta);
    if (span.size() > kMetaBytesMax) throw nb::value_error("metas: at most 1024 bytes each");
    out.emplace_back(span.begin(), span.end());
  }
  return out;
}

}  // namespace kvstore::bind
