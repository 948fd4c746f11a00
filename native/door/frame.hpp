// Frames of the socket between a node's door and its clients; byte by byte in docs/format/frames.md. No I/O here.
//
// Rules
// - Little-endian, fixed offsets, no padding that is not named. Bodies are read through Reader, which never reads past its end.
// - Everything a peer sent is checked before it is used; a parse function answers false and names the field in `bad`.
// - Parsing allocates nothing: keys, tickets and bytes are spans into the frame.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "core/node_core.hpp"

namespace kvstore::door {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are little-endian");

inline constexpr std::uint8_t kFrameVersion = 1;
inline constexpr std::uint32_t kHelloMagic = 0x3153564b;  // "KVS1"

enum class Verb : std::uint8_t {
  kHello = 1,
  kLookup = 2,
  kReserve = 3,
  kPart = 4,
  kSeal = 5,
  kAbort = 6,
  kHold = 7,
  kRelease = 8,
  kFetched = 11,  // 9 and 10 were others once, and are not used again
  kCorrupt = 12,
  kQuiet = 13,   // "nothing of my former session touches the segment any more"
  kCall = 32,    // a rare verb: an opaque body for Python, with a method number
  kError = 127,  // from the node only: what was wrong with your frame; the connection ends after it
};

// How a call went. The first four are FetchStatus. kUnavailable and after never travel.
enum class Status : std::uint8_t {
  kOk = 0,
  kStaleNamespace = 1,  // unknown, cleared, or not yours: all the same answer
  kRejected = 2,        // a limit
  kBadInput = 3,
  kDenied = 4,       // HELLO: the token is not known, or one is needed; later: the verb is for peers that map the segment
  kUnavailable = 6,  // 5 was another once. The node is gone, or the session is closed
  kLate = 7,         // the deadline passed
  kCancelled = 8,
};

enum FrameFlags : std::uint8_t {
  kNoAnswer = 1,  // on requests: do not answer
  kAnswer = 4,    // set on every answer; 2 was another once, and is not used again
};

struct FrameHeader {
  std::uint32_t body_bytes = 0;
  std::uint8_t version = kFrameVersion;
  Verb verb = Verb::kError;
  Status status = Status::kOk;  // answers; 0 in requests
  std::uint8_t flags = 0;
  std::uint64_t request = 0;  // chosen by the client, returned in the answer
};
static_assert(sizeof(FrameHeader) == 16 && std::is_trivially_copyable_v<FrameHeader>);

// ---- reading and writing bodies ----

class Reader {
 public:
  explicit Reader(std::span<const std::uint8_t> body) noexcept : at_(body.data()), left_(body.size()) {}
  template <class T>
    requires std::is_trivially_copyable_v<T>
  bool read(T& out) noexcept {
    if (left_ < sizeof(T)) return false;
    std::memcpy(&out, at_, sizeof(T));
    skip(sizeof(T));
    return true;
  }
  bool bytes(std::uint64_t count, std::span<const std::uint8_t>& out) noexcept {
    if (left_ < count) return false;
    out = {at_, static_cast<std::size_t>(count)};
    skip(static_cast<std::size_t>(count));
    return true;
  }
  // Keys have alignment 1, so that they can be used where they lie.
  bool keys(std::uint64_t count, std::span<const Key>& out) noexcept {
    std::span<const std::uint8_t> raw;
    if (count > left_ / sizeof(Key) || !bytes(count * sizeof(Key), raw)) return false;
    out = {reinterpret_cast<const Key*>(raw.data()), static_cast<std::size_t>(count)};
    return true;
  }
  std::size_t left() const noexcept { return left_; }

