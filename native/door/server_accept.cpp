// Who comes to the door: connections accepted or refused, and what the first byte of one at a TLS door says. Rules: server.hpp.
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <stdexcept>

#include "server_impl.hpp"
#include "tcp/dial.hpp"

namespace kvstore::door {
namespace {

constexpr std::uint8_t kTlsHandshake = 22, kTlsMajor = 3;  // the first bytes of whoever begins one

constexpr ucred kNobody{0, static_cast<uid_t>(-1), static_cast<gid_t>(-1)};

// False: nobody knows who that is, and `who` is nobody.
bool credentials(int fd, ucred& who) {
  socklen_t size = sizeof who;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0) return true;
  who = kNobody;
  return false;
}

// In clear text, to somebody of whom nothing is read any more.
void say_no(int fd, Status status, std::string_view field, std::string_view reason, std::uint64_t limit) {
  FrameWriter no;
  no.bytes.reserve(256);
  no.error(Verb::kError, 0, 0, status, field, reason, limit);
  [[maybe_unused]] const auto sent = send(fd, no.bytes.data(), no.bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace

void Door::Impl::accept_all(Listener& listener, std::uint64_t tag, Nanos now) {
  for (;;) {
    const int fd = accept4(listener.fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      admit(fd, listener, now);
      continue;
    }
    if (errno == EMFILE || errno == ENFILE) {  // else epoll would spin on it
      watch(epoll, EPOLL_CTL_MOD, listener.fd, 0, tag);
      listener.listening = false;
    }
    if (errno == EINTR || errno == ECONNABORTED) continue;
    return;
  }
}

void Door::Impl::admit(int fd, const Listener& listener, Nanos now) {
  ucred who = kNobody;
  // The last quarter is for those who are trusted: strangers that only connect keep no engine out.
  const bool own = !listener.remote && credentials(fd, who) && trusts(who.uid);
  const std::uint32_t most = own ? config.connections_max : config.connections_max - config.connections_max / 4;
  if (peers.size() >= most) {
    say_no(fd, Status::kRejected, "connections_max", "too many connections", most);
    close(fd);
    tally.refused_full += 1;
    return;
  }
  auto peer = std::make_unique<Connection>();
  peer->fd = fd;
  peer->owner = core.new_owner();
  peer->remote = listener.remote;
  peer->uid = who.uid;
  peer->pid = who.pid;
  peer->hello_by = now + Nanos{config.hello_ms_max} * 1'000'000;
  peer->in.resize(sizeof(FrameHeader) + kHelloBytesMax);
  peer->armed = EPOLLIN;
  if (listener.remote) {
    tcp::tune(fd);
    std::lock_guard lock(shared);
    peer->tls = tls;
  }
  if (!peer->tls) peer->stream = tcp::plain_stream(fd);
  watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, peer->owner);
  peers.emplace(peer->owner, std::move(peer));
  next_housekeeping = std::min(next_housekeeping, now + kHousekeeping);
  tally.accepted += 1;
  tally.connections += 1;
  if (listener.remote) tally.remote += 1;
}

// Who speaks clear text to a TLS door is told so in clear text, since it would understand nothing else.
bool Door::Impl::begin_tls(Connection& peer) {
  std::array<std::uint8_t, 2> first{0, kTlsMajor};  // the second may not have come; a HELLO may well begin with the first
  const ssize_t got = recv(peer.fd, first.data(), first.size(), MSG_PEEK | MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (got > 0 && first[0] == kTlsHandshake && first[1] == kTlsMajor) {
    try {
      peer.stream = tcp::tls_server(peer.tls, peer.fd);
      return true;
    } catch (const std::runtime_error&) {  // no memory for one more; the descriptor is closed
      peer.fd = -1;
    }
  } else if (got > 0) {
    std::array<std::uint8_t, kHelloBytesMax> unheard;  // what is unread when a socket is closed costs the peer what it was told
    [[maybe_unused]] const auto read = recv(peer.fd, unheard.data(), unheard.size(), MSG_DONTWAIT);
    say_no(peer.fd, Status::kBadInput, "tls", "this door speaks TLS", 0);
  }
  if (got > 0) tally.cut_tls += 1;
  close_peer(peer);
  return false;
}

}  // namespace kvstore::door
