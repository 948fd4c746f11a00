// The door's inside, shared by server.cpp (sockets, thread) and verbs*.cpp (what frames mean).
#pragma once
#include <sys/epoll.h>

#include <atomic>
#include <deque>
#include <functional>
#include <limits>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <variant>

#include "base/spin_window.hpp"
#include "connection.hpp"
#include "server.hpp"
#include "transfer/mapped_segment.hpp"

namespace kvstore::door {

// What other threads bring to the door's thread, in order. Outlives the door in callbacks that come too late.
struct Inbox {
  struct Frame {
    OwnerId owner;
    std::vector<std::uint8_t> bytes;
    bool answers_call;
  };
  struct Fetched {
    OwnerId owner;
    std::uint64_t request;
    std::uint8_t flags;
    FetchAnswer answer;
  };
  struct Allow {
    OwnerId owner;
    NsId ns;
  };
  struct Disallow {
    NsId ns;
  };
  struct Locates {
    OwnerId owner;
    std::uint32_t method;
    std::shared_ptr<ClaimsDesk> claims;
  };
  struct Judge {};  // the tokens are others now
  using Item = std::variant<Frame, Fetched, Allow, Disallow, Locates, Judge>;

  explicit Inbox(int event) : wake_event(event) {}
  ~Inbox();
  // False: the door is closed.
  bool push(Item&& item);
  void wake() const;

  std::mutex mutex;
  std::vector<Item> items;
  std::unordered_set<OwnerId> owners;  // connections past HELLO
  bool closed = false;
  std::atomic<bool> filled{false};
  int wake_event;
  std::atomic<std::thread::id> thread{};
  Door::Impl* door = nullptr;  // used on the door's thread only
};

struct Listener {
  int fd = -1;
  bool remote = false;
  bool listening = true;  // false: out of descriptors, for a moment
};

void watch(int epoll, int op, int fd, std::uint32_t events, std::uint64_t tag);
constexpr std::uint64_t kWakeTag = ~std::uint64_t{0}, kListenerTag = kWakeTag - 8;  // no owner has such a number
constexpr std::size_t kHelloBytesMax = 4u << 10;  // of the first frame, whoever sends it: nobody has asked who that is
constexpr Nanos kHousekeeping = 100'000'000;

struct Door::Impl {
  Impl(NodeCore& core_, int listener_, int payload_fd, std::uint64_t payload_bytes, const DoorConfig& config_);
  ~Impl();

  // ---- server.cpp
  void run();
  void listen_on(int fd, bool remote);
  void resume_listening();
  void on_event(Connection& peer, std::uint32_t events, Nanos now);
  void take(Connection& peer, Nanos now);
  bool receive(Connection& peer);  // false: the peer has closed
  void doubt(Connection& peer, Nanos now);
  bool listens_to(const Connection& peer) const;
  void work_off(Connection& peer, Nanos now);
  void flush(Connection& peer, Nanos now);
  void arm(Connection& peer);
  void condemn(Connection& peer);
  void close_peer(Connection& peer);
  void bury();
  void take_inbox(Nanos now);
  void housekeep(Nanos now);
  int await(std::span<epoll_event> events);
  int wait_ms(Nanos now) const;
  Connection* find(OwnerId owner);
  bool trusts(uid_t uid) const {
    return std::find(config.trusted_uids.begin(), config.trusted_uids.end(), uid) != config.trusted_uids.end();
  }

  // ---- server_accept.cpp
  void accept_all(Listener& listener, std::uint64_t tag, Nanos now);
  void admit(int fd, const Listener& listener, Nanos now);
  bool begin_tls(Connection& peer);  // false: it is closed

  // ---- verbs.cpp: one frame. False: it cost the connection.
  bool handle(Connection& peer, const FrameHeader& header, std::span<const std::uint8_t> body, Nanos now);
  bool hello(Connection& peer, const FrameHeader& header, std::span<const std::uint8_t> body);
  bool lookup(Connection& peer, const FrameHeader& header, Reader body);
  bool reserve(Connection& peer, const FrameHeader& header, Reader body, Nanos now);
  bool part(Connection& peer, const FrameHeader& header, Reader body);
  bool seal(Connection& peer, const FrameHeader& header, Reader body);
  bool tickets(Connection& peer, const FrameHeader& header, Reader body);  // ABORT, CORRUPT
  bool hold(Connection& peer, const FrameHeader& header, Reader body, Nanos now);
  void held(Connection& peer, std::uint64_t request, std::uint8_t flags, FetchAnswer&& answer);
  bool release(Connection& peer, const FrameHeader& header, Reader body);
  bool fetched(Connection& peer, const FrameHeader& header, Reader body);
  bool quiet(Connection& peer, const FrameHeader& header, Reader body);
  bool call(Connection& peer, const FrameHeader& header, std::span<const std::uint8_t> body);
  bool locate(Connection& peer, const FrameHeader& header, std::span<const std::uint8_t> message);  // false: Python's
  void refuse(Connection& peer, const FrameHeader& header, Status status, std::string_view field, std::string_view reason,
              std::uint64_t limit = 0);
  bool malformed(Connection& peer, const FrameHeader& header, std::string_view field, std::string_view reason,
                 std::uint64_t limit = 0);
  void outcomes(Connection& peer, const FrameHeader& header, std::span<const Outcome> outcomes);

  // ---- verbs_hello.cpp
  const TokenDigest* token_of(std::span<const std::uint8_t> token) const;
  std::int64_t number_of(const std::vector<std::string>& names) const;
  bool may_come_in(Connection& peer, std::span<const std::uint8_t> token, std::string_view& field, std::string_view& reason);
  bool turn_away(Connection& peer, const FrameHeader& header, Status status, std::string_view field, std::string_view reason,
                 std::uint64_t limit = 0);
  void welcome(Connection& peer, std::uint64_t request);
  void end_withdrawn();

  NodeCore& core;
  const DoorConfig config;
  const transfer::MappedSegment payload;  // offsets into it are the core's own
  std::vector<Listener> listeners;  // the Unix socket's first; epoll knows them by kListenerTag + index
  int epoll = -1;
  int request_event = -1;
  std::shared_ptr<Inbox> inbox;
  std::thread thread;
  std::atomic<bool> stopping{false};
  std::atomic<bool> draining{false};  // RESERVE is refused
  std::atomic<Nanos> trusted_until{std::numeric_limits<Nanos>::max()};
  Nanos next_housekeeping = 0;
  Nanos next_census = 0;  // of former clients
  SpinWindow spin{Nanos{config.spin_us_max} * 1'000};

  std::unordered_map<OwnerId, std::unique_ptr<Connection>> peers;
  std::vector<OwnerId> dead;
  std::vector<OwnerId> answered;  // have something to take that nobody has flushed
  std::vector<OwnerId> unread;    // TLS has bytes of them that epoll does not know of
  OwnerId working_on = 0;         // whose frames are being handled, and who is flushed after it

  // The door's thread's own; `counts` is its copy.
  DoorStats tally;
  LookupAnswer looked;
  std::vector<Need> needs;
  std::vector<Reserved> reserved;
  std::vector<Ticket> ticket_list;
  std::vector<Outcome> outcome_list;
  std::vector<std::uint64_t> checksum_list;
  std::vector<std::span<const std::uint8_t>> meta_list;

  mutable std::mutex shared;  // what follows is also Python's
  std::deque<Request> requests;
  std::vector<TokenDigest> tokens;
  std::unordered_map<std::string, std::int64_t> certificates;
  std::shared_ptr<const tcp::TlsContext> tls;
  DoorStats counts;
};

}  // namespace kvstore::door
