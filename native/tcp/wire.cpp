#include "wire.hpp"

namespace kvstore::tcp {

namespace {

constexpr std::uint64_t kBytesMax = std::uint64_t{1} << 40;  // of one request: sums below cannot wrap around

bool is_request(Kind kind) noexcept { return kind == Kind::kRead || kind == Kind::kWrite; }

}  // namespace

const char* wrong(const Header& header) noexcept {
  if (header.version != kVersion) return "version";
  if (header.zero != 0) return "zero";
  const auto kind = static_cast<Kind>(header.kind);
  if (kind != Kind::kDone && header.reason != 0) return "reason";
  if (is_request(kind)) {
    if (header.length < sizeof(Access) || header.length > sizeof(Access) + kRowsMax * sizeof(WireRow)) return "length";
    if ((header.length - sizeof(Access)) % sizeof(WireRow) != 0) return "length";
    return header.position > kBytesMax ? "position" : nullptr;
  }
  if (kind == Kind::kData || kind == Kind::kGiven) {
    if (header.length == 0 || header.length > kDataBytesMax) return "length";
    return header.position > kBytesMax ? "position" : nullptr;
  }
  if (kind != Kind::kDone && kind != Kind::kStop) return "kind";
  if (header.length != 0) return "length";
  if (header.position != 0) return "position";
  return header.reason > static_cast<std::uint8_t>(Reason::kNotAllowed) ? "reason" : nullptr;
}

std::optional<Request> parse_request(std::span<const std::uint8_t> body, std::uint64_t bytes) {
  if (body.size() < sizeof(Access) || (body.size() - sizeof(Access)) % sizeof(WireRow) != 0) return std::nullopt;
  Request made;
  std::memcpy(&made.access, body.data(), sizeof made.access);
  made.rows.resize((body.size() - sizeof(Access)) / sizeof(WireRow));
  if (!made.rows.empty()) std::memcpy(made.rows.data(), body.data() + sizeof(Access), made.rows.size() * sizeof(WireRow));
  std::uint64_t sum = 0;
  for (const WireRow& row : made.rows) {
    if (row.length == 0 || row.length > bytes - sum) return std::nullopt;
    sum += row.length;
  }
  if (sum != bytes) return std::nullopt;
  return made;
}

const char* parse_hello(const Header& header, std::span<const std::uint8_t> body, Hello& out) noexcept {
  if (static_cast<Kind>(header.kind) != Kind::kHello) return "kind";
  if (header.length != sizeof(Hello) || body.size() != sizeof(Hello)) return "length";
  std::memcpy(&out, body.data(), sizeof out);
  if (out.magic != kMagic) return "magic";
  if (header.version != kVersion) return "version";
  return out.requests_max == 0 ? "requests_max" : nullptr;
}

void put_hello(std::vector<std::uint8_t>& out, const Hello& hello) {
  Header header;
  header.kind = static_cast<std::uint8_t>(Kind::kHello);
  header.length = sizeof hello;
  append(out, header);
  append(out, hello);
}

void put_control(std::vector<std::uint8_t>& out, Kind kind, std::uint64_t request, Reason reason) {
  Header header;
  header.kind = static_cast<std::uint8_t>(kind);
  header.reason = static_cast<std::uint8_t>(reason);
  header.request = request;
  append(out, header);
}

void put_request(std::vector<std::uint8_t>& out, Kind kind, std::uint64_t request, std::uint64_t bytes, const Access& access,
                 std::size_t rows) {
  Header header;
  header.kind = static_cast<std::uint8_t>(kind);
  header.length = static_cast<std::uint32_t>(sizeof access + rows * sizeof(WireRow));
  header.request = request;
  header.position = bytes;
  append(out, header);
  append(out, access);
}

void put_data(std::vector<std::uint8_t>& out, Kind kind, std::uint64_t request, std::uint64_t position, std::uint32_t length) {
  Header header;
  header.kind = static_cast<std::uint8_t>(kind);
  header.length = length;
  header.request = request;
  header.position = position;
  append(out, header);
}

}  // namespace kvstore::tcp
