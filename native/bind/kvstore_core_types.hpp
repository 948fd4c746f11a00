// How the bindings take and give arrays. Everything crosses as C-contiguous numpy arrays, bytes and integers.
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

namespace kvstore::bind {

namespace nb = nanobind;

using KeysIn = nb::ndarray<const std::uint8_t, nb::shape<-1, 32>, nb::c_contig, nb::device::cpu>;
using WordsIn = nb::ndarray<const std::uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using ArrayOut = nb::ndarray<nb::numpy, T>;

using Release = nb::call_guard<nb::gil_scoped_release>;

inline Tier tier_of(int tier) {
  if (tier != 1 && tier != 2) throw nb::value_error("tier: 1 (memory) or 2 (file)");
  return static_cast<Tier>(tier);
}
inline std::span<const Key> keys_of(const KeysIn& keys) {
  return {reinterpret_cast<const Key*>(keys.data()), keys.shape(0)};
}
inline std::span<const std::uint64_t> words_of(const WordsIn& words) { return {words.data(), words.shape(0)}; }

inline Ticket ticket_of(std::uint64_t word) {
  return {static_cast<SlotId>(word), static_cast<std::uint32_t>(word >> 32)};
}
inline std::uint64_t word_of(Ticket ticket) { return ticket.slot | std::uint64_t{ticket.tenancy} << 32; }
inline std::vector<Ticket> tickets_of(const WordsIn& words) {
  std::vector<Ticket> tickets;
  tickets.reserve(words.shape(0));
  for (const std::uint64_t word : words_of(words)) tickets.push_back(ticket_of(word));
  return tickets;
}

// Gives a vector to numpy without copying it.
template <class T>
ArrayOut<T> array_of(std::vector<T>&& values) {
  auto* kept = new std::vector<T>(std::move(values));
  const nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return ArrayOut<T>(kept->data(), {kept->size()}, owner);
}
inline ArrayOut<std::uint8_t> array_of(std::vector<Key>&& keys) {
  auto* kept = new std::vector<Key>(std::move(keys));
  const nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<Key>*>(p); });
  return ArrayOut<std::uint8_t>(kept->data(), {kept->size(), 32}, owner);
}
inline ArrayOut<std::uint64_t> array_of(const std::vector<Ticket>& tickets) {
  std::vector<std::uint64_t> words;
  words.reserve(tickets.size());
  for (const Ticket ticket : tickets) words.push_back(word_of(ticket));
  return array_of(std::move(words));
}
inline nb::bytes bytes_of(const std::vector<std::uint8_t>& bytes) {
  return nb::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}
inline std::span<const std::uint8_t> span_of(const nb::bytes& bytes) {
  return {reinterpret_cast<const std::uint8_t*>(bytes.c_str()), bytes.size()};
}
inline Key key_of(const nb::bytes& bytes, const char* name) {
  if (bytes.size() != sizeof(Key)) throw nb::value_error((std::string(name) + ": 32 bytes").c_str());
  Key key;
  std::memcpy(key.bytes.data(), bytes.c_str(), sizeof key);
  return key;
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
