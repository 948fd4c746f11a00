// One window of a get, and views. What is copied is hashed in the same pass and compared with what was sealed.
#include <numeric>

#include "base/checksum.hpp"
#include "operation.hpp"
#include "part_hasher.hpp"

namespace kvstore::door {
namespace {

std::uint64_t sum_of(const std::vector<std::uint32_t>& parts) {
  return std::accumulate(parts.begin(), parts.end(), std::uint64_t{0});
}

}  // namespace

// Where the stream of a session that is not trusted has come to.
struct FetchOperation::Stream {
  explicit Stream(Parts parts) : shard(std::move(parts)) {}
  Parts shard;
  std::size_t block = 0;
  std::unique_ptr<PartHasher> hasher;  // of the current block
  std::unique_ptr<PieceCursor> to;
  bool stopped = false;  // the rest is passed over
};

FetchOperation::FetchOperation(HoldArguments arguments, Parts parts, const Scattered& into)
    : arguments_(std::move(arguments)), parts_(std::move(parts)), block_bytes_(sum_of(*parts_)),
      into_(into, arguments_.keys.size(), block_bytes_) {}

Operation::Next FetchOperation::advance(Link& link, const Answer* answer, FrameWriter& request) {
  if (answer == nullptr) {
    write_hold(arguments_, request);
    return Next::kAsk;
  }
  if (answer->header.verb == Verb::kRead) return streamed(link, *answer);
  if (!parse_hold(answer->body, held_) || held_.slots.size() > arguments_.keys.size()) return broken("hold");
  return held(link, request);
}

void FetchOperation::refused(Link& link) {
  give_back(link);
  if (result.status != Status::kGone) return;
  // The lease was over before all was sent: what has come and verified is the run.
  result.status = Status::kOk;
  result.field.clear();
  result.reason.clear();
  result.window_full = false;
  finish(link);
}

Operation::Next FetchOperation::held(Link& link, FrameWriter& request) {
  result.window_full = held_.head.window_full != 0;
  while (whole_ < held_.slots.size() && held_.slots[whole_].parts_ready == parts_->size()) ++whole_;
  if (whole_ == 0) return finish(link);
  if (link.segment == nullptr) {
    stream_ = std::make_shared<Stream>(parts_);
    const std::size_t start = request.begin(Verb::kRead, 0, 0);
    request.put(ReadRequest{held_.head.hold, 0, static_cast<std::uint32_t>(whole_)});
    request.finish(start);
    return Next::kAsk;
  }
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
  const Piece slot{const_cast<std::byte*>(link.segment->readable(held_.slots[index].offset, block_bytes_)), block_bytes_};
  PieceCursor from({&slot, 1});
  PieceCursor to(into_.of(index));
  if (!link.verify) {
    copy_pieces(from, to, block_bytes_);
    return true;
  }
  bool good = true;
  for (std::size_t part = 0; part < parts_->size(); ++part)
    good = copy_part(from, to, (*parts_)[part]) == checksums[part] && good;
  return good;
}

Operation::Next FetchOperation::streamed(Link& link, const Answer& answer) {
  const bool last = (answer.header.flags & kMore) == 0;
  if (cancelled) stream_->stopped = true;
  std::span<const std::uint8_t> bytes(answer.body);
  while (!bytes.empty() && !stream_->stopped) {
    if (stream_->block == whole_) return broken("read");
    if (!stream_->hasher) {
      stream_->hasher = std::make_unique<PartHasher>(*parts_);
      stream_->to = std::make_unique<PieceCursor>(into_.of(stream_->block));
    }
    const auto step = static_cast<std::size_t>(std::min<std::uint64_t>(bytes.size(), block_bytes_ - stream_->hasher->progress()));
    const Piece piece{const_cast<std::byte*>(reinterpret_cast<const std::byte*>(bytes.data())), step};
    PieceCursor from({&piece, 1});
    stream_->hasher->feed(bytes.data(), step);
    copy_pieces(from, *stream_->to, step);
    bytes = bytes.subspan(step);
    if (!stream_->hasher->complete()) continue;
    const std::span<const std::uint64_t> got = stream_->hasher->checksums();
    if (link.verify && !std::equal(got.begin(), got.end(), held_.checksums.begin() + static_cast<std::ptrdiff_t>(stream_->block * parts_->size()))) {
      corrupt(link, stream_->block);
      stream_->stopped = true;
      break;
    }
    result.blocks += 1;
    stream_->block += 1;
    stream_->hasher.reset();
  }
  if (!last) return Next::kMore;
  store_fence();
  return finish(link);
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
  result.bytes = block_bytes_ * result.blocks;
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
    if (link.segment == nullptr) return fail(Status::kRejected, "view", "needs the segment, which only trusted peers map");
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

}  // namespace kvstore::door
