// HELLO: who a peer is, what it may use, and the segment for those who are trusted. Rules: server.hpp.
#include <sys/socket.h>

#include "base/sha256.hpp"
#include "core/process.hpp"
#include "server_impl.hpp"

namespace kvstore::door {
namespace {

constexpr Nanos kMilli = 1'000'000;

// Sends the first answer of a connection together with the segment's descriptor.
bool send_with_descriptor(int fd, std::span<const std::uint8_t> bytes, int descriptor) {
  iovec piece{const_cast<std::uint8_t*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
  return sendmsg(fd, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
}

}  // namespace

const TokenDigest* Door::Impl::token_of(std::span<const std::uint8_t> token) const {
  const Digest digest = sha256(token.data(), token.size());
  const TokenDigest* match = nullptr;
  for (const TokenDigest& known : tokens) {  // all of them and all bytes: how long it takes tells nothing
    std::uint8_t differs = 0;
    for (std::size_t i = 0; i < digest.size(); ++i) differs = static_cast<std::uint8_t>(differs | (digest[i] ^ known.sha256[i]));
    if (differs == 0) match = &known;
  }
  return match;
}

std::int64_t Door::Impl::number_of(const std::vector<std::string>& names) const {
  for (const std::string& name : names)
    if (const auto found = certificates.find(name); found != certificates.end()) return found->second;
  return -1;
}

// A trusted peer is that by its user id: its token gave it nothing, and takes nothing away.
void Door::Impl::end_withdrawn() {
  std::vector<Connection*> ended;
  {
    std::lock_guard lock(shared);
    std::unordered_set<std::int64_t> numbers;
    for (const TokenDigest& known : tokens) numbers.insert(known.token);
    for (const auto& [name, number] : certificates) numbers.insert(number);
    for (auto& [owner, peer] : peers)
      if (peer->state == Connection::State::kOpen && !peer->trusted && peer->token >= 0 && !numbers.contains(peer->token))
        ended.push_back(peer.get());
  }
  for (Connection* peer : ended) close_peer(*peer);
  tally.cut_token += ended.size();
}

// By what it shows: a token decides where there is one; then, by TCP, a certificate. Else who it is: by TCP nobody, here its user.
bool Door::Impl::may_come_in(Connection& peer, std::span<const std::uint8_t> token, std::string_view& field, std::string_view& reason) {
  const std::vector<std::string> names = peer.remote ? peer.stream->peer_names() : std::vector<std::string>{};
  if (!names.empty()) peer.names = std::make_shared<const std::vector<std::string>>(names);
  field = "token";
  if (!token.empty()) {
    std::lock_guard lock(shared);
    const TokenDigest* known = token_of(token);
    reason = "not known here";
    if (known != nullptr) peer.token = known->token;
    return known != nullptr;
  }
  if (!names.empty()) {
    std::lock_guard lock(shared);
    peer.token = number_of(names);
    if (peer.token >= 0 || config.certified_over_tcp) return true;
    field = "certificate";
    reason = "not known here";
    return false;
  }
  reason = "needed here";
  if (peer.remote) return config.anonymous_over_tcp;
  return trusts(peer.uid) || std::find(config.allowed_uids.begin(), config.allowed_uids.end(), peer.uid) != config.allowed_uids.end();
}

bool Door::Impl::turn_away(Connection& peer, const FrameHeader& header, Status status, std::string_view field, std::string_view reason,
                           std::uint64_t limit) {
  peer.out.error(Verb::kHello, 0, header.request, status, field, reason, limit);
  flush(peer, 0);
  close_peer(peer);
  return false;
}

void Door::Impl::welcome(Connection& peer, std::uint64_t request) {
  const CoreConfig& limits = core.config();
  HelloAnswer answer;
  answer.trusted = peer.trusted ? 1 : 0;
  answer.keys_per_call_max = limits.keys_per_call_max;
  answer.session = peer.owner;
  answer.incarnation = core.incarnation();
  answer.payload_bytes = payload.bytes();
  answer.window_bytes = core.window_bytes();
  answer.frame_bytes_max = config.frame_bytes_max;
  answer.lease_ms_max = static_cast<std::uint32_t>(limits.lease_max / kMilli);
  answer.hold_wait_ms_max = config.hold_wait_ms_max;
  answer.reserve_lapse_ms = static_cast<std::uint32_t>(limits.reserve_lapse / kMilli);
  answer.holds_per_connection_max = limits.holds_per_owner_max;
  answer.meta_bytes_max = kMetaBytesMax;
  const std::size_t start_of = peer.out.begin(Verb::kHello, kAnswer, request);
  peer.out.put(answer);
  peer.out.finish(start_of);
}

bool Door::Impl::hello(Connection& peer, const FrameHeader& header, std::span<const std::uint8_t> body) {
  HelloRequest said;
  std::span<const std::uint8_t> token;
  Reader reader(body);
  if (header.verb != Verb::kHello || !reader.read(said) || said.magic != kHelloMagic)
    return malformed(peer, header, "hello", "the first frame is a HELLO");
  if (!reader.bytes(said.token_bytes, token) || reader.left() != 0)
    return malformed(peer, header, "token_bytes", "does not match the frame");
  if (said.version_min > kFrameVersion || said.version_max < kFrameVersion)
    return malformed(peer, header, "version", "none of those offered is spoken here", kFrameVersion);
  std::string_view field, reason;
  if (!may_come_in(peer, token, field, reason)) {
    tally.refused_token += 1;
    return turn_away(peer, header, Status::kDenied, field, reason);
  }
  const bool own = !peer.remote && trusts(peer.uid);
  const std::uint64_t start = own && peer.pid > 0 ? process_start(peer.pid) : 0;
  if (start != 0) {  // a process that cannot be watched is not trusted with the segment
    peer.joined = core.client_joined(peer.owner, static_cast<std::uint32_t>(peer.pid), start);
    if (!peer.joined) return turn_away(peer, header, Status::kRejected, "clients_max", "too many clients map the segment", kClientsMax);
    peer.trusted = true;
    tally.trusted += 1;
  }
  welcome(peer, header.request);
  peer.state = Connection::State::kOpen;
  {
    std::lock_guard lock(inbox->mutex);
    inbox->owners.insert(peer.owner);
  }
  if (!peer.trusted) return true;
  if (!send_with_descriptor(peer.fd, peer.out.bytes, payload.fd())) {
    close_peer(peer);
    return false;
  }
  peer.out.bytes.clear();
  return true;
}

}  // namespace kvstore::door
