// Which requests of a batch become one operation: those that lie behind one another in their file, as the blocks of a
// chain do that were written together. Pure planning; nothing here touches a file.
//
// Fewer operations are what makes small blocks cheap: the kernel and the device take as long for 64 KiB as for 1 MiB.
#pragma once
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "engine.hpp"

namespace kvstore::io {

inline constexpr std::uint64_t kJoinedBytesMax = 1u << 20;  // larger ones gain nothing, and who comes next would wait
inline constexpr std::uint32_t kJoinedPiecesMax = 64;
static_assert(kJoinedPiecesMax >= kPiecesMax);

inline std::uint64_t bytes_of(const Request& request) {
  return std::accumulate(request.pieces.begin(), request.pieces.end(), std::uint64_t{0},
                         [](std::uint64_t sum, const iovec& piece) { return sum + piece.iov_len; });
}

struct Span {
  std::uint32_t first = 0, count = 0;  // of Plan::order
  bool operator==(const Span&) const = default;
};

struct Plan {
  std::vector<std::uint32_t> order;  // of the requests: by file and offset
  std::vector<Span> operations;      // all of `order`; first the one with the first request, and so on
};

// A request that is larger than kJoinedBytesMax goes by itself.
inline Plan join(std::span<const Request> requests) {
  Plan plan;
  plan.order.resize(requests.size());
  std::iota(plan.order.begin(), plan.order.end(), 0u);
  std::stable_sort(plan.order.begin(), plan.order.end(), [&requests](std::uint32_t a, std::uint32_t b) {
    const Request &x = requests[a], &y = requests[b];
    return x.file != y.file ? x.file < y.file : x.offset < y.offset;
  });
  std::uint64_t bytes = 0, end = 0;
  std::size_t pieces = 0;
  std::uint32_t file = 0;
  for (std::uint32_t i = 0; i < plan.order.size(); ++i) {
    const Request& request = requests[plan.order[i]];
    const std::uint64_t own = bytes_of(request);
    const bool joins = i > 0 && request.file == file && request.offset == end && bytes + own <= kJoinedBytesMax &&
                       pieces + request.pieces.size() <= kJoinedPiecesMax;
    if (!joins) {
      plan.operations.push_back({i, 0});
      bytes = pieces = 0;
    }
    ++plan.operations.back().count;
    bytes += own;
    pieces += request.pieces.size();
    file = request.file;
    end = request.offset + own;
  }
  const auto first_of = [&plan](const Span& span) {
    return *std::min_element(plan.order.begin() + span.first, plan.order.begin() + span.first + span.count);
  };
  std::sort(plan.operations.begin(), plan.operations.end(), [&](const Span& a, const Span& b) { return first_of(a) < first_of(b); });
  return plan;
}

}  // namespace kvstore::io
