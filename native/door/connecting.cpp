#include "connecting.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "answers.hpp"
#include "base/clock.hpp"
#include "channel.hpp"
#include "session_impl.hpp"
#include "tcp/dial.hpp"
#include "tcp/tls.hpp"

namespace kvstore::door {
namespace {

constexpr std::size_t kAnswerBytesMax = 65'536;
constexpr std::uint8_t kTlsRecordFirst = 20, kTlsRecordLast = 23, kTlsMajor = 3;  // first bytes of TLS's records: type, version

[[noreturn]] void fail(const std::string& what) { throw std::system_error(errno, std::generic_category(), what); }

[[noreturn]] void fail(int error, const std::string& what) {
  errno = error;
  fail(what);
}

int connect_to(const std::string& path, Nanos deadline) {
  sockaddr_un address{};
  if (path.size() >= sizeof address.sun_path)
    throw std::invalid_argument("path: 1 to " + std::to_string(sizeof address.sun_path - 1) + " bytes");
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  Descriptor socket_{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (socket_.fd < 0) fail("socket");
  // A Unix socket connects at once or says that the backlog is full.
  while (::connect(socket_.fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    if (errno != EAGAIN && errno != EINTR) fail("connect to " + path);
    if (monotonic_now() >= deadline) fail("connect to " + path);
    usleep(1'000);
  }
  return socket_.release();
}

// ---- TLS

// What a peer that speaks no TLS says in clear text, if it is one of our error frames. From nobody knows whom: only for people.
std::string said_in_clear(int fd) {
  std::array<std::uint8_t, 1'024> bytes;
  FrameHeader header;
  const ssize_t got = recv(fd, bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (got < static_cast<ssize_t>(sizeof header)) return {};
  std::memcpy(&header, bytes.data(), sizeof header);
  const auto rest = static_cast<std::size_t>(got) - sizeof header;
  std::string field, reason;
  std::uint64_t limit = 0;
  if (header.verb != Verb::kError || header.body_bytes > rest) return {};
  if (!parse_error({bytes.data() + sizeof header, header.body_bytes}, field, reason, limit)) return {};
  return "; it says: " + field + ": " + reason;
}

// Whether what has come begins as TLS does. Nothing of it is taken.
bool is_tls(int fd) {
  std::array<std::uint8_t, 2> first{0, kTlsMajor};
  const ssize_t got = recv(fd, first.data(), first.size(), MSG_PEEK | MSG_DONTWAIT);
  if (got <= 0) throw Refused(Status::kUnavailable, "TLS: the peer closed during the handshake; does it speak TLS?");
  return first[0] >= kTlsRecordFirst && first[0] <= kTlsRecordLast && first[1] == kTlsMajor;
}

[[noreturn]] void not_tls(int fd) { throw Refused(Status::kUnavailable, "TLS: the peer does not speak it" + said_in_clear(fd)); }

// Begins the handshake, and looks whether the other side takes part in it. `first_words`: what is left of them; where it is quick they
// go with the handshake's end.
std::unique_ptr<Wire> seal(const SessionConfig& config, Descriptor socket_, std::span<const std::uint8_t>& first_words, Nanos deadline) {
  const int fd = socket_.fd;
  pollfd one{fd, POLLIN, 0};
  if (poll(&one, 1, 0) > 0 && !is_tls(fd)) not_tls(fd);  // who speaks first, to refuse us, does it in clear text
  std::unique_ptr<tcp::Stream> stream = tcp::tls_client(config.tls, socket_.release(), config.host);
  const iovec piece{const_cast<std::uint8_t*>(first_words.data()), first_words.size()};
  const std::int64_t written = stream->write({&piece, 1});
  if (written < 0 && written != -EAGAIN) {  // it was quick to answer, and OpenSSL has read it
    const std::string why = stream->trouble();
    throw Refused(Status::kUnavailable, why.find("certificate") == std::string::npos ? why + "; does the peer speak TLS?" : why);
  }
  if (written >= 0) {
    first_words = first_words.subspan(static_cast<std::size_t>(written));
    return std::make_unique<Wire>(std::move(stream));
  }
  while (poll(&one, 1, 50) <= 0)
    if (monotonic_now() >= deadline) fail(ETIMEDOUT, "waiting for the node's TLS handshake");
  if (!is_tls(fd)) not_tls(fd);
  return std::make_unique<Wire>(std::move(stream));
}

std::unique_ptr<Wire> reach(const SessionConfig& config, std::span<const std::uint8_t>& first_words, Nanos deadline) {
  Descriptor socket_{config.host.empty() ? connect_to(config.path, deadline) : tcp::dial(config.host, config.port, deadline)};
  if (!config.host.empty()) tcp::tune(socket_.fd);
  if (config.tls) return seal(config, std::move(socket_), first_words, deadline);
  fcntl(socket_.fd, F_SETFL, fcntl(socket_.fd, F_GETFL) & ~O_NONBLOCK);
  return std::make_unique<Wire>(socket_.release());
}

// ---- HELLO

// As recv() that does not wait; takes the descriptor that may come along.
ssize_t receive_message(int fd, std::span<std::uint8_t> into, Descriptor& passed) {
  iovec piece{into.data(), into.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (got <= 0) return got;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    int descriptor = -1;
    std::memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
    passed = Descriptor{descriptor};
  }
  return got;
}

// Receives exactly the wanted bytes, and a descriptor if one comes with them.
void receive(Wire& wire, std::span<std::uint8_t> into, Nanos deadline, Descriptor& passed) {
  while (!into.empty()) {
    const Nanos left = deadline - monotonic_now();
    if (left <= 0) fail(ETIMEDOUT, "waiting for the node's HELLO");
    if (!wire.readable(std::min(left, Wire::kSlice))) continue;
    const ssize_t got = wire.sealed() ? wire.receive(into.data(), into.size(), false) : receive_message(wire.fd(), into, passed);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (got <= 0 && !wire.trouble().empty()) throw Refused(Status::kUnavailable, wire.trouble());
    if (got == 0) errno = ECONNRESET;
    if (got <= 0) fail("the node hung up");
    into = into.subspan(static_cast<std::size_t>(got));
  }
}

// A node that has no room, or that does not believe our certificate, says so without listening: its reason is there to be read
// although nothing can be sent.
void send_all(Wire& wire, std::span<const std::uint8_t> bytes, Nanos deadline) {
  while (!bytes.empty()) {
    iovec piece{const_cast<std::uint8_t*>(bytes.data()), bytes.size()};
    const ssize_t sent = wire.send({&piece, 1});
    if (sent >= 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(sent));
      continue;
    }
    const int error = errno;
    if (error == EPIPE || error == ECONNRESET || error == EIO) return;
    if (error != EAGAIN && error != EINTR) fail(error, "sending HELLO");
    if (monotonic_now() >= deadline) fail(ETIMEDOUT, "sending HELLO");
  }
}

std::vector<std::uint8_t> hello_of(const SessionConfig& config) {
  FrameWriter request;
  const std::size_t start = request.begin(Verb::kHello, 0, 1);
  HelloRequest said;
  said.token_bytes = static_cast<std::uint16_t>(config.token.size());
  request.put(said);
  request.append(config.token.data(), config.token.size());
  request.finish(start);
  return std::move(request.bytes);
}

SessionInfo info_of(const Answer& answer) {
  if (answer.header.status != Status::kOk) {
    Result error;
    take_error(answer, error);
    throw Refused(error.status, error.field + ": " + error.reason);
  }
  HelloAnswer said;
  if (answer.header.verb != Verb::kHello || !Reader(answer.body).read(said) || said.version != kFrameVersion)
    throw std::invalid_argument("hello: the node speaks another version");
  return {said.trusted != 0, said.session, said.incarnation, said.payload_bytes, said.window_bytes,
          said.keys_per_call_max, said.frame_bytes_max, said.lease_ms_max, said.hold_wait_ms_max,
          said.reserve_lapse_ms, said.holds_per_connection_max, said.meta_bytes_max};
}

}  // namespace

Welcome say_hello(const SessionConfig& config, Nanos deadline) {
  if (config.path.empty() == config.host.empty()) throw std::invalid_argument("path or host: one of them");
  if (!config.host.empty() && config.port == 0) throw std::invalid_argument("port: 1 to 65535");
  if (config.host.empty() && config.tls) throw std::invalid_argument("tls: is for TCP; a Unix socket has its file's mode");
  const std::vector<std::uint8_t> request = hello_of(config);
  std::span<const std::uint8_t> unsent(request);
  Welcome welcome;
  welcome.wire = reach(config, unsent, deadline);
  send_all(*welcome.wire, unsent, deadline);
  Answer answer;
  receive(*welcome.wire, {reinterpret_cast<std::uint8_t*>(&answer.header), sizeof answer.header}, deadline, welcome.segment);
  if (answer.header.body_bytes > kAnswerBytesMax) throw std::invalid_argument("hello: the answer is too large");
  answer.body.resize(answer.header.body_bytes);
  receive(*welcome.wire, answer.body, deadline, welcome.segment);
  welcome.info = info_of(answer);
  return welcome;
}

}  // namespace kvstore::door
