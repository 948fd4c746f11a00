// What goes out on a connection, and the jobs that ask for something over it.
#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/clock.hpp"
#include "connection.hpp"

namespace kvstore::tcp {

namespace {

constexpr std::uint64_t kTurnBytes = 2u << 20;
constexpr std::uint32_t kOursBytes = 256u << 10;  // of a WRITE's frame: what is left of one is copied when its job is stopped

}  // namespace

Connection::Connection(Shared& shared, std::uint64_t id, std::uint64_t peer, std::uint32_t worker, std::unique_ptr<Stream> stream)
    : shared_(shared), id_(id), peer_(peer), worker_(worker), stream_(std::move(stream)) {
  Hello hello;
  hello.requests_max = shared.config.requests_max;
  hello.incarnation = shared.config.incarnation;
  put_hello(out_, hello);
}

Connection::~Connection() = default;

std::uint32_t Connection::events() const noexcept {
  const bool has = out_.size() > out_sent_ || frame_.active || !later_.empty() || !to_serve_.empty() || !to_write_.empty();
  const bool out = stream_->reads_by_writing() || (has && !stream_->writes_by_reading());
  return EPOLLIN | (out ? static_cast<std::uint32_t>(EPOLLOUT) : 0u);
}

void Connection::set_peer(std::uint64_t peer) {
  if (peer_ != 0) shared_.lane_closed(peer_, id_);
  peer_ = peer;
}

std::vector<std::uint8_t>& Connection::control() { return frame_.active ? later_ : out_; }

bool Connection::send() {
  for (std::uint64_t turn = 0; turn < kTurnBytes;) {
    if (!frame_.active) next_frame();
    std::array<iovec, kPiecesMax + 3> list;
    std::size_t count = 0;
    if (out_.size() > out_sent_) list[count++] = {out_.data() + out_sent_, out_.size() - out_sent_};
    if (frame_.active) {
      if (frame_.head_sent < frame_.head.size())
        list[count++] = {frame_.head.data() + frame_.head_sent, frame_.head.size() - frame_.head_sent};
      bool all = false;
      count += sources(std::span(list).subspan(count, kPiecesMax), all);
      if (all && !later_.empty()) list[count++] = {later_.data(), later_.size()};
    }
    if (count == 0) return true;
    std::uint64_t offered = 0;
    for (std::size_t i = 0; i < count; ++i) offered += list[i].iov_len;
    const std::int64_t moved = stream_->write(std::span(list).first(count));
    if (moved == -EAGAIN) return true;
    if (moved < 0) return fail(stream_->trouble().c_str());
    sent(static_cast<std::uint64_t>(moved));
    turn += static_cast<std::uint64_t>(moved);
    if (static_cast<std::uint64_t>(moved) < offered) return true;  // the socket is full
  }
  return true;
}

// Memory that the frame's payload still lies in. `all`: it is all of it.
std::size_t Connection::sources(std::span<iovec> out, bool& all) {
  std::size_t count = 0;
  if (!frame_.aside.empty()) {
    out[count++] = {frame_.aside.data() + frame_.aside_sent, frame_.aside.size() - frame_.aside_sent};
  } else if (frame_.ours) {
    const Asked& asked = asked_.at(frame_.request);
    count = asked.job->pieces(asked.place, frame_.left, out);
  } else {
    count = pieces(serving_.at(frame_.request), frame_.left, out);
  }
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < count; ++i) bytes += out[i].iov_len;
  all = bytes == frame_.left;
  return count;
}

void Connection::sent(std::uint64_t bytes) {
  std::uint64_t step = std::min<std::uint64_t>(bytes, out_.size() - out_sent_);
  out_sent_ += step;
  bytes -= step;
  if (out_sent_ == out_.size()) {
    out_.clear();
    out_sent_ = 0;
  }
  if (!frame_.active) return;
  step = std::min<std::uint64_t>(bytes, frame_.head.size() - frame_.head_sent);
  frame_.head_sent += step;
  bytes -= step;
  step = std::min(bytes, frame_.left);
  frame_.left -= step;
  bytes -= step;
  if (!frame_.aside.empty()) {
    frame_.aside_sent += step;
  } else if (frame_.ours) {
    Asked& asked = asked_.at(frame_.request);
    asked.job->advance(asked.place, step);
    asked.moved += step;
    shared_.bytes_written += step;
  } else {
    Serving& serving = serving_.at(frame_.request);
    advance(serving, step);
    serving.moved += step;
    shared_.bytes_served += step;
  }
  if (frame_.left == 0 && frame_.head_sent == frame_.head.size()) {
    frame_over();
    out_sent_ = bytes;  // of what was later_
  }
}

