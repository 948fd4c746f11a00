// How the keys, tickets and slots of a table cross: C-contiguous numpy arrays, bytes and integers. A ticket is one word,
// slot | tenancy << 32.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "buffers.hpp"
#include "core/slot_table.hpp"

namespace kvstore::bind {

using KeysIn = nb::ndarray<const std::uint8_t, nb::shape<-1, 32>, nb::c_contig, nb::device::cpu>;
using WordsIn = nb::ndarray<const std::uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using ArrayOut = nb::ndarray<nb::numpy, T>;

static_assert(alignof(Key) == 1 && sizeof(Key) == 32);
inline std::span<const Key> keys_of(const KeysIn& keys) {
  return {reinterpret_cast<const Key*>(keys.data()), keys.shape(0)};
}
inline Key key_of(const nb::bytes& bytes, const char* name) {
  if (bytes.size() != sizeof(Key)) throw nb::value_error((std::string(name) + ": 32 bytes").c_str());
  Key key;
  std::memcpy(key.bytes.data(), bytes.c_str(), sizeof key);
  return key;
}
inline nb::bytes bytes_of(const Key& key) { return nb::bytes(key.bytes.data(), key.bytes.size()); }

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

template <class T>
ArrayOut<T> array_of(std::vector<T>&& values) {
  return ArrayOut<T>(to_array(std::move(values)));
}
inline ArrayOut<std::uint64_t> array_of(const std::vector<Ticket>& tickets) {
  std::vector<std::uint64_t> words;
  words.reserve(tickets.size());
  for (const Ticket ticket : tickets) words.push_back(word_of(ticket));
  return array_of(std::move(words));
}

// Statuses, tickets, payload offsets.
using ReservedOut = std::tuple<ArrayOut<std::uint8_t>, ArrayOut<std::uint64_t>, ArrayOut<std::uint64_t>>;
inline ReservedOut arrays_of(std::span<const Reserved> slots) {
  std::vector<std::uint8_t> statuses;
  std::vector<std::uint64_t> tickets, offsets;
  for (const Reserved& one : slots) {
    statuses.push_back(static_cast<std::uint8_t>(one.status));
    tickets.push_back(word_of(one.ticket));
    offsets.push_back(one.offset);
  }
  return {array_of(std::move(statuses)), array_of(std::move(tickets)), array_of(std::move(offsets))};
}

// Tickets, payload offsets, parts ready.
using HeldOut = std::tuple<ArrayOut<std::uint64_t>, ArrayOut<std::uint64_t>, ArrayOut<std::uint32_t>>;
inline HeldOut arrays_of(std::span<const Held> slots) {
  std::vector<std::uint64_t> tickets, offsets;
  std::vector<std::uint32_t> ready;
  for (const Held& one : slots) {
    tickets.push_back(word_of(one.ticket));
    offsets.push_back(one.offset);
    ready.push_back(one.parts_ready);
  }
  return {array_of(std::move(tickets)), array_of(std::move(offsets)), array_of(std::move(ready))};
}

}  // namespace kvstore::bind
