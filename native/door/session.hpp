// A client's connection to the door of its node, and the segment it maps.
//
// Rules
// - Thread-safe. Synchronous calls run in the calling thread, any number at once: whoever waits first reads for all.
// - Every wait has a deadline. When the node is gone, every call in flight ends kUnavailable, and so does every later one.
// - No call answers while anything of it still touches the caller's memory. close() waits for the copies under way.
// - Bytes fetched are hashed as they are copied; a block that does not verify ends the run and is reported to the node.
// - An answer that comes after its caller has given up is undone: holds released, reservations aborted.
// - Submitted calls are driven by a reader and `workers` copying threads of the session, started with the first of them, and
//   complete through an eventfd. They and the synchronous calls drive the same operations (operation.hpp).
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "frame.hpp"

namespace kvstore::transfer {
class MappedSegment;
}

namespace kvstore::tcp {
class TlsContext;
}

namespace kvstore::door {

using transfer::MappedSegment;  // of the node's payload: read for gets and views, written by what is published in place

struct SessionConfig {
  std::string path;          // of a Unix socket, or
  std::string host;          // a name or an address, and
  std::uint16_t port = 0;    // where the node listens by TCP
  std::shared_ptr<const tcp::TlsContext> tls;  // what is believed and shown there; null: clear text
  std::string token;
  std::uint64_t connect_ms = 5'000;
  std::uint32_t workers = 1;
  bool verify = true;  // off only to show why it is on
};

struct SessionInfo {
  bool trusted = false;
  std::uint64_t session = 0, incarnation = 0, payload_bytes = 0, window_bytes = 0;
  std::uint32_t keys_per_call_max = 0, frame_bytes_max = 0, lease_ms_max = 0, hold_wait_ms_max = 0, reserve_lapse_ms = 0,
                holds_per_connection_max = 0, meta_bytes_max = 0;
};

// Where n blocks lie in the caller's memory: k pieces each, block after block. `lengths` has k entries (the same for every
// block) or n*k. The lengths of a block add up to the shard's bytes.
struct Scattered {
  std::vector<std::uint64_t> addresses;
  std::vector<std::uint64_t> lengths;
};

// What came of any call. Fields that a verb does not speak of keep their defaults.
struct Result {
  std::uint64_t token = 0;  // of a submitted call
  Status status = Status::kOk;
  std::string field, reason;  // of a status that is not kOk
  std::uint64_t limit = 0;
  std::uint32_t blocks = 0;           // lookup: the boundary; put: stored; fetch, view: the run that arrived
  std::uint32_t blocks_corrupt = 0;   // fetch, view: did not verify
  bool window_full = false;           // fetch, view: ask again from the run's end
  std::uint64_t bytes = 0;            // moved
  double fetch_s = 0;                 // lookup: estimate of how long fetching takes
  std::uint64_t hold = 0;             // view: what to release
  std::vector<std::uint8_t> outcomes;  // put, reserve: a PutOutcome a key; part, seal: an Outcome a ticket
  std::vector<std::uint8_t> tiers;     // lookup, fetch, view: a Tier a block
  std::vector<std::uint64_t> tickets;  // reserve: a key (0xffffffff: not granted); view
  std::vector<std::uint64_t> offsets;  // reserve, view: in the segment
  std::vector<std::uint32_t> parts_ready;  // view
  std::vector<std::uint8_t> body;          // call
};

enum class PutOutcome : std::uint8_t {  // the first five are ReserveStatus
  kStored = 0, kHeld = 1, kPending = 2, kFull = 3, kTooLarge = 4,
  kLapsed = 5,  // sealed too late
};

class Operation;    // operation.hpp
class Reservation;  // reservation.hpp
class Channel;

class Session {
 public:
  // Throws std::system_error (nobody there, no permission), std::invalid_argument (path, host, versions), Refused (the node, or TLS).
  explicit Session(const SessionConfig& config);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const SessionInfo& info() const noexcept;
  bool closed() const noexcept;
  void close();
  void describe(NsId ns, std::vector<std::vector<std::uint32_t>> shards);
  std::shared_ptr<MappedSegment> segment() const;  // null unless trusted
  // Who gives out memory of the segment keeps the channel too: while it is open, the node keeps what it was given for.
  std::shared_ptr<Channel> channel() const;
  std::shared_ptr<const std::vector<std::uint32_t>> parts_of(NsId ns, std::uint16_t shard);  // throws: not described
  // Around anything that touches the segment outside run(): close() waits for it. False: closed.
  bool enter();
  void leave();

  // Drives the operation in this thread.
  Result run(Operation& operation, Nanos deadline);
  // Hands it to the session's threads. `token` comes back with its result.
  void submit(std::uint64_t token, std::unique_ptr<Operation> operation, Nanos deadline);
  void cancel(std::uint64_t token);
  int completion_fd() const noexcept;
  std::vector<Result> take_completions();

  // Frames that are not answered, sent together with what waits. False: the node is gone.
  bool tell(Verb verb, std::span<const std::uint8_t> body, Nanos deadline);
  bool flush(Nanos deadline);
  // The same, sent with the next call, or within Soon::kSoon. False: the session is closed.
  bool tell_soon(Verb verb, std::span<const std::uint8_t> body);

  struct Impl;  // session_impl.hpp

 private:
  std::unique_ptr<Impl> impl_;
};

// The node said no to HELLO.
struct Refused : std::runtime_error {
  Refused(Status said, const std::string& what) : std::runtime_error(what), status(said) {}
  Status status;
};

}  // namespace kvstore::door