// The frame has been sent. later_ may have been sent in part: whoever calls knows how much.
void Connection::frame_over() {
  const std::uint64_t request = frame_.request;
  const bool ours = frame_.ours, aside = !frame_.aside.empty();
  frame_ = {};
  out_ = std::move(later_);
  later_ = {};
  if (ours) {
    const auto found = asked_.find(request);
    if (found != asked_.end() && found->second.job && found->second.moved < found->second.total) to_write_.push_back(request);
    return;
  }
  const auto found = serving_.find(request);
  if (!aside && found->second.grant->leave()) shared_.tell({EventKind::kQuiet});
  if (found->second.moved < found->second.total) {
    to_serve_.push_back(request);  // aside: it is refused there
  } else {
    rows_served_ -= found->second.rows.size();  // DONE has gone with the frame
    serving_.erase(found);
  }
}

// Takes up the next DATA frame: the peer's requests and ours in turn. False: there is none.
bool Connection::next_frame() {
  while (!to_serve_.empty() || !to_write_.empty()) {
    const bool ours = to_serve_.empty() || (ours_next_ && !to_write_.empty());
    ours_next_ = !ours;
    std::deque<std::uint64_t>& from = ours ? to_write_ : to_serve_;
    const std::uint64_t request = from.front();
    from.pop_front();
    if (ours ? begin_ours(request) : begin_served(request)) return true;
  }
  return false;
}

bool Connection::begin_served(std::uint64_t request) {
  Serving& serving = serving_.at(request);
  if (!serving.stopped) {
    const Reason refused = serving.grant->enter(monotonic_now());
    if (refused != Reason::kNone) serving.reason = refused;
  }
  if (serving.reason != Reason::kLanded) {
    landing_over(request);
    return false;
  }
  const auto length = static_cast<std::uint32_t>(std::min<std::uint64_t>(kDataBytesMax, serving.total - serving.moved));
  std::vector<std::uint8_t> head;
  put_data(head, Kind::kData, request, serving.moved, length);
  frame_.active = true;
  frame_.request = request;
  std::copy(head.begin(), head.end(), frame_.head.begin());
  frame_.left = length;
  if (serving.moved + length == serving.total) put_control(later_, Kind::kDone, request, Reason::kLanded);
  return true;
}

bool Connection::begin_ours(std::uint64_t request) {
  const auto found = asked_.find(request);
  if (found == asked_.end() || !found->second.job) return false;  // stopped, and STOP was sent
  const Asked& asked = found->second;
  const auto length = static_cast<std::uint32_t>(std::min<std::uint64_t>(kOursBytes, asked.total - asked.moved));
  std::vector<std::uint8_t> head;
  put_data(head, Kind::kGiven, request, asked.moved, length);
  frame_.active = true;
  frame_.ours = true;
  frame_.request = request;
  std::copy(head.begin(), head.end(), frame_.head.begin());
  frame_.left = length;
  return true;
}

// Copies what is left of the frame, so that nothing refers to its memory any more.
void Connection::put_aside() {
  std::vector<std::uint8_t> aside;
  aside.reserve(frame_.left);
  while (aside.size() < frame_.left) {
    std::array<iovec, 1> piece;
    if (frame_.ours) {
      Asked& asked = asked_.at(frame_.request);
      asked.job->pieces(asked.place, frame_.left - aside.size(), piece);
      asked.job->advance(asked.place, piece[0].iov_len);
      asked.moved += piece[0].iov_len;
    } else {
      Serving& serving = serving_.at(frame_.request);
      pieces(serving, frame_.left - aside.size(), piece);
      advance(serving, piece[0].iov_len);
      serving.moved += piece[0].iov_len;
    }
    const auto* from = static_cast<const std::uint8_t*>(piece[0].iov_base);
    aside.insert(aside.end(), from, from + piece[0].iov_len);
  }
  frame_.aside = std::move(aside);
  frame_.aside_sent = 0;
}

void Connection::detach_ended() {
  if (!frame_.active || frame_.ours || !frame_.aside.empty() || frame_.left == 0) return;
  Serving& serving = serving_.at(frame_.request);
  if (!serving.grant->ended.load()) return;
  put_aside();
  if (serving.grant->leave()) shared_.tell({EventKind::kQuiet});
}

