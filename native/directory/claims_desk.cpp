#include "claims_desk.hpp"

#include <algorithm>

namespace kvstore {
namespace {

// Protobuf's tags of the two messages: field << 3 | wire type.
enum Asked : std::uint8_t { kAskedNamespace = 0x0a, kAskedKeys = 0x12, kAskedSpread = 0x1d };
enum Told : std::uint8_t { kToldNode = 0x12, kToldCounts = 0x1a, kToldHolders = 0x22, kToldShards = 0x2a, kToldTiers = 0x32, kToldView = 0x39 };

constexpr std::size_t kDigestBytes = 32, kShortKeyBytes = 16;
constexpr std::size_t kKeysMax = 8'192;  // of one question; longer ones would keep the door's other peers waiting
constexpr ClaimsDesk::NodeId kNobody{};

// A length of up to four bytes of seven bits. False: another one, or cut off.
bool read_length(std::span<const std::uint8_t>& from, std::size_t& length) noexcept {
  length = 0;
  for (unsigned shift = 0; shift < 28 && !from.empty(); shift += 7) {
    const std::uint8_t byte = from.front();
    from = from.subspan(1);
    length |= std::size_t{byte & 0x7fu} << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

bool read_bytes(std::span<const std::uint8_t>& from, std::span<const std::uint8_t>& out) noexcept {
  std::size_t length = 0;
  if (!read_length(from, length) || length > from.size()) return false;
  out = from.first(length);
  from = from.subspan(length);
  return true;
}

bool read_fixed32(std::span<const std::uint8_t>& from, std::uint32_t& out) noexcept {
  if (from.size() < sizeof out) return false;
  std::memcpy(&out, from.data(), sizeof out);
  from = from.subspan(sizeof out);
  return true;
}

void write_bytes(std::vector<std::uint8_t>& out, Told tag, const void* data, std::size_t size) {
  if (size == 0) return;
  out.push_back(tag);
  std::size_t left = size;
  for (; left >= 0x80; left >>= 7) out.push_back(static_cast<std::uint8_t>(left | 0x80));
  out.push_back(static_cast<std::uint8_t>(left));
  const auto* bytes = static_cast<const std::uint8_t*>(data);
  out.insert(out.end(), bytes, bytes + size);
}

template <class T>
void write_all(std::vector<std::uint8_t>& out, Told tag, const std::vector<T>& values) {
  write_bytes(out, tag, values.data(), values.size() * sizeof(T));
}

}  // namespace

std::optional<LocateQuestion> read_question(std::span<const std::uint8_t> message) noexcept {
  LocateQuestion asked;
  while (!message.empty()) {
    const std::uint8_t tag = message.front();
    message = message.subspan(1);
    const bool good = tag == kAskedNamespace ? read_bytes(message, asked.ns)
                      : tag == kAskedKeys    ? read_bytes(message, asked.keys)
                      : tag == kAskedSpread  ? read_fixed32(message, asked.spread)
                                             : false;
    if (!good) return std::nullopt;
  }
  if (asked.ns.size() != kDigestBytes || asked.keys.size() % kShortKeyBytes != 0) return std::nullopt;
  if (asked.keys.size() > kKeysMax * kShortKeyBytes) return std::nullopt;
  return asked;
}

void ClaimsDesk::name(NodeNumber node, const NodeId& id) {
  const std::lock_guard lock(mutex_);
  if (node >= ids_.size()) ids_.resize(node + std::size_t{1}, kNobody);
  ids_[node] = id;
}

void ClaimsDesk::answer_until(std::int64_t until, std::uint64_t view, std::uint32_t holders_max) {
  const std::lock_guard lock(mutex_);
  until_ = until;
  view_ = view;
  holders_max_ = holders_max;
}

bool ClaimsDesk::place(NodeNumber node, std::uint16_t& place) {
  if (node >= ids_.size() || ids_[node] == kNobody) return false;
  if (places_.size() < ids_.size()) places_.resize(ids_.size());
  if (places_[node] == 0) {
    named_.push_back(node);
    places_[node] = static_cast<std::uint16_t>(named_.size());
  }
  place = static_cast<std::uint16_t>(places_[node] - 1);
  return true;
}

bool ClaimsDesk::answer(std::span<const std::uint8_t> message, std::vector<std::uint8_t>& out) {
  const std::optional<LocateQuestion> asked = read_question(message);
  if (!asked) return false;
  const std::lock_guard lock(mutex_);
  if (monotonic_now() >= until_) return false;
  for (auto* one : {&located_.counts, &located_.tiers}) one->clear();
  located_.nodes.clear();
  located_.shards.clear();
  table_.locate(namespace_word(asked->ns), {asked->keys.data(), asked->keys.size() / kShortKeyBytes, kShortKeyBytes}, holders_max_,
                asked->spread, located_);
  named_.clear();
  std::fill(places_.begin(), places_.end(), std::uint16_t{0});
  for (NodeNumber& node : located_.nodes)
    if (!place(node, node)) return false;
  for (const NodeNumber node : named_) write_bytes(out, kToldNode, ids_[node].data(), ids_[node].size());
  write_all(out, kToldCounts, located_.counts);
  write_all(out, kToldHolders, located_.nodes);
  write_all(out, kToldShards, located_.shards);
  write_all(out, kToldTiers, located_.tiers);
  out.push_back(kToldView);
  const auto* view = reinterpret_cast<const std::uint8_t*>(&view_);
  out.insert(out.end(), view, view + sizeof view_);
  return true;
}

}  // namespace kvstore
