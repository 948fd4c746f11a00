#include "answers.hpp"

namespace kvstore::door {

bool parse_hold(std::span<const std::uint8_t> body, HoldAnswer& out) {
  Reader reader(body);
  if (!reader.read(out.head) || out.head.slots > reader.left() / sizeof(WireHeld)) return false;
  out.slots.resize(out.head.slots);
  std::uint64_t parts = 0;
  for (WireHeld& slot : out.slots) {
    reader.read(slot);
    if (slot.parts_ready > kPartsMax || slot.tier >= kTiers) return false;
    parts += slot.parts_ready;
  }
  if (reader.left() != parts * 8) return false;
  out.checksums.resize(parts);
  for (std::uint64_t& checksum : out.checksums) reader.read(checksum);
  return (out.head.hold != 0) == !out.slots.empty();
}

bool parse_reserved(std::span<const std::uint8_t> body, std::vector<WireReserved>& out) {
  if (body.size() % sizeof(WireReserved) != 0) return false;
  Reader reader(body);
  out.resize(body.size() / sizeof(WireReserved));
  for (WireReserved& row : out) {
    reader.read(row);
    if (row.status > static_cast<std::uint8_t>(ReserveStatus::kTooLarge)) return false;
  }
  return true;
}

bool parse_lookup(std::span<const std::uint8_t> body, std::uint32_t& blocks, std::uint32_t& fetch_us,
                  std::vector<std::uint8_t>& tiers) {
  Reader reader(body);
  LookupAnswerHead head;
  if (!reader.read(head) || reader.left() != head.blocks) return false;
  std::span<const std::uint8_t> raw;
  reader.bytes(head.blocks, raw);
  for (const std::uint8_t tier : raw)
    if (tier >= kTiers) return false;
  blocks = head.blocks;
  fetch_us = head.fetch_us;
  tiers.assign(raw.begin(), raw.end());
  return true;
}

bool parse_error(std::span<const std::uint8_t> body, std::string& field, std::string& reason, std::uint64_t& limit) {
  Reader reader(body);
  ErrorHead head;
  std::span<const std::uint8_t> first, second;
  if (!reader.read(head) || !reader.bytes(head.field_bytes, first) || !reader.bytes(head.reason_bytes, second)) return false;
  field.assign(first.begin(), first.end());
  reason.assign(second.begin(), second.end());
  limit = head.limit;
  return reader.left() == 0;
}

}  // namespace kvstore::door