// ---- jobs

void Connection::ask(const std::shared_ptr<Job>& job, std::size_t slice, std::uint32_t tries) {
  waiting_.push_back({job, slice, tries});
}

bool Connection::flush() {
  pump();
  return send();
}

// Sends what waits, as far as the peer takes it.
void Connection::pump() {
  while (open_ && !waiting_.empty() && asked_.size() < requests_max_) {
    Waiting& next = waiting_.front();
    if (next.job->stopped() != Reason::kNone) {
      shared_.settled(next.job, next.slice, Reason::kNone);
      waiting_.pop_front();
      continue;
    }
    const Job& job = *next.job;
    const Slice& slice = job.slice(next.slice);
    const std::size_t rows = slice.row_end - slice.row_first;
    if (rows_asked_ > 0 && rows_asked_ + rows > kRowsBudget) return;
    const bool reading = job.direction() == Direction::kRead;
    const std::uint64_t request = next_request_++;
    Asked asked;
    asked.job = next.job;
    asked.slice = next.slice;
    asked.tries = next.tries;
    asked.reading = reading;
    asked.rows = rows;
    asked.total = job.layout().bytes_of(slice);
    asked.place = asked.hash_place = job.begin(slice);
    std::vector<std::uint8_t>& out = control();
    put_request(out, reading ? Kind::kRead : Kind::kWrite, request, asked.total, job.access(next.slice), rows);
    for (std::uint32_t i = slice.row_first; i < slice.row_end; ++i) {
      const transfer::Row& row = job.layout().rows()[i];
      append(out, WireRow{row.remote_offset, row.length});
    }
    asked_.emplace(request, std::move(asked));
    rows_asked_ += rows;
    if (!reading) to_write_.push_back(request);
    waiting_.pop_front();
  }
}

bool Connection::withdraw(const Job& job) {
  std::erase_if(waiting_, [&](const Waiting& waiting) {
    if (waiting.job.get() != &job) return false;
    shared_.settled(waiting.job, waiting.slice, Reason::kNone);
    return true;
  });
  for (auto& [request, asked] : asked_) {
    if (asked.job.get() != &job) continue;
    if (frame_.active && frame_.ours && frame_.request == request && frame_.aside.empty()) {
      if (frame_.left > 0) put_aside();
    }
    put_control(control(), Kind::kStop, request, Reason::kNone);
    settle(asked, Reason::kNone);
  }
  return send();
}

void Connection::settle(Asked& asked, Reason reason) {
  const std::shared_ptr<Job> job = std::move(asked.job);
  asked.job = nullptr;
  shared_.settled(job, asked.slice, reason);
}

void Connection::end(const std::string& why) {
  if (why_.empty()) why_ = why;
  if (peer_ != 0) shared_.lane_closed(peer_, id_);
  if (frame_.active && !frame_.ours && frame_.aside.empty()) {
    if (serving_.at(frame_.request).grant->leave()) shared_.tell({EventKind::kQuiet});
  }
  // Nothing is received any more: what was out may go elsewhere.
  for (auto& [request, asked] : asked_)
    if (asked.job) waiting_.push_back({std::move(asked.job), asked.slice, asked.tries});
  asked_.clear();
  for (const Waiting& left : waiting_) shared_.lost(peer_, left.job, left.slice, left.tries);
  waiting_.clear();
  shared_.tell({EventKind::kClosed, id_, why_});
}

std::size_t Connection::pieces(const Serving& serving, std::uint64_t bytes, std::span<iovec> out) {
  std::size_t count = 0, row = serving.row;
  std::uint64_t offset = serving.offset;
  for (; bytes > 0 && count < out.size() && row < serving.rows.size(); ++row, offset = 0) {
    const std::uint64_t step = std::min(bytes, serving.rows[row].length - offset);
    out[count++] = {serving.grant->base + serving.rows[row].offset + offset, static_cast<std::size_t>(step)};
    bytes -= step;
  }
  return count;
}

void Connection::advance(Serving& serving, std::uint64_t bytes) {
  while (bytes > 0) {
    const std::uint64_t step = std::min(bytes, serving.rows[serving.row].length - serving.offset);
    serving.offset += step;
    bytes -= step;
    if (serving.offset == serving.rows[serving.row].length) {
      ++serving.row;
      serving.offset = 0;
    }
  }
}

}  // namespace kvstore::tcp
