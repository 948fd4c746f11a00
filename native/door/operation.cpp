// The small operations, and what all of them share. Rules: operation.hpp.
#include "operation.hpp"

#include <numeric>

namespace kvstore::door {

Operation::Next Operation::step(Link& link, const Answer* answer, FrameWriter& request) {
  if (answer != nullptr && answer->header.verb != asked_verb_) return broken("verb");
  const Next next = advance(link, answer, request);
  if (next == Next::kAsk) std::memcpy(&asked_verb_, request.bytes.data() + offsetof(FrameHeader, verb), sizeof asked_verb_);
  return next;
}

BlockPieces::BlockPieces(const Scattered& where, std::size_t blocks, std::uint64_t block_bytes) {
  if (blocks == 0) return;
  if (where.addresses.empty() || where.addresses.size() % blocks != 0)
    throw std::invalid_argument("addresses: the same number for each block");
  each_ = where.addresses.size() / blocks;
  if (where.lengths.size() != each_ && where.lengths.size() != where.addresses.size())
    throw std::invalid_argument("lengths: one a piece of a block, or one an address");
  const bool same = where.lengths.size() == each_;
  pieces_.resize(where.addresses.size());
  for (std::size_t block = 0; block < blocks; ++block) {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < each_; ++i) {
      const std::size_t at = block * each_ + i;
      const std::uint64_t length = where.lengths[same ? i : at];
      if (length > block_bytes - sum) throw std::invalid_argument("lengths: add up to more than the block");
      sum += length;
      pieces_[at] = {reinterpret_cast<std::byte*>(where.addresses[at]), length};
    }
    if (sum != block_bytes) throw std::invalid_argument("lengths: do not add up to the block");
  }
}

LookupOperation::LookupOperation(NsId ns, std::span<const Key> keys, std::span<const Need> needs) {
  const LookupRequest asked{ns, static_cast<std::uint32_t>(keys.size()), static_cast<std::uint32_t>(needs.size()), 0};
  FrameWriter body;
  body.bytes.swap(body_);
  body.bytes.reserve(sizeof asked + needs.size() * sizeof(WireNeed) + keys.size_bytes());
  body.put(asked);
  for (const Need& need : needs) body.put(WireNeed{need.shard, static_cast<std::uint8_t>(need.kind), 0, need.blocks});
  body.append(keys.data(), keys.size_bytes());
  body_ = std::move(body.bytes);
}

Operation::Next LookupOperation::advance(Link&, const Answer* answer, FrameWriter& request) {
  if (answer == nullptr) {
    request.bytes.reserve(sizeof(FrameHeader) + body_.size());
    const std::size_t start = request.begin(Verb::kLookup, 0, 0);
    request.append(body_.data(), body_.size());
    request.finish(start);
    return Next::kAsk;
  }
  std::uint32_t us = 0;
  if (!parse_lookup(answer->body, result.blocks, us, result.tiers)) return broken("lookup");
  result.fetch_s = us * 1e-6;
  return Next::kDone;
}

CallOperation::CallOperation(std::uint32_t method, std::span<const std::uint8_t> body)
    : method_(method), body_(body.begin(), body.end()) {}

Operation::Next CallOperation::advance(Link&, const Answer* answer, FrameWriter& request) {
  if (answer == nullptr) {
    const std::size_t start = request.begin(Verb::kCall, 0, 0);
    request.put(CallRequest{method_, 0});
    request.append(body_.data(), body_.size());
    request.finish(start);
    return Next::kAsk;
  }
  result.body = answer->body;
  return Next::kDone;
}

void write_reserve(const ReserveArguments& arguments, FrameWriter& request) {
  ReserveRequest asked;
  asked.ns = arguments.ns;
  asked.shard = arguments.shard;
  asked.keys = static_cast<std::uint32_t>(arguments.keys.size());
  asked.hint = to_wire(arguments.hint);
  if (!arguments.parent.empty()) {
    asked.flags |= kHasParent;
    std::memcpy(asked.parent.bytes.data(), arguments.parent.data(), sizeof(Key));
  }
  if (!arguments.metas.empty()) asked.flags |= kHasMeta;
  const std::size_t start = request.begin(Verb::kReserve, 0, 0);
  request.put(asked);
  request.append(arguments.keys.data(), arguments.keys.size() * sizeof(Key));
  for (const auto& meta : arguments.metas) request.put(static_cast<std::uint16_t>(meta.size()));
  for (const auto& meta : arguments.metas) request.append(meta.data(), meta.size());
  request.finish(start);
}

void write_abort(std::span<const WireTicket> tickets, Channel& channel) {
  if (tickets.empty()) return;
  FrameWriter body;
  body.put(TicketsRequest{static_cast<std::uint32_t>(tickets.size()), 0});
  body.append(tickets.data(), tickets.size_bytes());
  channel.later(Verb::kAbort, body.bytes);
}

void write_hold(const HoldArguments& arguments, FrameWriter& request) {
  HoldRequest asked;
  asked.ns = arguments.ns;
  asked.shard = arguments.shard;
  asked.kind = static_cast<std::uint8_t>(arguments.kind);
  asked.flags = arguments.following ? kFollowing : 0;
  asked.keys = static_cast<std::uint32_t>(arguments.keys.size());
  asked.wait_ms = arguments.wait_ms;
  asked.lease_ms = arguments.lease_ms;
  asked.hint = to_wire(arguments.hint);
  const std::size_t start = request.begin(Verb::kHold, 0, 0);
  request.put(asked);
  request.append(arguments.keys.data(), arguments.keys.size() * sizeof(Key));
  request.finish(start);
}

void write_release(HoldId hold, Channel& channel) {
  FrameWriter body;
  body.put(ReleaseRequest{1, 0});
  body.put(hold);
  channel.later(Verb::kRelease, body.bytes);
}

}  // namespace kvstore::door
