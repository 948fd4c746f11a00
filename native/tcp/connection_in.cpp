// What comes in on a connection.
#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "connection.hpp"
#include "base/clock.hpp"

namespace kvstore::tcp {

namespace {

constexpr std::size_t kInBytes = 8u << 10;            // read together with a header, and then copied
constexpr std::size_t kInKeepBytes = 256u << 10;      // a buffer that a large request has made is given back
constexpr std::uint64_t kTurnBytes = 2u << 20;        // then other connections have theirs
constexpr std::uint64_t kHashBytes = 256u << 10;      // received at once where it is hashed: it should still be in the cache
constexpr std::size_t kSinkBytes = 256u << 10;

// For bytes that nobody wants any more; never read.
std::span<std::byte> sink() {
  thread_local std::vector<std::byte> bytes(kSinkBytes);
  return bytes;
}

}  // namespace

bool Connection::fail(const char* what) {
  if (why_.empty()) why_ = what;
  return false;
}

bool Connection::receive() {
  if (in_.empty()) in_.resize(kInBytes);
  for (std::uint64_t turn = 0; turn < kTurnBytes;) {
    std::array<iovec, kPiecesMax + 1> list;
    std::size_t count = 0;
    std::uint64_t direct = 0;
    if (left_ > 0) {
      count = target(std::span(list).first(kPiecesMax));
      for (std::size_t i = 0; i < count; ++i) direct += list[i].iov_len;
      // What follows the payload is most likely a header or two.
      if (direct == left_) list[count++] = {in_.data(), 2 * sizeof(Header)};
    } else {
      list[count++] = {in_.data() + in_end_, in_.size() - in_end_};
    }
    std::uint64_t wanted = 0;
    for (std::size_t i = 0; i < count; ++i) wanted += list[i].iov_len;
    const std::int64_t got = stream_->read(std::span(list).first(count));
    const std::uint64_t moved = got > 0 ? static_cast<std::uint64_t>(got) : 0;
    const std::uint64_t payload = std::min(moved, direct);
    received_ += moved;
    landed(payload);
    if (got == -EAGAIN) return true;
    if (got == 0) return fail("the peer has ended the connection");
    if (got < 0) return fail(stream_->trouble().c_str());
    in_end_ += moved - payload;
    if (!parse()) return false;
    turn += moved;
    if (moved < (direct > 0 ? direct : wanted) && !stream_->holds_input()) return true;
  }
  return true;
}

bool Connection::parse() {
  while (left_ == 0 && in_end_ - in_begin_ >= sizeof(Header)) {
    Header header;
    std::memcpy(&header, in_.data() + in_begin_, sizeof header);
    const auto kind = static_cast<Kind>(header.kind);
    if (!open_) {
      if (kind != Kind::kHello || header.length != sizeof(Hello)) return fail("the peer speaks another protocol");
    } else if (wrong(header) != nullptr) {
      return fail("a frame that does not parse");
    }
    const bool has_body = kind == Kind::kHello || kind == Kind::kRead || kind == Kind::kWrite;
    const std::size_t whole = sizeof header + (has_body ? header.length : 0);
    if (in_end_ - in_begin_ < whole) {
      if (in_.size() - in_begin_ < whole) {
        std::memmove(in_.data(), in_.data() + in_begin_, in_end_ - in_begin_);
        in_end_ -= in_begin_;
        in_begin_ = 0;
        if (in_.size() < whole) in_.resize(whole);
      }
      return true;
    }
    bool good = true;
    if (kind == Kind::kHello) good = on_hello(header);
    else if (has_body) good = on_request(header);
    else if (kind == Kind::kData) good = on_data(header);
    else if (kind == Kind::kGiven) good = on_given(header);
    else if (kind == Kind::kDone) good = on_done(header);
    else on_stop(header.request);
    in_begin_ += whole;
    if (!good) return false;
    while (left_ > 0 && in_begin_ < in_end_) {  // payload that was read with its header
      std::array<iovec, 1> piece;
      target(piece);
      const std::size_t step = std::min<std::size_t>(piece[0].iov_len, in_end_ - in_begin_);
      std::memcpy(piece[0].iov_base, in_.data() + in_begin_, step);
      in_begin_ += step;
      landed(step);
    }
  }
  if (in_begin_ == in_end_) {
    in_begin_ = in_end_ = 0;
    if (in_.size() > kInKeepBytes) std::vector<std::uint8_t>(kInBytes).swap(in_);
  } else if (in_.size() - in_end_ < sizeof(Header)) {
    std::memmove(in_.data(), in_.data() + in_begin_, in_end_ - in_begin_);
    in_end_ -= in_begin_;
    in_begin_ = 0;
  }
  return true;
}

bool Connection::on_hello(const Header& header) {
  Hello hello;
  const std::span<const std::uint8_t> body(in_.data() + in_begin_ + sizeof header, sizeof hello);
  if (const char* field = parse_hello(header, body, hello); field != nullptr) {
    why_ = std::string("the peer's greeting: ") + field;
    return false;
  }
  open_ = true;
  requests_max_ = hello.requests_max;
  if (peer_ != 0) shared_.lane_opened({peer_, id_, worker_});
  shared_.tell({EventKind::kOpened, id_, std::string(hello.incarnation.begin(), hello.incarnation.end())});
  pump();
  return true;
}

bool Connection::on_request(const Header& header) {
  const std::span<const std::uint8_t> body(in_.data() + in_begin_ + sizeof header, header.length);
  std::optional<Request> request = parse_request(body, header.position);
  if (!request) return fail("a request that does not parse");
  rows_served_ += request->rows.size();
  if (serving_.size() >= shared_.config.requests_max || rows_served_ > kRowsBudget) return fail("more requests than it may have out");
  const bool writing = static_cast<Kind>(header.kind) == Kind::kWrite;
  Serving serving;
  serving.taking = writing;
  serving.total = header.position;
  serving.rows = std::move(request->rows);
  Reason why = Reason::kNone;
  serving.grant = shared_.grants.open(request->access, serving.rows, writing, monotonic_now(), why);
  if (!serving.grant) serving.reason = why;
  const auto [at, fresh] = serving_.emplace(header.request, std::move(serving));
  if (!fresh) return fail("a request's number twice");
  const Serving& taken = at->second;
  if (taken.total == 0 || (!writing && !taken.grant)) {
    landing_over(header.request);
  } else if (!writing) {
    to_serve_.push_back(header.request);
  }
  return true;
}

bool Connection::on_data(const Header& header) {
  const auto found = asked_.find(header.request);
  if (found == asked_.end()) return fail("bytes that nobody asked for");
  Asked& to = found->second;
  if (!to.reading || header.position != to.moved || header.length > to.total - to.moved) return fail("bytes out of place");
  into_asked_ = &to;
  left_ = header.length;
  return true;
}

bool Connection::on_given(const Header& header) {
  const auto found = serving_.find(header.request);
  if (found == serving_.end()) return fail("bytes for nothing");
  Serving& to = found->second;
  if (!to.taking || header.position != to.moved || header.length > to.total - to.moved) return fail("bytes out of place");
  into_served_ = &to;
  into_request_ = header.request;
  left_ = header.length;
  return true;
}

bool Connection::on_done(const Header& header) {
  const auto found = asked_.find(header.request);
  if (found == asked_.end()) return fail("an answer to nothing");
  Asked& asked = found->second;
  const auto reason = static_cast<Reason>(header.reason);
  if (asked.job) {
    if (reason == Reason::kLanded && asked.moved != asked.total) return fail("an answer without its bytes");
    const bool known = reason == Reason::kLanded || reason == Reason::kRevoked || reason == Reason::kExpired ||
                       reason == Reason::kOutOfBounds || reason == Reason::kNotAllowed;
    if (!known) return fail("an answer that nobody can give");
    settle(asked, reason);
  }
  rows_asked_ -= asked.rows;
  asked_.erase(found);
  pump();
  return true;
}

void Connection::on_stop(std::uint64_t request) {
  const auto found = serving_.find(request);
  if (found == serving_.end()) return;  // it was answered meanwhile
  found->second.stopped = true;
  found->second.reason = Reason::kCancelled;
  if (found->second.taking) landing_over(request);  // what is being served is seen to where its next frame begins
}

std::size_t Connection::target(std::span<iovec> out) {
  if (into_asked_ != nullptr && into_asked_->job) {
    const Job& job = *into_asked_->job;
    return job.pieces(into_asked_->place, std::min(left_, job.layout().hashes() ? kHashBytes : kTurnBytes), out);
  }
  if (into_served_ != nullptr && into_served_->grant) {
    const Reason refused = touching_ ? Reason::kNone : into_served_->grant->enter(monotonic_now());
    if (refused == Reason::kNone) {
      touching_ = true;
      return pieces(*into_served_, left_, out);
    }
    into_served_->reason = refused;
    into_served_->grant = nullptr;
  }
  const std::span<std::byte> nowhere = sink();
  out[0] = {nowhere.data(), std::min<std::size_t>(nowhere.size(), left_)};
  return 1;
}

void Connection::landed(std::uint64_t bytes) {
  left_ -= bytes;
  if (into_asked_ != nullptr) {
    Asked& to = *into_asked_;
    to.moved += bytes;
    if (to.job && bytes > 0) {
      to.job->advance(to.place, bytes);
      if (to.job->layout().hashes()) to.hashed = to.job->hash(to.job->slice(to.slice), to.hash_place, to.hashed, to.moved);
      shared_.bytes_read += bytes;
    }
  }
  if (into_served_ != nullptr) {
    Serving& to = *into_served_;
    to.moved += bytes;
    if (to.grant) advance(to, bytes);
    if (touching_) {
      touching_ = false;
      shared_.bytes_taken += bytes;
      if (to.grant->leave()) shared_.tell({EventKind::kQuiet});
    }
    if (to.moved == to.total) landing_over(into_request_);
  }
  if (left_ == 0) {
    into_asked_ = nullptr;
    into_served_ = nullptr;
  }
}

// The last word on a peer's request that sends nothing more.
void Connection::landing_over(std::uint64_t request) {
  const auto found = serving_.find(request);
  put_control(control(), Kind::kDone, request, found->second.reason);
  rows_served_ -= found->second.rows.size();
  serving_.erase(found);
}

}  // namespace kvstore::tcp
