// One window of a put: into the mapped segment, hashed as it is copied.
#include <numeric>

#include "base/clock.hpp"
#include "operation.hpp"

namespace kvstore::door {
namespace {

constexpr std::size_t kSealBytes = 4u << 20;  // of checksums in one frame

std::uint64_t sum_of(const std::vector<std::uint32_t>& parts) {
  return std::accumulate(parts.begin(), parts.end(), std::uint64_t{0});
}

}  // namespace

PutOperation::PutOperation(ReserveArguments arguments, Parts parts, const Scattered& from)
    : arguments_(std::move(arguments)), parts_(std::move(parts)), block_bytes_(sum_of(*parts_)),
      from_(from, arguments_.keys.size(), block_bytes_) {}

Operation::Next PutOperation::advance(Link& link, const Answer* answer, FrameWriter& request) {
  if (answer == nullptr) {
    if (link.segment == nullptr) return unmapped("put");
    asked_ = monotonic_now();
    write_reserve(arguments_, request);
    return Next::kAsk;
  }
  return answer->header.verb == Verb::kReserve ? place(link, answer->body, request) : sealed(link, answer->body, request);
}

void PutOperation::refused(Link& link) {
  write_abort(std::span(tickets_).subspan(seal_from_), link.channel);
}

Operation::Next PutOperation::place(Link& link, std::span<const std::uint8_t> body, FrameWriter& request) {
  std::vector<WireReserved> rows;
  if (!parse_reserved(body, rows) || rows.size() != arguments_.keys.size()) return broken("reserve");
  result.outcomes.resize(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    result.outcomes[i] = rows[i].status;
    if (rows[i].status != static_cast<std::uint8_t>(ReserveStatus::kGranted)) continue;
    tickets_.push_back(rows[i].ticket);
    indices_.push_back(i);
  }
  checksums_.reserve(tickets_.size() * parts_->size());
  for (const std::size_t index : indices_) {
    if (!cancelled && copy_block(link, index, rows[index])) continue;
    store_fence();
    write_abort(tickets_, link.channel);
    return cancelled ? fail(Status::kCancelled, "", "") : broken("reserve");
  }
  store_fence();
  return next_seal(link, request);
}

bool PutOperation::copy_block(Link& link, std::size_t index, const WireReserved& row) {
  const Piece slot{link.segment->writable(row.offset, block_bytes_), block_bytes_};
  if (slot.data == nullptr) return false;
  PieceCursor from(from_.of(index));
  PieceCursor to({&slot, 1});
  for (const std::uint32_t bytes : *parts_) checksums_.push_back(copy_part(from, to, bytes));
  return true;
}

Operation::Next PutOperation::next_seal(Link& link, FrameWriter& request) {
  seal_from_ = seal_to_;
  if (seal_from_ == tickets_.size()) return Next::kDone;
  const std::size_t parts = parts_->size();
  const std::size_t most = std::max<std::size_t>(1, std::min<std::size_t>(kSealBytes, link.info.frame_bytes_max / 2) / (8 * (parts + 1)));
  seal_to_ = std::min(tickets_.size(), seal_from_ + most);
  const std::size_t count = seal_to_ - seal_from_;
  SealRequest asked;
  asked.tickets = static_cast<std::uint32_t>(count);
  asked.checksums = static_cast<std::uint32_t>(count * parts);
  asked.elapsed_ns = static_cast<std::uint64_t>(monotonic_now() - asked_);
  const std::size_t start = request.begin(Verb::kSeal, 0, 0);
  request.put(asked);
  request.append(tickets_.data() + seal_from_, count * sizeof(WireTicket));
  request.append(checksums_.data() + seal_from_ * parts, count * parts * sizeof(std::uint64_t));
  request.finish(start);
  return Next::kAsk;
}

Operation::Next PutOperation::sealed(Link& link, std::span<const std::uint8_t> body, FrameWriter& request) {
  if (body.size() != seal_to_ - seal_from_) return broken("seal");
  for (std::size_t i = 0; i < body.size(); ++i) {
    std::uint8_t& outcome = result.outcomes[indices_[seal_from_ + i]];
    if (body[i] == static_cast<std::uint8_t>(Outcome::kOk)) {
      outcome = static_cast<std::uint8_t>(PutOutcome::kStored);
      result.blocks += 1;
      result.bytes += block_bytes_;
    } else {
      outcome = static_cast<std::uint8_t>(PutOutcome::kLapsed);
      write_abort(std::span(tickets_).subspan(seal_from_ + i, 1), link.channel);  // nothing of it lands any more
    }
  }
  return next_seal(link, request);
}

}  // namespace kvstore::door
