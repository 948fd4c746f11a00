// What a client does, as steps between frames. No socket, no thread, no clock but the argument: the same operations are driven by
// the calling thread (Session::run) and by the session's own threads (Session::submit).
//
// Rules
// - step(null) begins; step(answer) goes on. kAsk: `request` holds one frame to be answered; kDone: `result` is final. An answer of
//   another verb than the one asked ends the operation.
// - Puts, gets and views work on the mapped segment: without one they are refused here. Whoever maps nothing moves bytes by transfers.
// - A step may copy, and then touches the caller's memory; between steps nothing does.
// - An answer whose status is not kOk never reaches step(): the driver puts it into `result` and calls refused().
// - `cancelled` is looked at between blocks.
#pragma once
#include <atomic>
#include <memory>
#include <optional>

#include "answers.hpp"
#include "base/copy.hpp"
#include "channel.hpp"
#include "session.hpp"
#include "transfer/mapped_segment.hpp"

namespace kvstore::door {

// What an operation may use of its session.
struct Link {
  Channel& channel;
  const SessionInfo& info;
  MappedSegment* segment;  // null unless trusted
  bool verify;
  Nanos deadline;
};

class Operation {
 public:
  enum class Next { kAsk, kDone };
  virtual ~Operation() = default;
  Next step(Link& link, const Answer* answer, FrameWriter& request);
  // The node refused, is gone, is late, or the caller has given up: undo what an earlier step has got.
  virtual void refused(Link&) {}
  // Its steps take next to no time, may be begun twice, and leave nothing to be sent: worth no other thread's waking.
  virtual bool small() const noexcept { return false; }

  Result result;
  std::atomic<bool> cancelled{false};

 protected:
  Next fail(Status status, std::string field, std::string reason) {
    result.status = status;
    result.field = std::move(field);
    result.reason = std::move(reason);
    return Next::kDone;
  }
  Next unmapped(const char* verb) { return fail(Status::kRejected, verb, "needs the segment, which only trusted peers map"); }
  Next broken(const char* verb) { return fail(Status::kUnavailable, verb, "the node's answer does not parse"); }

 private:
  virtual Next advance(Link& link, const Answer* answer, FrameWriter& request) = 0;
  Verb asked_verb_ = Verb::kError;
};

// The shard's parts, as told by Session::describe; shared, because an operation may outlive a new description.
using Parts = std::shared_ptr<const std::vector<std::uint32_t>>;

// Blocks in the caller's memory: k pieces each.
class BlockPieces {
 public:
  BlockPieces() = default;
  // Throws std::invalid_argument naming what does not fit: counts, or lengths that do not add up to block_bytes.
  BlockPieces(const Scattered& where, std::size_t blocks, std::uint64_t block_bytes);
  std::span<const Piece> of(std::size_t block) const noexcept { return {pieces_.data() + block * each_, each_}; }

 private:
  std::vector<Piece> pieces_;
  std::size_t each_ = 0;
};

class LookupOperation final : public Operation {
 public:
  LookupOperation(NsId ns, std::span<const Key> keys, std::span<const Need> needs);

 private:
  Next advance(Link& link, const Answer* answer, FrameWriter& request) override;
  std::vector<std::uint8_t> body_;
};

class CallOperation final : public Operation {
 public:
  CallOperation(std::uint32_t method, std::span<const std::uint8_t> body);
  bool small() const noexcept override { return body_.size() <= kSmallBytes; }

 private:
  static constexpr std::size_t kSmallBytes = 64u << 10;
  Next advance(Link& link, const Answer* answer, FrameWriter& request) override;
  std::uint32_t method_;
  std::vector<std::uint8_t> body_;
};

struct ReserveArguments {
  NsId ns = kNoNamespace;
  std::uint16_t shard = 0;
  std::vector<Key> keys;
  std::vector<std::uint8_t> parent;              // empty: none
  std::vector<std::vector<std::uint8_t>> metas;  // empty: none
  Hint hint;
};
void write_reserve(const ReserveArguments& arguments, FrameWriter& request);
void write_abort(std::span<const WireTicket> tickets, Channel& channel);

// One window of a put: RESERVE, copy, SEAL.
class PutOperation final : public Operation {
 public:
  PutOperation(ReserveArguments arguments, Parts parts, const Scattered& from);
  void refused(Link& link) override;

