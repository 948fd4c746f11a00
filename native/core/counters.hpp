// What a node counts. Plain data: NodeCore writes under its mutex, and hands out copies.
//
// Rules
// - Blocks got are counted once per get, by the client's last frame of it; lookups are counted apart.
// - A block asked for is found on one tier, or failed (was held, and did not verify or did not arrive), or missed: the rest.
// - Nothing here grows without bound: families by space-saving, rows of cleared namespaces by `kClosedRowsMax`.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "types.hpp"

namespace kvstore {

enum class Tier : std::uint8_t { kNone = 0, kMemory = 1, kFile = 2, kObject = 3 };
inline constexpr std::size_t kTiers = 4;

// Ways that bytes or answers take, each with a histogram.
enum class MovePath : std::uint8_t {
  kGetMapped = 0,       // told by clients: a whole get, out of the mapped segment
  kGetTransferred = 1,  // and by transfers
  kGetGrpc = 2,         // seen by the node, inside messages
  kPutMapped = 3,       // told by clients: from reserve to seal
  kPutTransferred = 4,  // seen by the node: from reserve to seal
  kPutGrpc = 5,         // seen by the node: a whole put, inside messages
  kHoldMemory = 6,      // seen by the node: a hold answered at once
  kHoldParked = 7,      // and one that waited for a promotion
};
inline constexpr std::size_t kMovePaths = 8;

// Bucket i counts what took less than 1 us << i; the last one the rest.
struct Histogram {
  static constexpr std::size_t kBuckets = 26;
  std::array<std::uint64_t, kBuckets> counts{};
  std::uint64_t sum_ns = 0;
  std::uint64_t bytes = 0;

  void add(Nanos elapsed, std::uint64_t moved) noexcept;
};

struct FetchedReport;

struct BlockCounts {
  std::uint64_t gets = 0;
  std::uint64_t asked = 0;
  std::array<std::uint64_t, kTiers> by_tier{};  // [0] is not used
  std::uint64_t failed = 0;

  void add(const FetchedReport& report) noexcept;
};

// What came of one get.
struct FetchedReport {
  NsId ns = kNoNamespace;
  Hint hint;
  std::uint32_t blocks_asked = 0;
  std::array<std::uint32_t, kTiers> blocks_by_tier{};
  std::uint32_t blocks_failed = 0;
  MovePath path = MovePath::kGetMapped;
  std::uint64_t bytes = 0;
  Nanos elapsed = 0;

  bool plausible() const noexcept;  // the parts do not exceed the whole
};

struct NamespaceCounts {
  BlockCounts blocks;
  std::uint64_t lookups = 0, lookup_keys = 0, lookup_found = 0;
  std::uint64_t stored = 0, stored_bytes = 0;
  std::uint32_t tenant = 0, block_tokens = 0;
  Key digest;
  bool open = true;
};

struct FamilyCounts {
  std::uint64_t family = 0;
  NsId ns = kNoNamespace;
  BlockCounts blocks;
  std::uint64_t error = 0;  // at most so many of `asked` may be another family's
};

// The families asked for most, by space-saving (Metwally, Agrawal, El Abbadi 2005): who comes new when all rows are taken replaces
// the least asked one and inherits its count as error.
class FamilyTable {
 public:
  explicit FamilyTable(std::size_t rows_max) : rows_max_(rows_max) {}
  void add(const FetchedReport& report);
  const std::vector<FamilyCounts>& rows() const noexcept { return rows_; }

 private:
  struct Id {
    std::uint64_t family;
    NsId ns;
    friend bool operator==(const Id&, const Id&) = default;
  };
  struct IdHash {
    std::size_t operator()(const Id& id) const noexcept { return (id.family ^ id.ns) * 0x9e3779b97f4a7c15ull; }
  };
  FamilyCounts& row_of(const Id& id);
  std::size_t rows_max_;
  std::vector<FamilyCounts> rows_;
  std::unordered_map<Id, std::size_t, IdHash> where_;
};

// How fast a tier has been of late, for the estimate of a lookup.
class RateEstimate {
 public:
  RateEstimate() noexcept;
  void observe(const FetchedReport& report) noexcept;  // by the slowest tier it read
  Nanos estimate(const std::array<std::uint64_t, kTiers>& bytes_by_tier) const noexcept;

 private:
  std::array<double, kTiers> bytes_per_ns_;
};

struct CoreCounters {
  BlockCounts blocks;
  std::uint64_t tokens_asked = 0;
  std::array<std::uint64_t, kTiers> tokens_by_tier{};
  std::uint64_t lookups = 0, lookup_keys = 0, lookup_found = 0;
  std::uint64_t puts = 0, put_keys = 0, put_granted = 0, put_held = 0, put_pending = 0, put_full = 0, put_too_large = 0,
                put_lapsed = 0;
  std::uint64_t stored = 0, stored_bytes = 0;
  std::uint64_t holds_parked = 0, parked_late = 0, parked_refused = 0, promotions_asked = 0, promotions_ended = 0, work_dropped = 0;
  std::uint64_t corrupt_reported = 0;
  std::array<std::uint64_t, kTiers> corrupt{};       // blocks dropped because they did not verify
  std::array<std::uint64_t, kTiers> read_failed{};   // blocks a tier had and could not give
  std::uint64_t refused_limit = 0, refused_input = 0, stale_namespace = 0, cleared = 0;
  std::uint64_t demoted[kTiers] = {}, promoted[kTiers] = {};  // told by the mover: to, from a tier
  std::uint64_t demotions_dropped = 0;  // evicted before they were in a lower tier that was to have them
  std::array<Histogram, kMovePaths> paths{};
};

}  // namespace kvstore
