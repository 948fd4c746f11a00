// Frames between two processes that move bytes over TCP; byte by byte in docs/format/transfer_tcp.md. No I/O here.
//
// Rules
// - Little-endian, one fixed header, parsed here and nowhere else. Both sides may ask: a connection has no client end.
// - A request names one grant by slot, generation and proof, and rows of it. Its bytes are the rows laid end to end; DATA and GIVEN
//   frames carry them in order, each with its position, so that both sides always know where the next byte belongs.
// - Everything is checked before it is used: parse answers what is wrong, and the connection ends.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include "transfer/reason.hpp"

namespace kvstore::tcp {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are little-endian");

using transfer::Reason;

inline constexpr std::uint8_t kVersion = 1;
inline constexpr std::uint32_t kMagic = 0x5054564b;  // "KVTP"

enum class Kind : std::uint8_t {
  kHello = 1,  // first, from both sides
  kRead = 2,   // send me the bytes of these rows
  kWrite = 3,  // bytes for these rows follow in GIVEN frames
  kData = 4,   // `length` bytes of a READ, from `position`: from who was asked
  kDone = 5,   // the last word on a request, from whoever was asked; nothing of it follows
  kStop = 6,   // from the asker: no more of it, say DONE
  kGiven = 7,  // as DATA, of a WRITE: from the asker. A kind of its own, since both sides count their requests from 1
};

inline constexpr std::uint32_t kDataBytesMax = 1u << 20;   // of one DATA or GIVEN frame
inline constexpr std::uint32_t kRowsMax = 131'072;         // of one request
inline constexpr std::size_t kProofBytes = 16;

struct Header {
  std::uint8_t kind = 0;
  std::uint8_t version = kVersion;
  std::uint8_t reason = 0;    // DONE
  std::uint8_t zero = 0;
  std::uint32_t length = 0;   // of what follows: a body, or payload bytes
  std::uint64_t request = 0;  // chosen by the asker
  std::uint64_t position = 0; // READ, WRITE: all bytes of the rows; DATA, GIVEN: where it begins among them
};
static_assert(sizeof(Header) == 24 && std::is_trivially_copyable_v<Header>);

struct Hello {
  std::uint32_t magic = kMagic;
  std::uint32_t requests_max = 0;  // that the sender lets its peer have outstanding on this connection
  std::array<std::uint8_t, 16> incarnation{};  // of the sender's transport
};
static_assert(sizeof(Hello) == 24);

// The grant that a request uses. The proof is the start of the SHA-256 of its descriptor, MAC and all: who was not given that very
// descriptor, with its 128 bits that only the issuer can make, cannot know it.
struct Access {
  std::uint32_t slot = 0, generation = 0;
  std::array<std::uint8_t, kProofBytes> proof{};
};
static_assert(sizeof(Access) == 24);

struct WireRow {
  std::uint64_t offset = 0, length = 0;  // in the grant's region
};
static_assert(sizeof(WireRow) == 16);

// What is wrong with a header from a peer that has said HELLO, or nullptr.
const char* wrong(const Header& header) noexcept;

struct Request {
  Access access;
  std::vector<WireRow> rows;
};
// The body of a READ or WRITE whose rows add up to `bytes`; nothing where they do not.
std::optional<Request> parse_request(std::span<const std::uint8_t> body, std::uint64_t bytes);
// nullptr and `out`, or what is wrong.
const char* parse_hello(const Header& header, std::span<const std::uint8_t> body, Hello& out) noexcept;

// Frames appended to `out`.
void put_hello(std::vector<std::uint8_t>& out, const Hello& hello);
void put_control(std::vector<std::uint8_t>& out, Kind kind, std::uint64_t request, Reason reason);
// The header and access of a request of so many rows; the caller appends the rows.
void put_request(std::vector<std::uint8_t>& out, Kind kind, std::uint64_t request, std::uint64_t bytes, const Access& access,
                 std::size_t rows);
void put_data(std::vector<std::uint8_t>& out, Kind kind, std::uint64_t request, std::uint64_t position, std::uint32_t length);

template <class T>
void append(std::vector<std::uint8_t>& out, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  const auto* p = reinterpret_cast<const std::uint8_t*>(&value);
  out.insert(out.end(), p, p + sizeof value);
}

}  // namespace kvstore::tcp
