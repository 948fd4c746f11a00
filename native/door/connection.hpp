// One peer of the door: what it may do, what it has sent that is not handled, what it has not taken yet.
// Touched by the door's thread only.
#pragma once
#include <sys/types.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "directory/claims_desk.hpp"
#include "frame.hpp"
#include "tcp/tls.hpp"

namespace kvstore::door {

struct Connection {
  enum class State { kHello, kOpen, kCondemned, kClosed };

  int fd = -1;
  std::unique_ptr<tcp::Stream> stream;          // over fd, which it owns then. Null: TLS is spoken here, and nothing has come yet
  std::shared_ptr<const tcp::TlsContext> tls;   // null: clear text
  OwnerId owner = 0;
  State state = State::kHello;
  bool remote = false;  // came by TCP: has no user id, and is never trusted
  bool trusted = false;  // maps the segment
  bool joined = false;  // in the table of the segment's clients
  uid_t uid = 0;
  pid_t pid = 0;
  std::int64_t token = -1;  // the number of its bearer, by token or certificate
  std::shared_ptr<const std::vector<std::string>> names;  // of its certificate; null: none
  Nanos hello_by = 0;
  Nanos stalled_since = 0;  // 0: nothing waits to be taken
  std::uint32_t armed = 0;  // epoll events asked for

  std::vector<std::uint8_t> in;
  std::size_t in_begin = 0, in_end = 0;
  FrameWriter out;
  std::size_t out_sent = 0;

  std::vector<NsId> allowed;  // sorted
  std::uint32_t requests = 0;  // rare verbs that Python has not answered

  std::shared_ptr<ClaimsDesk> claims;  // of a node that has introduced itself: its questions of this method are answered from them
  std::uint32_t locate_method = 0;

  bool handshaking() const noexcept { return tls != nullptr && state == State::kHello; }
  bool holds_input() const noexcept { return stream != nullptr && stream->holds_input(); }
  std::int64_t write(std::span<const std::uint8_t> bytes) {
    const iovec piece{const_cast<std::uint8_t*>(bytes.data()), bytes.size()};
    return stream->write({&piece, 1});
  }
  std::size_t pending() const noexcept { return out.bytes.size() - out_sent; }
  bool may(NsId ns) const noexcept { return std::binary_search(allowed.begin(), allowed.end(), ns); }
  void allow(NsId ns) {
    const auto at = std::lower_bound(allowed.begin(), allowed.end(), ns);
    if (at == allowed.end() || *at != ns) allowed.insert(at, ns);
  }
  void disallow(NsId ns) {
    const auto at = std::lower_bound(allowed.begin(), allowed.end(), ns);
    if (at != allowed.end() && *at == ns) allowed.erase(at);
  }
  void disallow_all() noexcept { allowed.clear(); }
};

}  // namespace kvstore::door
