// What another node asks a home, as the door reads it without Python: within bounds, and whatever is answered is of every key that was
// asked for, of holders that are there, and ends with the view.
#include <cstdlib>
#include <cstring>

#include "base/clock.hpp"
#include "directory/claims_desk.hpp"

using namespace kvstore;

namespace {

constexpr std::uint64_t kView = 0x7665697700112233ull;
constexpr std::size_t kHolders = 3;

// A desk that knows the 256 keys of which each byte is the same.
ClaimsDesk& desk() {
  static ClaimsDesk* const made = [] {
    auto* const fresh = new ClaimsDesk({1 << 12, 1});
    std::vector<std::uint8_t> keys;
    for (int key = 0; key < 256; ++key) keys.insert(keys.end(), 16, static_cast<std::uint8_t>(key));
    const std::vector<std::uint64_t> shards(256, 1);
    const std::vector<std::uint8_t> tiers(256, 1), digest(32, 7);
    for (std::size_t i = 0; i < kHolders; ++i) {
      const auto node = static_cast<NodeNumber>(fresh->with([](ClaimTable& table) { return table.add_node(); }));
      fresh->name(node, {static_cast<std::uint8_t>(i + 1)});
      fresh->with([&](ClaimTable& table) {
        table.set_named(node, true);
        table.apply(node, {namespace_word(digest), {keys.data(), 256, 16}, shards, tiers});
      });
    }
    return fresh;
  }();
  return *made;
}

void refuse(bool wrong) {
  if (wrong) std::abort();
}

// Field by field, as the answer's protobuf says: tag, length, bytes.
std::span<const std::uint8_t> field(std::span<const std::uint8_t>& from, std::uint8_t tag) {
  if (from.empty() || from.front() != tag) return {};
  std::size_t length = 0, at = 1;
  for (unsigned shift = 0;; shift += 7, ++at) {
    refuse(at >= from.size());
    length |= std::size_t{from[at] & 0x7fu} << shift;
    if (from[at] < 0x80) break;
  }
  refuse(length > from.size() - at - 1);
  const auto found = from.subspan(at + 1, length);
  from = from.subspan(at + 1 + length);
  return found;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::uint8_t> message{data, size};
  const auto asked = read_question(message);
  if (asked) {
    refuse(asked->ns.data() < data || asked->ns.data() + asked->ns.size() > data + size);
    refuse(!asked->keys.empty() && (asked->keys.data() < data || asked->keys.data() + asked->keys.size() > data + size));
  }
  std::vector<std::uint8_t> out{1, 2, 3};
  desk().answer_until(0, kView, 8);
  refuse(desk().answer(message, out) || out.size() != 3);  // not any more: nobody is answered
  desk().answer_until(monotonic_now() + 1'000'000'000, kView, 8);
  const bool told = desk().answer(message, out);
  refuse(told != asked.has_value());
  refuse(!told && out.size() != 3);
  if (!told) return 0;
  std::span<const std::uint8_t> left{out.data() + 3, out.size() - 3};
  std::size_t nodes = 0, holders = 0;
  for (auto node = field(left, 0x12); !node.empty(); node = field(left, 0x12), ++nodes) refuse(node.size() != 16);
  const auto counts = field(left, 0x1a);
  refuse(counts.size() != asked->keys.size() / 16 || nodes > kHolders);
  for (const std::uint8_t count : counts) holders += count;
  const auto places = field(left, 0x22), shards = field(left, 0x2a), tiers = field(left, 0x32);
  refuse(places.size() != 2 * holders || shards.size() != 8 * holders || tiers.size() != holders);
  for (std::size_t i = 0; i < places.size(); i += 2) {
    std::uint16_t place = 0;
    std::memcpy(&place, places.data() + i, sizeof place);
    refuse(place >= nodes);
  }
  refuse(left.size() != 1 + sizeof kView || left.front() != 0x39 || std::memcmp(left.data() + 1, &kView, sizeof kView) != 0);
  return 0;
}
