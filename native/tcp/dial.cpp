#include "dial.hpp"

#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "base/clock.hpp"

namespace kvstore::tcp {

namespace {

constexpr int kKeepaliveS = 10;     // of silence, until the other end is asked for a sign
constexpr int kUnheardMs = 30'000;  // without one, or with bytes that it has not taken: it is gone

struct Place {
  sockaddr_storage address{};
  socklen_t bytes = 0;
};

struct Found {
  int error = EAI_AGAIN;
  int system = 0;
  std::vector<Place> places;
};

[[noreturn]] void fail(int error, const std::string& where, const std::string& why = {}) {
  throw std::system_error(error, std::generic_category(), "connect to " + where + (why.empty() ? "" : ": " + why));
}

Found resolve(const std::string& host, std::uint16_t port, int flags) {
  addrinfo wanted{};
  wanted.ai_socktype = SOCK_STREAM;
  wanted.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* rows = nullptr;
  Found found;
  found.error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &wanted, &rows);
  found.system = errno;
  if (found.error != 0) return found;
  for (const addrinfo* row = rows; row != nullptr; row = row->ai_next) {
    Place place;
    place.bytes = row->ai_addrlen;
    std::memcpy(&place.address, row->ai_addr, row->ai_addrlen);
    found.places.push_back(place);
  }
  freeaddrinfo(rows);
  return found;
}

// Asking a name server takes as long as it takes, and cannot be called back: a thread asks, and is left alone when time is up.
Found resolve_within(const std::string& host, std::uint16_t port, std::int64_t deadline) {
  if (Found numeric = resolve(host, port, AI_NUMERICHOST); numeric.error == 0) return numeric;
  struct Asked {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
    Found found;
  };
  const auto asked = std::make_shared<Asked>();
  std::thread([asked, host, port] {
    Found found = resolve(host, port, 0);
    const std::lock_guard lock(asked->mutex);
    asked->found = std::move(found);
    asked->done = true;
    asked->changed.notify_all();
  }).detach();
  std::unique_lock lock(asked->mutex);
  const auto left = std::chrono::nanoseconds(std::max<std::int64_t>(deadline - monotonic_now(), 0));
  if (!asked->changed.wait_for(lock, left, [&] { return asked->done; })) return {EAI_SYSTEM, ETIMEDOUT, {}};
  return std::move(asked->found);
}

// The connected socket, or a negative errno.
int connect_one(const Place& place, std::int64_t deadline) {
  const int fd = ::socket(place.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -errno;
  int error = ::connect(fd, reinterpret_cast<const sockaddr*>(&place.address), place.bytes) == 0 ? 0 : errno;
  while (error == EINPROGRESS || error == EINTR) {
    const std::int64_t left = deadline - monotonic_now();
    pollfd one{fd, POLLOUT, 0};
    const int ready = left <= 0 ? 0 : poll(&one, 1, static_cast<int>(std::min<std::int64_t>(left / 1'000'000 + 1, 1'000)));
    socklen_t size = sizeof error;
    if (ready > 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
    if (ready <= 0 && left <= 0) error = ETIMEDOUT;
  }
  if (error == 0) return fd;
  close(fd);
  return -error;
}

}  // namespace

void tune(int fd) {
  const auto set = [fd](int level, int option, int value) { setsockopt(fd, level, option, &value, sizeof value); };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, kKeepaliveS);
  set(IPPROTO_TCP, TCP_KEEPINTVL, kKeepaliveS / 2);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, kUnheardMs);
}

int dial(const std::string& host, std::uint16_t port, std::int64_t deadline_ns) {
  const std::string where = host.find(':') == std::string::npos ? host + ":" + std::to_string(port) : "[" + host + "]:" + std::to_string(port);
  const Found found = resolve_within(host, port, deadline_ns);
  if (found.error == EAI_SYSTEM) fail(found.system, where);
  if (found.error != 0) fail(EHOSTUNREACH, where, gai_strerror(found.error));
  int error = EHOSTUNREACH;
  for (std::size_t i = 0; i < found.places.size(); ++i) {
    const std::int64_t now = monotonic_now();
    const auto share = (deadline_ns - now) / static_cast<std::int64_t>(found.places.size() - i);
    const int fd = connect_one(found.places[i], now + share);
    if (fd >= 0) return fd;
    error = -fd;
  }
  fail(error, where);
}

}  // namespace kvstore::tcp