 private:
  void skip(std::size_t count) noexcept {
    at_ += count;
    left_ -= count;
  }
  const std::uint8_t* at_;
  std::size_t left_;
};
static_assert(alignof(Key) == 1);

// ---- fixed structures on the wire ----

struct WireHint {  // 32 bytes
  std::uint64_t family = 0;
  std::uint64_t session = 0;
  std::uint32_t turn = 0;
  std::uint32_t expected_return_ms = 0;
  std::int8_t priority = 0;
  std::uint8_t end = 0;
  std::uint16_t zero = 0;
  std::uint32_t position = 0;
};
static_assert(sizeof(WireHint) == 32);

struct WireTicket {  // 8 bytes; as one integer: slot | tenancy << 32
  std::uint32_t slot = kNoSlot;
  std::uint32_t tenancy = 0;
};

struct HelloRequest {  // 16 bytes, then token_bytes of token
  std::uint32_t magic = kHelloMagic;
  std::uint8_t version_min = kFrameVersion;
  std::uint8_t version_max = kFrameVersion;
  std::uint16_t token_bytes = 0;
  std::uint64_t zero = 0;
};
struct HelloAnswer {  // 64 bytes; trusted: the payload segment's descriptor comes with its first byte (SCM_RIGHTS)
  std::uint8_t version = kFrameVersion;
  std::uint8_t trusted = 0;
  std::uint16_t zero = 0;
  std::uint32_t keys_per_call_max = 0;
  std::uint64_t session = 0;
  std::uint64_t incarnation = 0;
  std::uint64_t payload_bytes = 0;
  std::uint64_t window_bytes = 0;
  std::uint32_t frame_bytes_max = 0;
  std::uint32_t lease_ms_max = 0;
  std::uint32_t hold_wait_ms_max = 0;
  std::uint32_t reserve_lapse_ms = 0;
  std::uint32_t holds_per_connection_max = 0;
  std::uint32_t meta_bytes_max = 0;
};
static_assert(sizeof(HelloRequest) == 16 && sizeof(HelloAnswer) == 64);

struct LookupRequest {  // 16, needs * WireNeed, keys
  std::uint32_t ns = kNoNamespace;
  std::uint32_t keys = 0;
  std::uint32_t needs = 0;  // none: all of shard 0
  std::uint32_t zero = 0;
};
struct WireNeed {
  std::uint16_t shard = 0;
  std::uint8_t kind = 0;
  std::uint8_t zero = 0;
  std::uint32_t blocks = 0;
};
struct LookupAnswerHead {  // 8, then one byte a block: its tier
  std::uint32_t blocks = 0;
  std::uint32_t fetch_us = 0;  // estimate
};

enum ReserveFlags : std::uint16_t { kHasParent = 1, kHasMeta = 2 };
struct ReserveRequest {  // 80, keys, [u16 length of each meta, metas]
  std::uint32_t ns = kNoNamespace;
  std::uint16_t shard = 0;
  std::uint16_t flags = 0;
  std::uint32_t keys = 0;
  std::uint32_t zero = 0;
  WireHint hint;
  Key parent;
};
struct WireReserved {  // 24 each
  std::uint8_t status = 0;
  std::uint8_t zero[7] = {};
  WireTicket ticket;
  std::uint64_t offset = 0;  // in the segment
};

struct PartRequest {  // 8, then records
  std::uint32_t records = 0;
  std::uint32_t zero = 0;
};
struct WirePart {  // 24 each; the answer is one Outcome byte each
  WireTicket ticket;
  std::uint32_t part = 0;
  std::uint32_t zero = 0;
  std::uint64_t checksum = 0;
};

struct SealRequest {  // 16, tickets, checksums of all tickets in order
  std::uint32_t tickets = 0;
  std::uint32_t checksums = 0;
  std::uint64_t elapsed_ns = 0;  // since the client asked for the reservation
};

struct TicketsRequest {  // ABORT, CORRUPT: 8, tickets
  std::uint32_t tickets = 0;
  std::uint32_t zero = 0;
};

enum HoldFlags : std::uint8_t { kFollowing = 1 };
struct HoldRequest {  // 56, keys
  std::uint32_t ns = kNoNamespace;
  std::uint16_t shard = 0;
  std::uint8_t kind = 0;
  std::uint8_t flags = 0;
  std::uint32_t keys = 0;
  std::uint32_t wait_ms = 0;
  std::uint32_t lease_ms = 0;  // 0: the node's greatest
  std::uint32_t zero = 0;
  WireHint hint;
};
struct HoldAnswerHead {  // 24, slots * WireHeld, then parts_ready checksums of each
  std::uint64_t hold = 0;
  std::uint32_t lease_ms = 0;
  std::uint32_t slots = 0;
  std::uint8_t window_full = 0;
  std::uint8_t zero[7] = {};
};
struct WireHeld {  // 24 each
  WireTicket ticket;
  std::uint64_t offset = 0;  // in the segment
  std::uint32_t parts_ready = 0;
  std::uint8_t tier = 0;
  std::uint8_t zero[3] = {};
};

struct ReleaseRequest {  // 8, holds
  std::uint32_t holds = 0;
  std::uint32_t zero = 0;
};

struct FetchedRequest {  // 80
  std::uint32_t ns = kNoNamespace;
  std::uint32_t blocks_asked = 0;
  std::uint32_t blocks_by_tier[4] = {};  // by Tier; [0] is not used
  std::uint32_t blocks_failed = 0;       // were held, and did not verify or did not come
  std::uint32_t zero = 0;
  std::uint64_t bytes = 0;
  std::uint64_t elapsed_ns = 0;
  WireHint hint;
};

struct QuietRequest {
  std::uint64_t session = 0;
  std::uint64_t incarnation = 0;
};

struct CallRequest {  // 8, then the message
  std::uint32_t method = 0;
  std::uint32_t zero = 0;
};

struct ErrorHead {  // body of every answer whose status is not kOk: 16, field, reason
  std::uint64_t limit = 0;
  std::uint16_t field_bytes = 0;
  std::uint16_t reason_bytes = 0;
  std::uint32_t zero = 0;
};

static_assert(sizeof(LookupRequest) == 16 && sizeof(WireNeed) == 8 && sizeof(ReserveRequest) == 80 && sizeof(WireReserved) == 24);
static_assert(sizeof(WirePart) == 24 && sizeof(SealRequest) == 16 && sizeof(HoldRequest) == 56 && sizeof(HoldAnswerHead) == 24);
static_assert(sizeof(WireHeld) == 24 && sizeof(FetchedRequest) == 80 && sizeof(ErrorHead) == 16);

// ---- frames being built ----

// Appends frames to one buffer that keeps its storage.
class FrameWriter {
 public:
  std::vector<std::uint8_t> bytes;

