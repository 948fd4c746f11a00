// One window of a get, views, and bare holds. What is copied is hashed in the same pass and compared with what was sealed.
#include <numeric>

#include "base/checksum.hpp"
#include "operation.hpp"

namespace kvstore::door {
namespace {

std::uint64_t sum_of(const std::vector<std::uint32_t>& parts, std::size_t first, std::size_t end) {
  const auto at = [&parts](std::size_t part) { return parts.begin() + static_cast<std::ptrdiff_t>(part); };
  return std::accumulate(at(first), at(end), std::uint64_t{0});
}
std::uint64_t sum_of(const std::vector<std::uint32_t>& parts) { return sum_of(parts, 0, parts.size()); }

}  // namespace

PartRange part_range(const std::vector<std::uint32_t>& parts, std::uint32_t first, std::optional<std::uint32_t> end) {
  const auto all = static_cast<std::uint32_t>(parts.size());
  const PartRange range{first, end.value_or(all)};
  if (range.first >= range.end || range.end > all) throw std::invalid_argument("parts: a range of those that the shard has");
  return range;
}

FetchOperation::FetchOperation(HoldArguments arguments, Parts parts, const Scattered& into, PartRange range)
    : arguments_(std::move(arguments)), parts_(std::move(parts)), range_(range), block_bytes_(sum_of(*parts_)),
      skipped_(sum_of(*parts_, 0, range.first)), bytes_(sum_of(*parts_, range.first, range.end)),
      into_(into, arguments_.keys.size(), bytes_) {}

Operation::Next FetchOperation::advance(Link& link, const Answer* answer, FrameWriter& request) {
  if (answer == nullptr) {
    if (link.segment == nullptr) return unmapped("fetch");
    write_hold(arguments_, request);
    return Next::kAsk;
  }
  if (!parse_hold(answer->body, held_) || held_.slots.size() > arguments_.keys.size()) return broken("hold");
  return held(link);
}

void FetchOperation::refused(Link& link) { give_back(link); }

Operation::Next FetchOperation::held(Link& link) {
  result.window_full = held_.head.window_full != 0;
  while (whole_ < held_.slots.size() && held_.slots[whole_].parts_ready == parts_->size()) ++whole_;
  if (whole_ == 0) return finish(link);
  for (std::size_t i = 0; i < whole_ && !cancelled; ++i) {
    if (!link.segment->contains(held_.slots[i].offset, block_bytes_)) {
      finish(link);
      return broken("hold");
    }
    if (!copy_block(link, i, held_.checksums.data() + i * parts_->size())) {
      corrupt(link, i);
      break;
    }
    result.blocks += 1;
  }
  store_fence();
  return finish(link);
}

bool FetchOperation::copy_block(Link& link, std::size_t index, const std::uint64_t* checksums) {
  // The cursor wants bytes it could write; nothing is written to the mapping, which is read-only anyway.
  const Piece slot{const_cast<std::byte*>(link.segment->readable(held_.slots[index].offset + skipped_, bytes_)), bytes_};
  PieceCursor from({&slot, 1});
  PieceCursor to(into_.of(index));
  if (!link.verify) {
    copy_pieces(from, to, bytes_);
    return true;
  }
  bool good = true;
  for (std::size_t part = range_.first; part < range_.end; ++part)
    good = copy_part(from, to, (*parts_)[part]) == checksums[part] && good;
  return good;
}

void FetchOperation::corrupt(Link& link, std::size_t index) {
  result.blocks_corrupt += 1;
  FrameWriter body;
  body.put(TicketsRequest{1, 0});
  body.put(held_.slots[index].ticket);
  link.channel.later(Verb::kCorrupt, body.bytes);
}

void FetchOperation::give_back(Link& link) {
  if (held_.head.hold != 0) write_release(held_.head.hold, link.channel);
  held_.head.hold = 0;
}

Operation::Next FetchOperation::finish(Link& link) {
  give_back(link);
  result.bytes = bytes_ * result.blocks;
  result.window_full = result.window_full && result.blocks == held_.slots.size();
  for (std::size_t i = 0; i < result.blocks; ++i) result.tiers.push_back(held_.slots[i].tier);
  if (cancelled) return fail(Status::kCancelled, "", "");
  return Next::kDone;
}

ViewOperation::ViewOperation(HoldArguments arguments, Parts parts)
    : arguments_(std::move(arguments)), parts_(std::move(parts)), block_bytes_(sum_of(*parts_)) {
  arguments_.kind = HoldKind::kView;
}

Operation::Next ViewOperation::advance(Link& link, const Answer* answer, FrameWriter& request) {
  if (answer == nullptr) {
    if (link.segment == nullptr) return unmapped("view");
    write_hold(arguments_, request);
    return Next::kAsk;
  }
  HoldAnswer held;
  if (!parse_hold(answer->body, held) || held.slots.size() > arguments_.keys.size()) return broken("hold");
  result.hold = held.head.hold;
  result.window_full = held.head.window_full != 0;
  const std::uint64_t* checksums = held.checksums.data();
  for (const WireHeld& slot : held.slots) {
    const std::byte* at = link.segment->readable(slot.offset, block_bytes_);
    if (cancelled || slot.parts_ready > parts_->size() || at == nullptr) break;
    bool good = true;
    for (std::uint32_t part = 0; part < slot.parts_ready && good && link.verify; ++part) {
      good = part_checksum(at, (*parts_)[part]) == checksums[part];
      at += (*parts_)[part];
    }
    checksums += slot.parts_ready;
    if (!good) {
      result.blocks_corrupt += 1;
      result.window_full = false;
      FrameWriter body;
      body.put(TicketsRequest{1, 0});
      body.put(slot.ticket);
      link.channel.later(Verb::kCorrupt, body.bytes);
      break;
    }
    result.blocks += 1;
    result.bytes += block_bytes_;
    result.tiers.push_back(slot.tier);
    result.offsets.push_back(slot.offset);
    result.tickets.push_back(slot.ticket.slot | std::uint64_t{slot.ticket.tenancy} << 32);
    result.parts_ready.push_back(slot.parts_ready);
  }
  if (result.blocks == 0 || cancelled) {
    if (result.hold != 0) write_release(result.hold, link.channel);
    result.hold = 0;
  }
  if (cancelled) return fail(Status::kCancelled, "", "");
  return Next::kDone;
}

HoldOperation::HoldOperation(HoldArguments arguments) : arguments_(std::move(arguments)) { arguments_.kind = HoldKind::kView; }

Operation::Next HoldOperation::advance(Link& link, const Answer* answer, FrameWriter& request) {
  if (answer == nullptr) {
    if (link.segment == nullptr) return unmapped("hold");
    write_hold(arguments_, request);
    return Next::kAsk;
  }
  HoldAnswer held;
  if (!parse_hold(answer->body, held) || held.slots.size() > arguments_.keys.size()) return broken("hold");
  if (cancelled && held.head.hold != 0) write_release(held.head.hold, link.channel);
  if (cancelled) return fail(Status::kCancelled, "", "");
  result.hold = held.head.hold;
  result.window_full = held.head.window_full != 0;
  result.blocks = static_cast<std::uint32_t>(held.slots.size());
  for (const WireHeld& slot : held.slots) result.tiers.push_back(slot.tier);
  return Next::kDone;
}

}  // namespace kvstore::door
