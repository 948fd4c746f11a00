// Bytes of one connection, in order, plain or sealed by TLS. Never waits.
#pragma once
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace kvstore::tcp {

class Stream {
 public:
  virtual ~Stream() = default;  // closes the descriptor
  virtual int fd() const noexcept = 0;
  // How many bytes moved; 0 from read: the peer has ended; negative: -errno, -EAGAIN where it would wait.
  virtual std::int64_t read(std::span<const iovec> into) noexcept = 0;
  virtual std::int64_t write(std::span<const iovec> from) noexcept = 0;
  // What a would-be wait is for, besides what the caller asked for: TLS may need to write in order to read.
  virtual bool wants_write() const noexcept { return false; }
  // Bytes that can be read though the descriptor is not readable.
  virtual bool holds_input() const noexcept { return false; }
  // Why the last call failed, for people.
  virtual std::string trouble() const { return {}; }
};

std::unique_ptr<Stream> plain_stream(int fd);  // takes the descriptor over

}  // namespace kvstore::tcp
