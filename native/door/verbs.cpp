// What each frame of the door means. Every field that a peer sent is checked here, and named when it is wrong.
// A frame that does not parse costs its connection; a request that is refused does not.
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.hpp"
#include "server_impl.hpp"

namespace kvstore::door {
namespace {

constexpr std::uint32_t kNeedsMax = 256;
constexpr Nanos kMilli = 1'000'000;

Status to_status(FetchStatus status) { return static_cast<Status>(status); }

// Verbs whose answer may be left out: nothing is learnt from it that the peer must act on.
bool may_go_unanswered(Verb verb) {
  switch (verb) {
    case Verb::kPart:
    case Verb::kAbort:
    case Verb::kRelease:
    case Verb::kFetched:
    case Verb::kCorrupt:
    case Verb::kQuiet:
    case Verb::kCall: return true;
    default: return false;
  }
}

// Slots and holds are for those who map what they lie in; all others move bytes by transfers, and ask for them in CALLs.
bool needs_the_segment(Verb verb) {
  switch (verb) {
    case Verb::kReserve:
    case Verb::kPart:
    case Verb::kSeal:
    case Verb::kAbort:
    case Verb::kHold:
    case Verb::kRelease:
    case Verb::kCorrupt:
    case Verb::kQuiet: return true;
    default: return false;
  }
}

bool hint_is_good(const WireHint& hint) { return hint.priority >= -1 && hint.priority <= 1 && hint.end <= 1; }

// An empty list may have no address, which memcpy must not be given.
void copy_raw(void* to, std::span<const std::uint8_t> raw) {
  if (!raw.empty()) std::memcpy(to, raw.data(), raw.size());
}

}  // namespace

void Door::Impl::refuse(Connection& peer, const FrameHeader& header, Status status, std::string_view field,
                        std::string_view reason, std::uint64_t limit) {
  if ((header.flags & kNoAnswer) != 0) return;
  peer.out.error(header.verb, 0, header.request, status, field, reason, limit);
}

bool Door::Impl::malformed(Connection& peer, const FrameHeader& header, std::string_view field, std::string_view reason,
                           std::uint64_t limit) {
  tally.cut_malformed += 1;
  peer.out.error(Verb::kError, 0, header.request, Status::kBadInput, field, reason, limit);
  peer.write({peer.out.bytes.data() + peer.out_sent, peer.pending()});
  peer.out.bytes.clear();
  peer.out_sent = 0;
  condemn(peer);
  return false;
}

bool Door::Impl::handle(Connection& peer, const FrameHeader& header, std::span<const std::uint8_t> body, Nanos now) {
  if (peer.state == Connection::State::kHello) return hello(peer, header, body);
  if (header.version != kFrameVersion) return malformed(peer, header, "version", "not the one agreed on", kFrameVersion);
  if ((header.flags & ~kNoAnswer) != 0 || header.status != Status::kOk)
    return malformed(peer, header, "flags", "of an answer in a request");
  if ((header.flags & kNoAnswer) != 0 && !may_go_unanswered(header.verb))
    return malformed(peer, header, "flags", "this verb is always answered");
  if (!peer.trusted && needs_the_segment(header.verb)) {
    refuse(peer, header, Status::kDenied, "verb", "is for peers that map the segment; others move bytes by transfers");
    return true;
  }
  const Reader reader(body);
  switch (header.verb) {
    case Verb::kLookup: return lookup(peer, header, reader);
    case Verb::kReserve: return reserve(peer, header, reader, now);
    case Verb::kPart: return part(peer, header, reader);
    case Verb::kSeal: return seal(peer, header, reader);
    case Verb::kAbort:
    case Verb::kCorrupt: return tickets(peer, header, reader);
    case Verb::kHold: return hold(peer, header, reader, now);
    case Verb::kRelease: return release(peer, header, reader);
    case Verb::kFetched: return fetched(peer, header, reader);
    case Verb::kQuiet: return quiet(peer, header, reader);
    case Verb::kCall: return call(peer, header, body);
    case Verb::kHello: return malformed(peer, header, "verb", "HELLO is said once");
    case Verb::kError: break;
  }
  return malformed(peer, header, "verb", "unknown");
}

// ---- LOOKUP

bool Door::Impl::lookup(Connection& peer, const FrameHeader& header, Reader body) {
  LookupRequest asked;
  std::span<const Key> keys;
  if (!body.read(asked)) return malformed(peer, header, "lookup", "too short");
  if (asked.needs > kNeedsMax) return malformed(peer, header, "needs", "too many", kNeedsMax);
  needs.clear();
  for (std::uint32_t i = 0; i < asked.needs; ++i) {
    WireNeed need;
    if (!body.read(need)) return malformed(peer, header, "needs", "too short");
    if (need.kind > static_cast<std::uint8_t>(NeedKind::kState)) return malformed(peer, header, "needs.kind", "unknown");
    needs.push_back({need.shard, static_cast<NeedKind>(need.kind), need.blocks});
  }
  if (!body.keys(asked.keys, keys) || body.left() != 0) return malformed(peer, header, "keys", "do not match the frame");
  if (!peer.may(asked.ns)) {
    refuse(peer, header, Status::kStaleNamespace, "ns", "not open");
    return true;
  }
  if (const FetchStatus status = core.lookup(asked.ns, keys, needs, looked); status != FetchStatus::kOk) {
    const bool stale = status == FetchStatus::kStaleNamespace;
    const bool limit = status == FetchStatus::kRejected;
    refuse(peer, header, to_status(status), stale ? "ns" : limit ? "keys_per_call_max" : "needs.shard",
           stale ? "not open" : limit ? "too many keys" : "the namespace has no such shard",
           limit ? core.config().keys_per_call_max : 0);
    return true;
  }
  const std::size_t start = peer.out.begin(Verb::kLookup, kAnswer, header.request);
  const auto us = static_cast<std::uint32_t>(std::min<Nanos>(looked.estimate / 1'000, 0xffffffff));
  peer.out.put(LookupAnswerHead{looked.blocks, us});
  peer.out.append(looked.tiers.data(), looked.tiers.size());
  peer.out.finish(start);
  return true;
}

// ---- publishing

bool Door::Impl::reserve(Connection& peer, const FrameHeader& header, Reader body, Nanos now) {
  ReserveRequest asked;
  std::span<const Key> keys;
  if (!body.read(asked) || !body.keys(asked.keys, keys)) return malformed(peer, header, "keys", "do not match the frame");
  if (!hint_is_good(asked.hint)) return malformed(peer, header, "hint", "priority is -1 to 1, end 0 or 1");
  if ((asked.flags & ~(kHasParent | kHasMeta)) != 0) return malformed(peer, header, "flags", "unknown");
  meta_list.clear();
  if ((asked.flags & kHasMeta) != 0) {
    std::span<const std::uint8_t> lengths;
    if (!body.bytes(std::uint64_t{2} * asked.keys, lengths)) return malformed(peer, header, "meta", "lengths are missing");
    for (std::uint32_t i = 0; i < asked.keys; ++i) {
      std::uint16_t length;
      std::memcpy(&length, lengths.data() + 2 * i, 2);
      std::span<const std::uint8_t> one;
      if (length > kMetaBytesMax) return malformed(peer, header, "meta", "too long", kMetaBytesMax);
      if (!body.bytes(length, one)) return malformed(peer, header, "meta", "too short");
      meta_list.push_back(one);
    }
  }
  if (body.left() != 0) return malformed(peer, header, "reserve", "bytes are left over");
  if (!peer.may(asked.ns)) {
    refuse(peer, header, Status::kStaleNamespace, "ns", "not open");
    return true;
  }
  if (draining.load(std::memory_order_relaxed)) {
    refuse(peer, header, Status::kRejected, "draining", "this node hands its blocks on and takes no new ones");
    return true;
  }
  reserved.assign(keys.size(), {});
  const Key* parent = (asked.flags & kHasParent) != 0 ? &asked.parent : nullptr;
  const FetchStatus status = core.reserve(Tier::kMemory, peer.owner, asked.ns, asked.shard, keys, parent, meta_list,
                                          to_hint(asked.hint), true, now, reserved);
  if (status != FetchStatus::kOk) {
    const bool limit = status == FetchStatus::kRejected;
    refuse(peer, header, to_status(status), limit ? "keys_per_call_max" : status == FetchStatus::kBadInput ? "shard" : "ns",
           limit ? "too many keys" : status == FetchStatus::kBadInput ? "the namespace has no such shard" : "not open",
           limit ? core.config().keys_per_call_max : 0);
    return true;
  }
  const std::size_t start = peer.out.begin(Verb::kReserve, kAnswer, header.request);
  for (const Reserved& one : reserved) {
    WireReserved row;
    row.status = static_cast<std::uint8_t>(one.status);
    row.ticket = {one.ticket.slot, one.ticket.tenancy};
    row.offset = one.offset;
    peer.out.put(row);
  }
  peer.out.finish(start);
  return true;
}

void Door::Impl::outcomes(Connection& peer, const FrameHeader& header, std::span<const Outcome> outcomes) {
  if ((header.flags & kNoAnswer) != 0) return;
  const std::size_t start = peer.out.begin(header.verb, kAnswer, header.request);
  peer.out.append(outcomes.data(), outcomes.size());
  peer.out.finish(start);
}

bool Door::Impl::part(Connection& peer, const FrameHeader& header, Reader body) {
  PartRequest asked;
  if (!body.read(asked) || body.left() != asked.records * sizeof(WirePart))
    return malformed(peer, header, "records", "do not match the frame");
  outcome_list.clear();
  for (std::uint32_t i = 0; i < asked.records; ++i) {
    WirePart record;
    body.read(record);
    outcome_list.push_back(core.publish_part(peer.owner, {record.ticket.slot, record.ticket.tenancy}, record.part, record.checksum));
  }
  outcomes(peer, header, outcome_list);
  return true;
}

bool Door::Impl::seal(Connection& peer, const FrameHeader& header, Reader body) {
  SealRequest asked;
  std::span<const std::uint8_t> raw_tickets, raw_checksums;
  if (!body.read(asked) || !body.bytes(std::uint64_t{asked.tickets} * 8, raw_tickets))
    return malformed(peer, header, "tickets", "do not match the frame");
  if (!body.bytes(std::uint64_t{asked.checksums} * 8, raw_checksums) || body.left() != 0)
    return malformed(peer, header, "checksums", "do not match the frame");
  if (asked.tickets != 0 && asked.checksums % asked.tickets != 0)
    return malformed(peer, header, "checksums", "not as many for each ticket");
  ticket_list.resize(asked.tickets);
  copy_raw(ticket_list.data(), raw_tickets);
  checksum_list.resize(asked.checksums);
  copy_raw(checksum_list.data(), raw_checksums);
  outcome_list.assign(asked.tickets, Outcome::kBadInput);
  const auto elapsed = static_cast<Nanos>(std::min<std::uint64_t>(asked.elapsed_ns, 3'600'000'000'000));
  core.seal(Tier::kMemory, peer.owner, ticket_list, checksum_list, outcome_list, MovePath::kPutMapped, elapsed);
  outcomes(peer, header, outcome_list);
  return true;
}

bool Door::Impl::tickets(Connection& peer, const FrameHeader& header, Reader body) {
  TicketsRequest asked;
  std::span<const std::uint8_t> raw;
  if (!body.read(asked) || !body.bytes(std::uint64_t{asked.tickets} * 8, raw) || body.left() != 0)
    return malformed(peer, header, "tickets", "do not match the frame");
  ticket_list.resize(asked.tickets);
  copy_raw(ticket_list.data(), raw);
  if (header.verb == Verb::kAbort) {
    core.abort(Tier::kMemory, peer.owner, ticket_list);
  } else {
    for (const Ticket ticket : ticket_list)
      if (peer.may(core.ticket_namespace(ticket))) core.report_corrupt(peer.owner, ticket);
  }
  outcome_list.assign(ticket_list.size(), Outcome::kOk);
  outcomes(peer, header, outcome_list);
  return true;
}

// ---- fetching

bool Door::Impl::hold(Connection& peer, const FrameHeader& header, Reader body, Nanos now) {
  HoldRequest asked;
  std::span<const Key> keys;
  if (!body.read(asked) || !body.keys(asked.keys, keys) || body.left() != 0)
    return malformed(peer, header, "keys", "do not match the frame");
  if (asked.kind > static_cast<std::uint8_t>(HoldKind::kView)) return malformed(peer, header, "kind", "lease or view");
  if ((asked.flags & ~kFollowing) != 0) return malformed(peer, header, "flags", "unknown");
  if (!hint_is_good(asked.hint)) return malformed(peer, header, "hint", "priority is -1 to 1, end 0 or 1");
  if (!peer.may(asked.ns)) {
    refuse(peer, header, Status::kStaleNamespace, "ns", "not open");
    return true;
  }
  FetchRequest request;
  request.owner = peer.owner;
  request.ns = asked.ns;
  request.shard = asked.shard;
  request.kind = static_cast<HoldKind>(asked.kind);
  request.following = (asked.flags & kFollowing) != 0;
  request.held_open = request.kind == HoldKind::kView;
  request.hint = to_hint(asked.hint);
  request.lease = Nanos{asked.lease_ms} * kMilli;
  request.deadline = now + Nanos{std::min(asked.wait_ms, config.hold_wait_ms_max)} * kMilli;
  core.fetch(request, keys, now,
             [inbox = inbox, owner = peer.owner, id = header.request, flags = header.flags](FetchAnswer&& answer) {
               if (inbox->thread.load(std::memory_order_relaxed) != std::this_thread::get_id()) {
                 inbox->push(Inbox::Fetched{owner, id, flags, std::move(answer)});
               } else if (Connection* waiting = inbox->door->find(owner)) {
                 Door::Impl& door = *inbox->door;
                 door.held(*waiting, id, flags, std::move(answer));
                 if (owner != door.working_on) door.answered.push_back(owner);
               }
             });
  return true;
}

// Writes the answer of a HOLD. On the door's thread, at once or from the inbox.
void Door::Impl::held(Connection& peer, std::uint64_t request, std::uint8_t flags, FetchAnswer&& answer) {
  FrameHeader header;
  header.verb = Verb::kHold;
  header.request = request;
  header.flags = flags;
  if (answer.status != FetchStatus::kOk) {
    refuse(peer, header, to_status(answer.status), answer.field, "refused", answer.limit);
    return;
  }
  if (peer.state != Connection::State::kOpen) {
    if (answer.hold != 0) core.release(Tier::kMemory, peer.owner, answer.hold);
    return;
  }
  const std::size_t start = peer.out.begin(Verb::kHold, kAnswer, request);
  HoldAnswerHead head;
  head.hold = answer.hold;
  head.lease_ms = static_cast<std::uint32_t>(answer.lease / kMilli);
  head.slots = static_cast<std::uint32_t>(answer.slots.size());
  head.window_full = answer.window_full ? 1 : 0;
  peer.out.put(head);
  for (std::size_t i = 0; i < answer.slots.size(); ++i) {
    const Held& slot = answer.slots[i];
    WireHeld row;
    row.ticket = {slot.ticket.slot, slot.ticket.tenancy};
    row.offset = slot.offset;
    row.parts_ready = slot.parts_ready;
    row.tier = answer.tiers[i];
    peer.out.put(row);
  }
  peer.out.append(answer.checksums.data(), answer.checksums.size() * sizeof(std::uint64_t));
  peer.out.finish(start);
}

bool Door::Impl::release(Connection& peer, const FrameHeader& header, Reader body) {
  ReleaseRequest asked;
  if (!body.read(asked) || body.left() != std::uint64_t{asked.holds} * 8)
    return malformed(peer, header, "holds", "do not match the frame");
  outcome_list.clear();
  for (std::uint32_t i = 0; i < asked.holds; ++i) {
    HoldId id = 0;
    body.read(id);
    outcome_list.push_back(core.release(Tier::kMemory, peer.owner, id));
  }
  outcomes(peer, header, outcome_list);
  return true;
}

bool Door::Impl::fetched(Connection& peer, const FrameHeader& header, Reader body) {
  FetchedRequest told;
  if (!body.read(told) || body.left() != 0) return malformed(peer, header, "fetched", "wrong length");
  if (!peer.may(told.ns)) {
    refuse(peer, header, Status::kStaleNamespace, "ns", "not open");
    return true;
  }
  FetchedReport report;
  report.ns = told.ns;
  report.hint = to_hint(told.hint);
  report.blocks_asked = told.blocks_asked;
  for (std::size_t tier = 1; tier < kTiers; ++tier) report.blocks_by_tier[tier] = told.blocks_by_tier[tier];
  report.blocks_failed = told.blocks_failed;
  report.path = peer.trusted ? MovePath::kGetMapped : MovePath::kGetTransferred;
  report.bytes = told.bytes;
  report.elapsed = static_cast<Nanos>(std::min<std::uint64_t>(told.elapsed_ns, 3'600'000'000'000));
  if (!report.plausible()) {
    refuse(peer, header, Status::kBadInput, "blocks_by_tier", "more than were asked for", told.blocks_asked);
    return true;
  }
  core.fetched(report);
  outcomes(peer, header, {});
  return true;
}

bool Door::Impl::quiet(Connection& peer, const FrameHeader& header, Reader body) {
  QuietRequest told;
  if (!body.read(told) || body.left() != 0) return malformed(peer, header, "quiet", "wrong length");
  // Only of sessions of the very process that says so.
  core.former_client_gone(static_cast<std::uint32_t>(peer.pid), told.session, told.incarnation);
  outcomes(peer, header, {});
  return true;
}

// ---- rare verbs

bool Door::Impl::call(Connection& peer, const FrameHeader& header, std::span<const std::uint8_t> body) {
  CallRequest asked;
  Reader reader(body);
  std::span<const std::uint8_t> message;
  if (!reader.read(asked)) return malformed(peer, header, "call", "too short");
  reader.bytes(reader.left(), message);
  if (peer.claims != nullptr && asked.method == peer.locate_method && locate(peer, header, message)) return true;
  if (peer.requests >= config.requests_per_connection_max) {
    refuse(peer, header, Status::kRejected, "requests_per_connection_max", "too many are waiting", config.requests_per_connection_max);
    return true;
  }
  Request request;
  request.owner = peer.owner;
  request.request = header.request;
  request.method = asked.method;
  request.unanswered = (header.flags & kNoAnswer) != 0;
  request.trusted = peer.trusted;
  request.remote = peer.remote;
  request.uid = peer.uid;
  request.token = peer.token;
  request.names = peer.names;
  request.body.assign(message.begin(), message.end());
  {
    std::lock_guard lock(shared);
    if (requests.size() < config.requests_max) {
      requests.push_back(std::move(request));
      peer.requests += 1;
      const std::uint64_t one = 1;
      [[maybe_unused]] const auto written = ::write(request_event, &one, sizeof one);
      return true;
    }
  }
  tally.requests_dropped += 1;
  refuse(peer, header, Status::kRejected, "requests_max", "too many are waiting", config.requests_max);
  return true;
}

bool Door::Impl::locate(Connection& peer, const FrameHeader& header, std::span<const std::uint8_t> message) {
  if ((header.flags & kNoAnswer) != 0) return false;
  const std::size_t start = peer.out.begin(Verb::kCall, kAnswer, header.request);
  if (!peer.claims->answer(message, peer.out.bytes)) {
    peer.out.bytes.resize(start);
    return false;
  }
  peer.out.finish(start);
  tally.located += 1;
  return true;
}

}  // namespace kvstore::door
