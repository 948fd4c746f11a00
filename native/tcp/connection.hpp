// One connection, both ways: our requests and the peer's. Owned by one worker thread.
//
// Rules
// - Payload goes between the socket and its place, nothing between: a DATA frame's bytes are received where they belong, and what
//   is in the buffer is at most what was read together with a header.
// - Before each receive into served memory, and before each DATA frame out of it, the grant is looked at again.
// - What a job had asked for is discarded from the moment it is stopped: memory is quiet at once, the peer is told STOP, and the
//   bytes under way go nowhere.
// - The peer may have requests_max requests and kRowsBudget rows outstanding; more, or a frame that does not parse, ends the
//   connection.
#pragma once
#include <deque>
#include <string>
#include <unordered_map>

#include "shared.hpp"
#include "stream.hpp"

namespace kvstore::tcp {

inline constexpr std::size_t kRowsBudget = 2 * std::size_t{kRowsMax};  // outstanding on one connection, either way
inline constexpr std::size_t kPiecesMax = 128;                         // of one system call

class Connection {
 public:
  Connection(Shared& shared, std::uint64_t id, std::uint64_t peer, std::uint32_t worker, std::unique_ptr<Stream> stream);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  std::uint64_t id() const noexcept { return id_; }
  int fd() const noexcept { return stream_->fd(); }
  std::uint32_t events() const noexcept;  // to wait for
  bool holds_input() const noexcept { return stream_->holds_input(); }
  bool reads_by_writing() const noexcept { return stream_->reads_by_writing(); }
  const std::string& why() const noexcept { return why_; }

  // Each is false once the connection is over.
  bool receive();
  bool send();
  void set_peer(std::uint64_t peer);  // the engine has made it a lane of it
  void ask(const std::shared_ptr<Job>& job, std::size_t slice, std::uint32_t tries);  // flush() must follow
  bool flush();
  bool withdraw(const Job& job);  // it was stopped
  void detach_ended();            // some grant has ended
  void end(const std::string& why);  // everything out is handed over or settled; no call after it

  std::uint64_t received() const noexcept { return received_; }

  std::uint32_t armed = 0;  // the worker's: what epoll was told
  bool driven = false;      // and whether some thread takes what comes in its place

 private:
  struct Asked {  // of the peer
    std::shared_ptr<Job> job;  // empty: discarded
    std::size_t slice = 0;
    std::uint32_t tries = 0;
    bool reading = true;
    std::size_t rows = 0;
    std::uint64_t total = 0, moved = 0, hashed = 0;
    Place place, hash_place;
  };
  struct Waiting {
    std::shared_ptr<Job> job;
    std::size_t slice;
    std::uint32_t tries;
  };
  struct Serving {  // a peer's request
    std::shared_ptr<Served> grant;  // empty: refused
    std::vector<WireRow> rows;
    std::uint64_t total = 0, moved = 0;
    std::size_t row = 0;
    std::uint64_t offset = 0;
    Reason reason = Reason::kLanded;  // what DONE will say
    bool taking = false;              // a WRITE
    bool stopped = false;
  };
  struct Frame {  // the DATA or GIVEN frame that is being sent
    bool active = false, ours = false;  // ours: of a WRITE that we asked for
    std::uint64_t request = 0;
    std::array<std::uint8_t, sizeof(Header)> head{};
    std::size_t head_sent = 0;
    std::uint64_t left = 0;
    std::vector<std::uint8_t> aside;  // what was left when its memory had to be let go
    std::size_t aside_sent = 0;
  };

  // receiving
  bool fail(const char* what);
  bool parse();
  bool on_hello(const Header& header);
  bool on_request(const Header& header);
  bool on_data(const Header& header);
  bool on_given(const Header& header);
  bool on_done(const Header& header);
  void on_stop(std::uint64_t request);
  std::size_t target(std::span<iovec> out);  // where the next payload bytes go
  void landed(std::uint64_t bytes);
  void landing_over(std::uint64_t request);
  // sending
  std::vector<std::uint8_t>& control();  // where frames are put that carry no payload
  bool next_frame();
  bool begin_served(std::uint64_t request);
  bool begin_ours(std::uint64_t request);
  std::size_t sources(std::span<iovec> out, bool& all);
  void sent(std::uint64_t bytes);
  void frame_over();
  void put_aside();
  void pump();
  void settle(Asked& asked, Reason reason);
  static std::size_t pieces(const Serving& serving, std::uint64_t bytes, std::span<iovec> out);
  static void advance(Serving& serving, std::uint64_t bytes);

  Shared& shared_;
  std::uint64_t id_, peer_;
  std::uint32_t worker_;
  std::unique_ptr<Stream> stream_;
  std::string why_;
  bool open_ = false;  // HELLO has come
  std::uint64_t received_ = 0;  // bytes

  std::vector<std::uint8_t> in_;
  std::size_t in_begin_ = 0, in_end_ = 0;
  std::uint64_t left_ = 0;  // payload bytes still to come
  Asked* into_asked_ = nullptr;
  Serving* into_served_ = nullptr;
  std::uint64_t into_request_ = 0;
  bool touching_ = false;  // the grant of into_served_ is entered

  std::vector<std::uint8_t> out_, later_;  // frames before and after the frame that is being sent
  std::size_t out_sent_ = 0;
  Frame frame_;

  std::uint32_t requests_max_ = 0;  // of the peer
  std::uint64_t next_request_ = 1;
  std::size_t rows_asked_ = 0, rows_served_ = 0;
  std::deque<Waiting> waiting_;
  std::unordered_map<std::uint64_t, Asked> asked_;
  std::unordered_map<std::uint64_t, Serving> serving_;  // READs and WRITEs of the peer
  std::deque<std::uint64_t> to_serve_, to_write_;       // whose turn it is to send a frame
  bool ours_next_ = false;
};

}  // namespace kvstore::tcp
