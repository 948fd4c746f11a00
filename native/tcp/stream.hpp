// Bytes of one connection, in order, plain or sealed by TLS. Never waits.
#pragma once
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace kvstore::tcp {

class Stream {
 public:
  virtual ~Stream() = default;  // closes the descriptor
  virtual int fd() const noexcept = 0;
  // How many bytes moved; 0 from read: the peer has ended; negative: -errno, -EAGAIN where it would wait.
  virtual std::int64_t read(std::span<const iovec> into) noexcept = 0;
  virtual std::int64_t write(std::span<const iovec> from) noexcept = 0;
  // What the last call waits for, where that is the other direction: TLS may have to write in order to read, and to read in order to
  // write.
  virtual bool reads_by_writing() const noexcept { return false; }
  virtual bool writes_by_reading() const noexcept { return false; }
  // Bytes that can be read though the descriptor is not readable.
  virtual bool holds_input() const noexcept { return false; }
  // The names in the certificate that the peer has shown and TLS has verified: the subject's alternative ones, then its common ones.
  virtual std::vector<std::string> peer_names() const { return {}; }
  // Why the last call failed, for people.
  virtual std::string trouble() const { return {}; }
};

std::unique_ptr<Stream> plain_stream(int fd);  // takes the descriptor over

}  // namespace kvstore::tcp