 private:
  Next advance(Link& link, const Answer* answer, FrameWriter& request) override;
  Next place(Link& link, std::span<const std::uint8_t> body, FrameWriter& request);
  bool copy_block(Link& link, std::size_t index, const WireReserved& row);
  Next next_seal(Link& link, FrameWriter& request);
  Next sealed(Link& link, std::span<const std::uint8_t> body, FrameWriter& request);

  ReserveArguments arguments_;
  Parts parts_;
  std::uint64_t block_bytes_;
  BlockPieces from_;
  Nanos asked_ = 0;
  std::vector<WireTicket> tickets_;         // granted
  std::vector<std::size_t> indices_;        // of keys, as tickets_
  std::vector<std::uint64_t> checksums_;    // parts of tickets_, in order
  std::size_t seal_from_ = 0, seal_to_ = 0;  // of tickets_, asked for last
};

struct HoldArguments {
  NsId ns = kNoNamespace;
  std::uint16_t shard = 0;
  std::vector<Key> keys;
  HoldKind kind = HoldKind::kLease;
  bool following = false;
  Hint hint;
  std::uint32_t wait_ms = 0;
  std::uint32_t lease_ms = 0;
};

// Parts first..end of every block.
struct PartRange {
  std::uint32_t first = 0, end = 0;
};
// Throws std::invalid_argument naming `parts`. No end: the last one.
PartRange part_range(const std::vector<std::uint32_t>& parts, std::uint32_t first, std::optional<std::uint32_t> end);

// One window of a get: HOLD, copy and compare, RELEASE.
class FetchOperation final : public Operation {
 public:
  FetchOperation(HoldArguments arguments, Parts parts, const Scattered& into, PartRange range);
  FetchOperation(HoldArguments arguments, Parts parts, const Scattered& into)  // of whole blocks
      : FetchOperation(std::move(arguments), parts, into, PartRange{0, static_cast<std::uint32_t>(parts->size())}) {}
  void refused(Link& link) override;

 private:
  Next advance(Link& link, const Answer* answer, FrameWriter& request) override;
  Next held(Link& link);
  bool copy_block(Link& link, std::size_t index, const std::uint64_t* checksums);
  Next finish(Link& link);
  void give_back(Link& link);
  void corrupt(Link& link, std::size_t index);

  HoldArguments arguments_;
  Parts parts_;
  PartRange range_;
  std::uint64_t block_bytes_;
  std::uint64_t skipped_;  // bytes of a block before the range
  std::uint64_t bytes_;    // of the range
  BlockPieces into_;
  HoldAnswer held_;
  std::size_t whole_ = 0;  // slots of which every part is up
};

// HOLD as a view: verified where it lies, and not copied.
class ViewOperation final : public Operation {
 public:
  ViewOperation(HoldArguments arguments, Parts parts);

 private:
  Next advance(Link& link, const Answer* answer, FrameWriter& request) override;
  HoldArguments arguments_;
  Parts parts_;
  std::uint64_t block_bytes_;
};

// HOLD as a view, of which nothing is looked at: neither verified nor copied.
class HoldOperation final : public Operation {
 public:
  explicit HoldOperation(HoldArguments arguments);

 private:
  Next advance(Link& link, const Answer* answer, FrameWriter& request) override;
  HoldArguments arguments_;
};

void write_hold(const HoldArguments& arguments, FrameWriter& request);
void write_release(HoldId hold, Channel& channel);

}  // namespace kvstore::door
