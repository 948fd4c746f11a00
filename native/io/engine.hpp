// Moves batches of extents between files and memory. Knows offsets and addresses; no slot, key or tier.
//
// Rules
// - Thread-safe. submit, cancel and reap never wait for a device.
// - Batches answer whole, with one result a request. An answer means quiet memory: it comes only when the kernel can no
//   longer touch any of the batch's pieces. A deadline or a cancel therefore stops what has not been started, asks the kernel
//   to give up the rest, and then waits for the kernel's word, however long that takes.
// - Requests of a batch that lie behind one another in a file go to the kernel as one operation of up to 1 MiB (join.hpp).
// - At most `depth` operations are in the kernel at once; at most `pending_max` requests wait: submit refuses the rest (kBusy).
// - Short transfers are continued, EINTR and EAGAIN retried; any other error ends its request and no other.
// - The foreground lane goes first; one start in `kBackgroundShare` is the background's, so that it moves too.
// - `event_fd` turns readable when reap() has something. Reading it is the caller's business.
// - The one wait that ends without the kernel's word is close()'s: it says so, and answers nothing that is not quiet.
// - Files and regions are given once, at start, and outlive the engine. Pieces may lie anywhere; in a region they are cheaper.
#pragma once
#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace kvstore::io {

using BatchId = std::uint64_t;  // never reused; 0 is none
using Nanos = std::int64_t;     // CLOCK_MONOTONIC

enum class Op : std::uint8_t { kRead = 0, kWrite = 1 };
enum class Lane : std::uint8_t { kForeground = 0, kBackground = 1 };

inline constexpr std::uint32_t kBackgroundShare = 8;
inline constexpr std::uint32_t kDepthMax = 1024;
inline constexpr Nanos kCloseMax = 10'000'000'000;  // how long a close waits for a device that does not answer
inline constexpr std::uint32_t kPiecesMax = 8;               // of one request
inline constexpr std::uint64_t kRequestBytesMax = 1u << 30;  // one call of the kernel moves less than 2 GiB

// One contiguous range of a file, and the memory it comes from or goes to, in order. The caller keeps that memory until
// the batch is answered.
struct Request {
  std::uint32_t file = 0;
  std::uint64_t offset = 0;
  std::vector<iovec> pieces;  // 1..kPiecesMax, none empty
};

struct EngineConfig {
  std::vector<int> files;         // descriptors, kept open by the caller
  std::vector<iovec> regions;     // memory that most pieces will lie in, kept mapped by the caller
  std::uint32_t depth = 32;
  std::uint32_t pending_max = 65'536;
  bool register_memory = true;    // io_uring only: pins the regions once, where the memlock limit allows it
};

enum class SubmitStatus : std::uint8_t { kOk = 0, kBusy = 1, kBadInput = 2, kClosed = 3 };

struct Submitted {
  SubmitStatus status = SubmitStatus::kOk;
  BatchId batch = 0;
};

// A result is the request's full length, or a negative errno: -ECANCELED by cancel or close, -ETIME by deadline,
// -ENODATA where the file ended early.
struct Done {
  BatchId batch = 0;
  std::vector<std::int64_t> results;
};

// What the engine was able to set up, for the doctor.
struct Features {
  std::string engine;            // "io_uring" or "threads"
  bool registered_files = false;
  bool registered_memory = false;
  bool vectored_registered = false;  // several registered pieces are one operation (Linux 6.15)
  bool single_issuer = false;
  bool deferred_task_run = false;
  std::string note;              // why something is off; empty if nothing is
};

struct EngineStats {
  std::uint64_t waiting = 0, running = 0;                                      // now, requests
  std::uint64_t reads = 0, writes = 0, read_bytes = 0, written_bytes = 0;      // ever, done well
  std::uint64_t failed = 0, late = 0, cancelled = 0, continued = 0;            // ever
  std::uint64_t operations = 0;                                                // ever started: fewer than requests, if they join
  std::uint64_t cpu_ns = 0;                                                    // of the engine's own threads, ever
};

class Engine {
 public:
  // close()s, unless that was tried before. What still runs then keeps what it needs of the engine, and ends by itself.
  virtual ~Engine() = default;
  virtual Submitted submit(Op op, Lane lane, std::vector<Request> requests, Nanos deadline) = 0;
  virtual void cancel(BatchId batch) = 0;  // its answer comes as any other; unknown batches are passed over
  virtual std::vector<Done> reap() = 0;
  virtual int event_fd() const = 0;
  virtual EngineStats stats() const = 0;
  virtual const Features& features() const = 0;
  // Refuses new batches, cancels what waits, waits for what runs, `limit` at most. Answers stay to be reaped. False: a device
  // has not answered, and the kernel may touch the pieces of what is not answered, and the regions, at any time until the
  // process ends: they must stay mapped, the files open. It may be asked again.
  virtual bool close(Nanos limit = kCloseMax) = 0;
};

// Throws std::system_error where the kernel refuses io_uring (absent, seccomp, sysctl, too old).
std::unique_ptr<Engine> open_uring_engine(const EngineConfig& config);
std::unique_ptr<Engine> open_thread_engine(const EngineConfig& config);
// Why io_uring cannot be used here, or nothing.
std::optional<std::string> uring_refused();

}  // namespace kvstore::io
