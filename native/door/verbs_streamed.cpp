// Bytes of peers that are not trusted: the door copies them into reserved slots and out of held ones, and hashes what lands.
//
// Rules
// - A reservation is written by the door alone, on its thread; when it lapses the door stops and gives it up, so that
//   nothing of it can land later.
// - What is read is held by the door as a view until it is sent, released, or its lease is over and nothing of it is being sent:
//   a slot that has another tenant now is never sent.
#include "base/copy.hpp"
#include "server_impl.hpp"

namespace kvstore::door {
namespace {

constexpr std::size_t kPieceBytes = 256u << 10;

std::uint64_t word_of(Ticket ticket) noexcept { return ticket.slot | std::uint64_t{ticket.tenancy} << 32; }
Ticket ticket_of(std::uint64_t word) noexcept {
  return {static_cast<SlotId>(word), static_cast<std::uint32_t>(word >> 32)};
}

}  // namespace

bool Door::Impl::expect_landings(Connection& peer, NsId ns, std::uint16_t shard, std::span<const Reserved> granted, Nanos now) {
  std::vector<Ticket> all;
  for (const Reserved& one : granted)
    if (one.status == ReserveStatus::kGranted) all.push_back(one.ticket);
  const auto spec = core.namespace_spec(ns);
  const std::uint64_t bytes = spec ? spec->shards[shard].bytes * all.size() : 0;
  if (!spec || peer.streamed_bytes + bytes > config.streamed_bytes_max) {
    core.abort(Tier::kMemory, peer.owner, all);
    return false;
  }
  const auto shared_spec = std::make_shared<const ShardSpec>(spec->shards[shard]);
  const Nanos lapses = now + core.config().reserve_lapse;
  for (const Reserved& one : granted)
    if (one.status == ReserveStatus::kGranted)
      peer.landings[word_of(one.ticket)] = std::make_unique<Landing>(one.offset, shared_spec, lapses);
  peer.streamed_bytes += bytes;
  next_housekeeping = 0;
  return true;
}

bool Door::Impl::write(Connection& peer, const FrameHeader& header, std::span<const std::uint8_t> body) {
  WriteRequest asked;
  Reader reader(body);
  std::span<const std::uint8_t> bytes;
  if (!reader.read(asked)) return malformed(peer, header, "write", "too short");
  reader.bytes(reader.left(), bytes);
  if (peer.trusted) return malformed(peer, header, "write", "a trusted peer writes in place");
  const auto found = peer.landings.find(word_of({asked.ticket.slot, asked.ticket.tenancy}));
  if (found == peer.landings.end()) {  // lapsed meanwhile: its SEAL will say so
    outcomes(peer, header, std::array{Outcome::kStale});
    return true;
  }
  Landing& landing = *found->second;
  if (asked.offset != landing.hasher.progress()) return malformed(peer, header, "offset", "bytes come in order", landing.hasher.progress());
  if (bytes.size() > landing.shard->bytes - asked.offset)
    return malformed(peer, header, "bytes", "more than the block has", landing.shard->bytes);
  // The frame is the door's own memory, so that hashing it and then copying it sees the same bytes.
  landing.hasher.feed(bytes.data(), bytes.size());
  copy_bytes(payload.writable(landing.offset + asked.offset, bytes.size()), bytes.data(), bytes.size());
  outcomes(peer, header, std::array{Outcome::kOk});
  return true;
}

Outcome Door::Impl::publish_landed(Connection& peer, Ticket ticket, std::uint32_t part) {
  const auto found = peer.landings.find(word_of(ticket));
  if (found == peer.landings.end()) return Outcome::kStale;
  Landing& landing = *found->second;
  if (part != landing.parts_published || part >= landing.hasher.checksums().size()) return Outcome::kBadInput;
  store_fence();
  const Outcome outcome = core.publish_part(peer.owner, ticket, part, landing.hasher.checksums()[part]);
  if (outcome == Outcome::kOk) landing.parts_published += 1;
  return outcome;
}

void Door::Impl::seal_landed(Connection& peer, std::span<const Ticket> tickets, Nanos elapsed, std::span<Outcome> out) {
  store_fence();
  for (std::size_t i = 0; i < tickets.size(); ++i) {
    const auto found = peer.landings.find(word_of(tickets[i]));
    if (found == peer.landings.end()) {
      out[i] = Outcome::kStale;
      continue;
    }
    Landing& landing = *found->second;
    if (!landing.hasher.complete()) {
      out[i] = Outcome::kBadInput;
      abort_landing(peer, tickets[i]);
      continue;
    }
    core.seal(Tier::kMemory, peer.owner, tickets.subspan(i, 1), landing.hasher.checksums().subspan(landing.parts_published),
              out.subspan(i, 1), MovePath::kPutStreamed, elapsed);
    if (out[i] != Outcome::kOk) core.abort(Tier::kMemory, peer.owner, tickets.subspan(i, 1));
    peer.streamed_bytes -= landing.shard->bytes;
    peer.landings.erase(found);
  }
}

void Door::Impl::abort_landing(Connection& peer, Ticket ticket) {
  const auto found = peer.landings.find(word_of(ticket));
  if (found == peer.landings.end()) return;
  core.abort(Tier::kMemory, peer.owner, std::array{ticket});
  peer.streamed_bytes -= found->second->shard->bytes;
  peer.landings.erase(found);
}

// ---- out

bool Door::Impl::read(Connection& peer, const FrameHeader& header, Reader body) {
  ReadRequest asked;
  if (!body.read(asked) || body.left() != 0) return malformed(peer, header, "read", "wrong length");
  const auto held_ = peer.holds.find(asked.hold);
  if (held_ == peer.holds.end()) {
    refuse(peer, header, Status::kGone, "hold", "released, or its lease is over");
    return true;
  }
  const std::uint64_t end = std::uint64_t{asked.first} + asked.count;
  if (asked.count == 0 || end > held_->second.offsets.size()) {
    refuse(peer, header, Status::kBadInput, "count", "beyond the hold", held_->second.offsets.size());
    return true;
  }
  peer.reads.push_back({header.request, asked.hold, asked.first, static_cast<std::uint32_t>(end), 0});
  return true;
}

void Door::Impl::produce(Connection& peer) {
  while (!peer.reads.empty() && peer.pending() < kPieceBytes) {
    ReadJob& job = peer.reads.front();
    const StreamHold& hold = peer.holds.at(job.hold);
    const std::uint64_t step = std::min<std::uint64_t>(kPieceBytes, hold.block_bytes - job.done);
    const bool last = job.next + 1 == job.end && job.done + step == hold.block_bytes;
    const std::size_t start = peer.out.begin(Verb::kRead, static_cast<std::uint8_t>(kAnswer | (last ? 0 : kMore)), job.request);
    peer.out.append(payload.readable(hold.offsets[job.next] + job.done, step), step);
    peer.out.finish(start);
    job.done += step;
    if (job.done == hold.block_bytes) {
      job.done = 0;
      job.next += 1;
    }
    if (last) peer.reads.pop_front();
  }
}

void Door::Impl::forget_hold(Connection& peer, HoldId id) {
  const auto found = peer.holds.find(id);
  if (found == peer.holds.end()) return;
  peer.streamed_bytes -= found->second.block_bytes * found->second.offsets.size();
  peer.holds.erase(found);
}

void Door::Impl::lapse_streams(Connection& peer, Nanos now) {
  if (peer.landings.empty() && peer.holds.empty()) return;
  std::vector<Ticket> late;
  for (const auto& [word, landing] : peer.landings)
    if (landing->lapses <= now) late.push_back(ticket_of(word));
  for (const Ticket ticket : late) abort_landing(peer, ticket);
  std::vector<HoldId> over;
  for (const auto& [id, hold] : peer.holds) {
    const bool sending = std::any_of(peer.reads.begin(), peer.reads.end(), [id = id](const ReadJob& job) { return job.hold == id; });
    if (hold.lapses <= now && !sending) over.push_back(id);
  }
  for (const HoldId id : over) {
    core.release(Tier::kMemory, peer.owner, id);
    forget_hold(peer, id);
  }
}

}  // namespace kvstore::door
