#include "stream.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace kvstore::tcp {

namespace {

class Plain final : public Stream {
 public:
  explicit Plain(int fd) : fd_(fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }
  ~Plain() override { ::close(fd_); }
  int fd() const noexcept override { return fd_; }

  std::int64_t read(std::span<const iovec> into) noexcept override {
    msghdr message = of(into);
    return result(::recvmsg(fd_, &message, 0));
  }
  std::int64_t write(std::span<const iovec> from) noexcept override {
    msghdr message = of(from);
    return result(::sendmsg(fd_, &message, MSG_NOSIGNAL));
  }
  std::string trouble() const override { return error_ != 0 ? std::strerror(error_) : ""; }

 private:
  static msghdr of(std::span<const iovec> pieces) noexcept {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(pieces.data());
    message.msg_iovlen = pieces.size();
    return message;
  }
  std::int64_t result(ssize_t moved) noexcept {
    if (moved >= 0) return moved;
    if (errno == EINTR) return -EAGAIN;  // level-triggered: it is asked again
    error_ = errno;
    return -errno;
  }

  int fd_;
  int error_ = 0;
};

}  // namespace

std::unique_ptr<Stream> plain_stream(int fd) { return std::make_unique<Plain>(fd); }

}  // namespace kvstore::tcp
