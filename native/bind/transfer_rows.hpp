// Batches, ranges and results as they cross between Python and the transports.
#pragma once
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <tuple>

#include "buffers.hpp"
#include "transfer/grant_table.hpp"
#include "transfer/layout.hpp"

namespace kvstore::bind {

using namespace kvstore::transfer;

template <int Columns>
using Table = nb::ndarray<const std::int64_t, nb::shape<-1, Columns>, nb::c_contig, nb::device::cpu>;
using Column = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Local = std::tuple<std::uint64_t, std::uint64_t, bool>;  // address, bytes, writable


inline std::byte* at(std::uint64_t address) { return reinterpret_cast<std::byte*>(address); }

inline std::uint64_t natural(std::int64_t value) {
  if (value < 0) throw std::invalid_argument("a row has a negative field");
  return static_cast<std::uint64_t>(value);
}

inline std::uint32_t index(std::int64_t value) {
  if (value < 0 || value > std::numeric_limits<std::uint32_t>::max()) throw std::invalid_argument("a row's index is out of range");
  return static_cast<std::uint32_t>(value);
}

inline std::vector<Row> rows_of(const Table<5>& table) {
  std::vector<Row> rows(table.shape(0));
  const std::int64_t* p = table.data();
  for (Row& row : rows) {
    row = {index(p[0]), index(p[2]), natural(p[1]), natural(p[3]), natural(p[4])};
    p += 5;
  }
  return rows;
}

inline std::vector<Slice> slices_of(const Table<4>& table) {
  std::vector<Slice> slices(table.shape(0));
  const std::int64_t* p = table.data();
  for (Slice& slice : slices) {
    slice = {natural(p[0]), index(p[1]), index(p[2]), index(p[3])};
    p += 4;
  }
  return slices;
}

template <typename Scalar>
auto copied(std::span<const Scalar> values) {
  return to_array(std::vector<Scalar>(values.begin(), values.end()));
}

inline Layout layout_of(const Table<5>& rows, const Table<4>& slices, const Column& parts) {
  std::vector<std::uint64_t> lengths(parts.shape(0));
  for (std::size_t i = 0; i < lengths.size(); ++i) lengths[i] = natural(parts(i));
  return Layout(rows_of(rows), slices_of(slices), lengths);
}

inline std::vector<Range> ranges_of(const Table<2>& table) {
  std::vector<Range> ranges(table.shape(0));
  for (std::size_t i = 0; i < ranges.size(); ++i) ranges[i] = {natural(table(i, 0)), natural(table(i, 1))};
  return ranges;
}

}  // namespace kvstore::bind
