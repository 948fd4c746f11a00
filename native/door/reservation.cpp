#include "reservation.hpp"

#include <numeric>

#include "base/checksum.hpp"
#include "base/clock.hpp"

namespace kvstore::door {
namespace {

// One frame and its answer.
class Ask final : public Operation {
 public:
  explicit Ask(std::function<void(FrameWriter&)> write) : write_(std::move(write)) {}

 private:
  Next advance(Link&, const Answer* answer, FrameWriter& request) override {
    if (answer == nullptr) {
      write_(request);
      return Next::kAsk;
    }
    result.outcomes = answer->body;
    return Next::kDone;
  }

  std::function<void(FrameWriter&)> write_;
};

// Counts as a call of the session, so that close() waits.
class Inside {
 public:
  explicit Inside(Session& session) : session_(session), entered_(session.enter()) {}
  ~Inside() {
    if (entered_) session_.leave();
  }
  explicit operator bool() const noexcept { return entered_ && !session_.closed(); }

 private:
  Session& session_;
  bool entered_;
};

}  // namespace

Reservation::Reservation(std::shared_ptr<Session> session, ReserveArguments arguments, Nanos deadline)
    : session_(std::move(session)), parts_(session_->parts_of(arguments.ns, arguments.shard)), began_(monotonic_now()) {
  for (const std::uint32_t bytes : *parts_) {
    part_offsets_.push_back(block_bytes_);
    block_bytes_ += bytes;
  }
  const std::shared_ptr<MappedSegment> segment = session_->segment();
  ended_ = true;  // unless the node grants
  if (!segment) {
    asked_ = refuse(Status::kRejected, "reserve", "needs the segment, which only trusted peers map");
    return;
  }
  const std::size_t keys = arguments.keys.size();
  Ask ask([&](FrameWriter& request) { write_reserve(arguments, request); });
  asked_ = session_->run(ask, deadline);
  std::vector<WireReserved> rows;
  if (asked_.status != Status::kOk) return;
  if (!parse_reserved(asked_.outcomes, rows) || rows.size() != keys) {
    asked_.status = Status::kUnavailable;
    asked_.reason = "the node's answer does not parse";
    return;
  }
  asked_.outcomes.clear();
  for (std::uint32_t i = 0; i < rows.size(); ++i) {
    asked_.outcomes.push_back(rows[i].status);
    asked_.offsets.push_back(rows[i].offset);
    asked_.tickets.push_back(rows[i].ticket.slot | std::uint64_t{rows[i].ticket.tenancy} << 32);
    if (rows[i].status != static_cast<std::uint8_t>(ReserveStatus::kGranted)) continue;
    if (!segment->contains(rows[i].offset, block_bytes_)) continue;
    granted_.push_back(i);
    tickets_.push_back(rows[i].ticket);
    offsets_.push_back(rows[i].offset);
  }
  ended_ = false;
  checksums_.resize(tickets_.size() * parts_->size());
  written_.resize(parts_->size());
}

Reservation::~Reservation() { abort(); }

Result Reservation::refuse(Status status, const char* field, const char* reason) const {
  Result result;
  result.status = status;
  result.field = field;
  result.reason = reason;
  return result;
}

std::uint64_t Reservation::offset_of(std::uint32_t index) const {
  std::lock_guard lock(mutex_);
  const auto found = std::lower_bound(granted_.begin(), granted_.end(), index);
  if (ended_ || found == granted_.end() || *found != index) throw std::invalid_argument("index: not granted, or the reservation has ended");
  return offsets_[static_cast<std::size_t>(found - granted_.begin())];
}

Result Reservation::write(std::uint32_t part, const Scattered& from) {
  std::lock_guard lock(mutex_);
  if (part >= parts_->size()) throw std::invalid_argument("part: the shard has no such part");
  const BlockPieces pieces(from, tickets_.size(), (*parts_)[part]);
  if (ended_) return refuse(Status::kBadInput, "reservation", "has ended");
  if (part < published_) return refuse(Status::kBadInput, "part", "is published, and so immutable");
  const Inside inside(*session_);
  if (!inside) return refuse(Status::kUnavailable, "session", "the node is gone, or the session is closed");
  const std::shared_ptr<MappedSegment> segment = session_->segment();
  for (std::size_t slot = 0; slot < tickets_.size(); ++slot) {
    const Piece target{segment->writable(offsets_[slot] + part_offsets_[part], (*parts_)[part]), (*parts_)[part]};
    PieceCursor source(pieces.of(slot));
    PieceCursor to({&target, 1});
    checksums_[slot * parts_->size() + part] = copy_part(source, to, (*parts_)[part]);
  }
  store_fence();
  written_[part] = true;
  Result result;
  result.blocks = static_cast<std::uint32_t>(tickets_.size());
  result.bytes = std::uint64_t{(*parts_)[part]} * tickets_.size();
  return result;
}

std::uint64_t Reservation::checksum(std::size_t slot, std::uint32_t part) const {
  if (written_[part]) return checksums_[slot * parts_->size() + part];
  return part_checksum(session_->segment()->readable(offsets_[slot] + part_offsets_[part], (*parts_)[part]), (*parts_)[part]);
}

Result Reservation::publish(std::uint32_t part, Nanos deadline) {
  std::lock_guard lock(mutex_);
  if (ended_) return refuse(Status::kBadInput, "reservation", "has ended");
  if (part != published_ || part >= parts_->size()) return refuse(Status::kBadInput, "part", "parts are published in order");
  const Inside inside(*session_);
  if (!inside) return refuse(Status::kUnavailable, "session", "the node is gone, or the session is closed");
  Ask ask([&](FrameWriter& request) {
    const std::size_t start = request.begin(Verb::kPart, 0, 0);
    request.put(PartRequest{static_cast<std::uint32_t>(tickets_.size()), 0});
    for (std::size_t slot = 0; slot < tickets_.size(); ++slot)
      request.put(WirePart{tickets_[slot], part, 0, checksum(slot, part)});
    request.finish(start);
  });
  Result result = session_->run(ask, deadline);
  if (result.status == Status::kOk) published_ += 1;
  return result;
}

Result Reservation::seal(Nanos deadline) {
  std::lock_guard lock(mutex_);
  if (ended_) return refuse(Status::kBadInput, "reservation", "has ended");
  const Inside inside(*session_);
  if (!inside) return refuse(Status::kUnavailable, "session", "the node is gone, or the session is closed");
  ended_ = true;
  const auto left = static_cast<std::uint32_t>(parts_->size() - published_);
  Ask ask([&](FrameWriter& request) {
    const std::size_t start = request.begin(Verb::kSeal, 0, 0);
    request.put(SealRequest{static_cast<std::uint32_t>(tickets_.size()), static_cast<std::uint32_t>(tickets_.size() * left),
                            static_cast<std::uint64_t>(monotonic_now() - began_)});
    request.append(tickets_.data(), tickets_.size() * sizeof(WireTicket));
    for (std::size_t slot = 0; slot < tickets_.size(); ++slot)
      for (std::uint32_t i = 0; i < left; ++i) request.put(checksum(slot, published_ + i));
    request.finish(start);
  });
  Result result = session_->run(ask, deadline);
  if (result.status != Status::kOk || result.outcomes.size() != tickets_.size()) {
    write_abort(tickets_, *session_->channel());
    return result;
  }
  std::vector<WireTicket> stale;
  for (std::size_t slot = 0; slot < tickets_.size(); ++slot) {
    if (result.outcomes[slot] != static_cast<std::uint8_t>(Outcome::kOk)) stale.push_back(tickets_[slot]);
    else result.blocks += 1;
  }
  write_abort(stale, *session_->channel());
  result.bytes = block_bytes_ * result.blocks;
  return result;
}

void Reservation::abort() {
  std::lock_guard lock(mutex_);
  if (ended_) return;
  ended_ = true;
  write_abort(tickets_, *session_->channel());
  session_->flush(monotonic_now() + Channel::kSlice);
}

}  // namespace kvstore::door
