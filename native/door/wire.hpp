// A client's connected socket, plain or sealed by TLS. One thread may send while another receives.
//
// Rules
// - As send() and recv(): how many bytes moved, 0 from receive() at the end of the stream, -1 with errno.
// - A call that waits comes back with EAGAIN after kSlice at the latest, so that whoever calls sees its deadline and its end.
// - TLS handles are not for two threads at once: each call on one takes a lock, and none waits with it.
#pragma once
#include <sys/uio.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "core/types.hpp"
#include "tcp/stream.hpp"

namespace kvstore::door {

class Wire {
 public:
  static constexpr Nanos kSlice = 50'000'000;

  explicit Wire(int fd);  // connected; taken
  explicit Wire(std::unique_ptr<tcp::Stream> sealed);
  ~Wire();
  Wire(const Wire&) = delete;
  Wire& operator=(const Wire&) = delete;

  int fd() const noexcept { return fd_; }
  // Sealed: what could not be sent is half sent all the same, and nothing else may be sent before it.
  bool sealed() const noexcept { return sealed_ != nullptr; }
  ssize_t send(std::span<iovec> pieces);  // waits
  ssize_t send_at_once(std::span<const std::uint8_t> bytes);  // of a wire that is not sealed: what there is room for
  ssize_t receive(void* into, std::size_t bytes, bool waits);
  bool readable(Nanos within);  // whether receive() has something to say
  std::string trouble();        // why a sealed stream failed, for people; else ""

 private:
  ssize_t moved(std::int64_t result) noexcept;
  ssize_t try_receive(void* into, std::size_t bytes);

  const int fd_;
  std::mutex sealing_;
  const std::unique_ptr<tcp::Stream> sealed_;
};

}  // namespace kvstore::door
