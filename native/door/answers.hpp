// What a client reads from a node's answers. A node is not believed either: every length is checked.
#pragma once
#include <string>
#include <vector>

#include "frame.hpp"

namespace kvstore::door {

struct HoldAnswer {
  HoldAnswerHead head;
  std::vector<WireHeld> slots;
  std::vector<std::uint64_t> checksums;  // parts_ready of each, in order
};

bool parse_hold(std::span<const std::uint8_t> body, HoldAnswer& out);
bool parse_reserved(std::span<const std::uint8_t> body, std::vector<WireReserved>& out);
bool parse_lookup(std::span<const std::uint8_t> body, std::uint32_t& blocks, std::uint32_t& fetch_us, std::vector<std::uint8_t>& tiers);
bool parse_error(std::span<const std::uint8_t> body, std::string& field, std::string& reason, std::uint64_t& limit);

}  // namespace kvstore::door
