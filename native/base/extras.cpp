// Typed extras into the bytes that go into keys: which blocks each touches, and how that is written down.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "keys.hpp"

namespace kvstore {
namespace {

using Record = std::string;  // compares as unsigned bytes

template <typename Bytes>
void append(Bytes& to, const void* from, std::size_t bytes) {
  const std::size_t at = to.size();
  to.resize(at + bytes);
  std::memcpy(to.data() + at, from, bytes);
}
template <typename Bytes, typename Unsigned>
void append(Bytes& to, Unsigned value) {
  static_assert(std::endian::native == std::endian::little);
  append(to, &value, sizeof value);
}

// An extra with the blocks [first, end) that it touches.
struct Touched {
  const Extra* extra;
  std::size_t first, end;
};

template <typename Bytes>
void append_record(const Extra& extra, std::int64_t block_first, std::int64_t block_end, Bytes& to) {
  append(to, static_cast<std::uint8_t>(extra.kind));
  append(to, static_cast<std::uint32_t>(std::max(extra.first, block_first) - block_first));
  append(to, static_cast<std::uint32_t>(std::min(extra.end, block_end) - block_first));
  // A LoRA or a salt is the same wherever it began; of an image it matters which of its tokens these are.
  const bool placed = extra.kind == ExtraKind::kMultimodal || extra.kind == ExtraKind::kEmbeds;
  const bool began_before = placed && extra.first < block_first;
  append(to, began_before ? static_cast<std::uint64_t>(block_first - extra.first) : std::uint64_t{0});
  append(to, static_cast<std::uint32_t>(extra.value.size()));
  append(to, extra.value.data(), extra.value.size());
}

void check(const Extra& extra, std::size_t index) {
  const auto fail = [index](const std::string& what) {
    throw std::invalid_argument(std::string("extras[") + std::to_string(index) + "] " + what);
  };
  // Far beyond any prompt, and small enough that no sum below can overflow.
  constexpr std::int64_t kFar = std::int64_t{1} << 62;
  if (extra.kind < ExtraKind::kLora || extra.kind > ExtraKind::kEmbeds) {
    fail("is of no known kind");
  }
  if (extra.first >= extra.end) fail("applies to no token: its end is not after its first");
  if (extra.first < -kFar || extra.end > kFar) fail("lies beyond 2^62 tokens");
  if (extra.value.empty()) fail("has an empty value");
  if (extra.value.size() > kExtrasBytesMax) {
    fail("has a value of " + std::to_string(extra.value.size()) +
                                " bytes; extras_bytes_max is " + std::to_string(kExtrasBytesMax));
  }
}

std::vector<Touched> touched_blocks(std::span<const Extra> extras, std::uint32_t block_tokens, std::size_t blocks) {
  std::vector<Touched> all;
  const auto tokens = static_cast<std::int64_t>(blocks * block_tokens);
  for (std::size_t i = 0; i < extras.size(); ++i) {
    check(extras[i], i);
    const std::int64_t first = std::clamp<std::int64_t>(extras[i].first, 0, tokens);
    const std::int64_t end = std::clamp<std::int64_t>(extras[i].end, 0, tokens);
    if (first >= end) continue;
    const auto size = static_cast<std::int64_t>(block_tokens);
    all.push_back({&extras[i], static_cast<std::size_t>(first / size), static_cast<std::size_t>((end + size - 1) / size)});
  }
  std::sort(all.begin(), all.end(), [](const Touched& a, const Touched& b) { return a.first < b.first; });
  return all;
}

// Appends the encoded extras of one block.
void encode_block(std::span<const Touched> active, std::size_t block, std::uint32_t block_tokens, std::vector<std::uint8_t>& arena) {
  const auto named = [block] { return std::string("extras of block ") + std::to_string(block); };
  if (active.size() > kExtrasPerBlockMax) {
    throw std::invalid_argument(named() + " are more than extras_per_block_max = " + std::to_string(kExtrasPerBlockMax));
  }
  const auto first_token = static_cast<std::int64_t>(block * block_tokens);
  const std::size_t start = arena.size();
  if (active.size() == 1) {  // nothing to sort: the usual case, a LoRA over the whole prompt
    append_record(*active[0].extra, first_token, first_token + block_tokens, arena);
  } else {
    std::vector<Record> records(active.size());
    for (std::size_t i = 0; i < active.size(); ++i) {
      append_record(*active[i].extra, first_token, first_token + block_tokens, records[i]);
    }
    std::sort(records.begin(), records.end());
    records.erase(std::unique(records.begin(), records.end()), records.end());
    for (const Record& record : records) arena.insert(arena.end(), record.begin(), record.end());
  }
  if (arena.size() - start > kExtrasBytesMax) {
    throw std::invalid_argument(named() + " encode to more than extras_bytes_max = " + std::to_string(kExtrasBytesMax) + " bytes");
  }
  if (arena.size() > kExtrasArenaMax) throw std::invalid_argument("extras encode to more than 64 MiB in one call");
}

}  // namespace

EncodedExtras::EncodedExtras(std::span<const Extra> extras, std::uint32_t block_tokens, std::size_t blocks) {
  if (extras.size() > kExtrasMax) {
    throw std::invalid_argument(std::string("extras has ") + std::to_string(extras.size()) + " entries; extras_max is " +
                                std::to_string(kExtrasMax));
  }
  const std::vector<Touched> all = touched_blocks(extras, block_tokens, blocks);
  std::vector<std::size_t> starts;  // in the arena, which moves while it grows
  std::vector<Touched> active;
  std::size_t block = 0;
  for (std::size_t next = 0; next < all.size() || !active.empty(); ++block) {
    if (active.empty()) block = all[next].first;
    while (next < all.size() && all[next].first == block) active.push_back(all[next++]);
    blocks_.push_back({block, {}});
    starts.push_back(arena_.size());
    encode_block(active, block, block_tokens, arena_);
    std::erase_if(active, [block](const Touched& touched) { return touched.end == block + 1; });
  }
  starts.push_back(arena_.size());
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    blocks_[i].bytes = std::span(arena_).subspan(starts[i], starts[i + 1] - starts[i]);
  }
}

}  // namespace kvstore