  // Returns where the frame starts, for finish().
  std::size_t begin(Verb verb, std::uint8_t flags, std::uint64_t request, Status status = Status::kOk) {
    const FrameHeader header{0, kFrameVersion, verb, status, flags, request};
    const std::size_t start = bytes.size();
    put(header);
    return start;
  }
  template <class T>
    requires std::is_trivially_copyable_v<T>
  void put(const T& value) {
    append(&value, sizeof(T));
  }
  void append(const void* data, std::size_t count) {
    const auto* from = static_cast<const std::uint8_t*>(data);
    bytes.insert(bytes.end(), from, from + count);
  }
  void finish(std::size_t start) {
    const auto body = static_cast<std::uint32_t>(bytes.size() - start - sizeof(FrameHeader));
    std::memcpy(bytes.data() + start, &body, sizeof body);
  }
  void error(Verb verb, std::uint8_t flags, std::uint64_t request, Status status, std::string_view field, std::string_view reason,
             std::uint64_t limit = 0) {
    const std::size_t start = begin(verb, static_cast<std::uint8_t>(flags | kAnswer), request, status);
    put(ErrorHead{limit, static_cast<std::uint16_t>(field.size()), static_cast<std::uint16_t>(reason.size()), 0});
    append(field.data(), field.size());
    append(reason.data(), reason.size());
    finish(start);
  }
};

inline Hint to_hint(const WireHint& wire) noexcept {
  return {wire.family, wire.session, wire.turn, wire.expected_return_ms, wire.priority, wire.end != 0, 0, wire.position};
}
inline WireHint to_wire(const Hint& hint) noexcept {
  return {hint.family, hint.session, hint.turn, hint.expected_return_ms, hint.priority, std::uint8_t{hint.end}, 0, hint.position};
}

}  // namespace kvstore::door
