// The framed door: one thread, one epoll, a Unix socket and, if it is told to, TCP. Answers the hot verbs from NodeCore and hands the rare ones to Python.
//
// Rules
// - Answers directly on its own thread; a parked HOLD is answered when NodeCore settles it, on whichever thread, through a wake-up.
// - Whatever a peer sends costs at most its own connection: an error frame names the field, then the connection ends.
// - Never waits for a peer. What cannot be sent is queued up to `queue_bytes_max`; a peer that reads slower than that is cut off.
// - A connection uses the namespaces that Python allowed it and no other; everything else is kStaleNamespace, as if it did not exist.
// - A trusted peer maps the segment. When the door cuts one off, what it held or may still write is kept until the peer has
//   closed its end or has died: only then nothing of it can land any more.
// - Who comes by TCP is never trusted, whatever it shows: it has no user id. A token says who it is; then a certificate that TLS has
//   verified; then, where that is allowed, nothing does.
// - A handshake costs this thread, so a turn takes few steps of them: who floods the door with handshakes waits for its own kind.
// - A peer that is not trusted gets no descriptor, and verbs that speak of slots and holds are refused to it: its bytes move by
//   transfers, which it asks for in CALLs.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/node_core.hpp"
#include "core/superblock.hpp"
#include "frame.hpp"

namespace kvstore {
class ClaimsDesk;  // directory/claims_desk.hpp
}

namespace kvstore::tcp {
class TlsContext;
}

namespace kvstore::door {

struct DoorConfig {
  std::vector<uid_t> trusted_uids;
  std::vector<uid_t> allowed_uids;  // not trusted, and let in without a token; everybody else shows one
  bool anonymous_over_tcp = false;    // who shows nothing is let in
  bool certified_over_tcp = false;    // and who shows a certificate that has no number of its own
  std::uint32_t connections_max = 1'024;
  std::uint32_t frame_bytes_max = 8u << 20;
  std::uint32_t queue_bytes_max = 64u << 20;    // answers that wait for one peer
  std::uint32_t requests_max = 4'096;           // rare verbs that wait for Python, all peers together
  std::uint32_t requests_per_connection_max = 64;
  std::uint32_t hold_wait_ms_max = 10'000;
  std::uint32_t hello_ms_max = 5'000;           // a peer that has not said HELLO by then is cut off
  std::uint32_t stall_ms_max = 30'000;          // and one that takes none of its answers for so long
  std::uint32_t spin_us_max = 100;              // looks again for so long before it sleeps, where that pays; 0: never
};

// A rare verb, for Python to answer.
struct Request {
  OwnerId owner = 0;
  std::uint64_t request = 0;
  std::uint32_t method = 0;
  bool trusted = false;
  bool unanswered = false;  // say answered(), and nothing else
  bool gone = false;  // no request: the connection has ended, forget what you know of this owner
  bool remote = false;  // came by TCP; `uid` says nothing
  uid_t uid = 0;
  std::int64_t token = -1;  // number given with set_bearers; -1: shows nothing that has one
  std::shared_ptr<const std::vector<std::string>> names;  // of the certificate it has shown; null: none
  std::vector<std::uint8_t> body;
};

struct TokenDigest {
  std::uint8_t sha256[32];
  std::int64_t token = -1;  // what Request::token says of those who show it
};

struct CertificateName {
  std::string name;
  std::int64_t token = -1;  // as TokenDigest's
};

struct DoorStats {
  std::uint64_t connections = 0, trusted = 0, remote = 0;  // now
  std::uint64_t accepted = 0, refused_full = 0, refused_token = 0, cut_token = 0, cut_malformed = 0, cut_slow = 0, cut_hello = 0, cut_tls = 0, frames = 0, located = 0 /* answered from claims */,
                bytes_in = 0, bytes_out = 0, requests_dropped = 0;  // ever
};

class Door {
 public:
  // `listener`: a bound, listening AF_UNIX stream socket; the door dups it. `payload_fd`: passed to trusted peers.
  Door(NodeCore& core, int listener, int payload_fd, std::uint64_t payload_bytes, const DoorConfig& config);
  ~Door();  // stops
  // Before start(). `listener`: a bound, listening TCP socket; the door dups it. `tls`: has a certificate; null: clear text.
  void listen_tcp(int listener, std::shared_ptr<const tcp::TlsContext> tls);
  void renew_tls(std::shared_ptr<const tcp::TlsContext> tls);  // for connections from now on
  void start();
  void stop();  // ends all connections; parked fetches are answered empty. Idempotent.

  // From now on these. Connections of peers that are not trusted, and whose bearer's number is among them no more, are ended.
  void set_bearers(std::vector<TokenDigest> tokens, std::vector<CertificateName> certificates);
  bool allow(OwnerId owner, NsId ns);  // false: that connection is gone
  void disallow(NsId ns);              // from everybody: the namespace was cleared
  // Once the monotonic clock is past `until`, nobody may use what was allowed before: this process may have stood still, and others
  // may have cleared it meanwhile. Who moves it on in time is never noticed. Until it is called the first time: for ever.
  void trust_until(Nanos until);
  // Of a connection whose other end has introduced itself as a node: CALLs of this method are answered from these claims, as far
  // as those answer; the rest is Python's.
  void answer_locates(OwnerId owner, std::uint32_t method, std::shared_ptr<ClaimsDesk> claims);
  void set_draining(bool draining);    // while it is, RESERVE is refused; all else goes on

  int request_fd() const;  // readable when take_requests() has something
  std::vector<Request> take_requests(std::size_t max);
  // False: the connection is gone. `status` kOk: `body` is the message; else `field` and `reason` say why.
  bool answer(OwnerId owner, std::uint64_t request, std::span<const std::uint8_t> body);
  bool answer_error(OwnerId owner, std::uint64_t request, Status status, const std::string& field, const std::string& reason,
                    std::uint64_t limit);
  // Of a request that nobody waits for: it is done.
  void answered(OwnerId owner);
  DoorStats stats() const;

  struct Impl;  // server_impl.hpp

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvstore::door
