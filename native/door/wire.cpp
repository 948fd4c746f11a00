#include "wire.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>

namespace kvstore::door {
namespace {

void slice(int fd, int option) {
  const timeval time{0, Wire::kSlice / 1'000};
  setsockopt(fd, SOL_SOCKET, option, &time, sizeof time);
}

bool await(int fd, short events, Nanos within) {
  pollfd one{fd, events, 0};
  const timespec time{std::max<Nanos>(within, 0) / 1'000'000'000, std::max<Nanos>(within, 0) % 1'000'000'000};
  return ppoll(&one, 1, &time, nullptr) > 0;
}

}  // namespace

Wire::Wire(int fd) : fd_(fd) {
  // Blocking calls return after a slice: one system call a message.
  slice(fd, SO_RCVTIMEO);
  slice(fd, SO_SNDTIMEO);
}

Wire::Wire(std::unique_ptr<tcp::Stream> sealed) : fd_(sealed->fd()), sealed_(std::move(sealed)) {}

Wire::~Wire() {
  if (!sealed_) close(fd_);
}

ssize_t Wire::moved(std::int64_t result) noexcept {
  if (result >= 0) return static_cast<ssize_t>(result);
  errno = static_cast<int>(-result);
  return -1;
}

ssize_t Wire::send(std::span<iovec> pieces) {
  if (!sealed_) {
    msghdr message{};
    message.msg_iov = pieces.data();
    message.msg_iovlen = pieces.size();
    return sendmsg(fd_, &message, MSG_NOSIGNAL);
  }
  short wanted = 0;
  {
    const std::lock_guard lock(sealing_);
    const std::int64_t sent = sealed_->write(pieces);
    if (sent != -EAGAIN) return moved(sent);
    wanted = sealed_->writes_by_reading() ? POLLIN : POLLOUT;
  }
  await(fd_, wanted, kSlice);
  const std::lock_guard lock(sealing_);
  return moved(sealed_->write(pieces));
}

ssize_t Wire::send_at_once(std::span<const std::uint8_t> bytes) {
  return ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

ssize_t Wire::try_receive(void* into, std::size_t bytes) {
  if (!sealed_) return recv(fd_, into, bytes, MSG_DONTWAIT);
  const iovec piece{into, bytes};
  const std::lock_guard lock(sealing_);
  return moved(sealed_->read({&piece, 1}));
}

ssize_t Wire::receive(void* into, std::size_t bytes, bool waits) {
  if (!waits) return try_receive(into, bytes);
  if (!sealed_) return recv(fd_, into, bytes, 0);
  const ssize_t got = try_receive(into, bytes);
  if (got >= 0 || errno != EAGAIN || !readable(kSlice)) return got;
  return try_receive(into, bytes);
}

bool Wire::readable(Nanos within) {
  short wanted = POLLIN;
  if (sealed_) {
    const std::lock_guard lock(sealing_);
    if (sealed_->holds_input()) return true;
    if (sealed_->reads_by_writing()) wanted |= POLLOUT;
  }
  const bool is = await(fd_, wanted, within);
  if (!is) errno = EAGAIN;
  return is;
}

std::string Wire::trouble() {
  if (!sealed_) return {};
  const std::lock_guard lock(sealing_);
  return sealed_->trouble();
}

}  // namespace kvstore::door
