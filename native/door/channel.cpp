#include "channel.hpp"

#include <cerrno>
#include <chrono>

#include "answers.hpp"
#include "base/clock.hpp"

namespace kvstore::door {
namespace {

constexpr std::size_t kReceiveBytes = 256u << 10;
constexpr std::size_t kKeepBytes = 1u << 20;

}  // namespace

Channel::Channel(std::unique_ptr<Wire> wire) : wire_(std::move(wire)), in_(kReceiveBytes) {}

void Channel::break_off() {
  broken_ = true;
  std::vector<std::function<void()>> ready;
  {
    std::lock_guard lock(mutex_);
    for (auto& [id, pending] : pending_)
      if (pending.ready) ready.push_back(pending.ready);
    changed_.notify_all();
  }
  for (const auto& call : ready) call();
}

std::uint64_t Channel::open(std::function<void()> ready) {
  std::lock_guard lock(mutex_);
  const std::uint64_t id = next_++;
  pending_[id].ready = std::move(ready);
  return id;
}

void Channel::abandon(std::uint64_t request) {
  std::optional<Answer> orphan;
  {
    std::lock_guard lock(mutex_);
    const auto found = pending_.find(request);
    if (found == pending_.end()) return;
    orphan = std::move(found->second.answer);
    pending_.erase(found);
  }
  if (orphan) undo(orphan->header, orphan->body);
}

void Channel::later(Verb verb, std::span<const std::uint8_t> body) {
  std::lock_guard lock(outbox_);
  const std::size_t start = waiting_.begin(verb, kNoAnswer, 0);
  waiting_.append(body.data(), body.size());
  waiting_.finish(start);
  waits_ = true;
}

Status Channel::send(std::span<const std::uint8_t> frames, Nanos deadline) {
  std::lock_guard lock(sending_);
  {
    std::lock_guard outbox(outbox_);
    going_.append(waiting_.bytes.data(), waiting_.bytes.size());
    waiting_.bytes.clear();
    waits_ = false;
  }
  iovec pieces[2] = {{going_.bytes.data(), going_.bytes.size()},
                     {const_cast<std::uint8_t*>(frames.data()), frames.size()}};
  std::size_t left = pieces[0].iov_len + pieces[1].iov_len;
  bool begun = false;
  while (left > 0) {
    if (broken_) return Status::kUnavailable;
    const ssize_t sent = wire_->send(pieces);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
      break_off();
      return Status::kUnavailable;
    }
    auto step = static_cast<std::size_t>(std::max<ssize_t>(sent, 0));
    begun = begun || step > 0 || wire_->sealed();
    left -= step;
    for (iovec& piece : pieces) {
      const std::size_t of = std::min(step, piece.iov_len);
      piece.iov_base = static_cast<std::uint8_t*>(piece.iov_base) + of;
      piece.iov_len -= of;
      step -= of;
    }
    if (left == 0) break;
    const Nanos now = monotonic_now();
    if (now >= deadline) {
      if (begun) break_off();  // half a frame has gone
      waits_ = true;
      return Status::kLate;
    }
    read_for_all(now);
  }
  going_.bytes.clear();
  return Status::kOk;
}

Status Channel::send_at_once(std::span<const std::uint8_t> frames) {
  const std::unique_lock lock(sending_, std::try_to_lock);
  if (!lock || waits_ || broken_ || wire_->sealed()) return Status::kLate;
  const ssize_t sent = wire_->send_at_once(frames);
  if (sent <= 0) return Status::kLate;  // no room, or an end: send() finds out
  const auto rest = frames.subspan(static_cast<std::size_t>(sent));
  if (!rest.empty()) {
    going_.append(rest.data(), rest.size());
    waits_ = true;
  }
  return Status::kOk;
}

bool Channel::take(std::uint64_t request, Answer& out) {
  std::lock_guard lock(mutex_);
  const auto found = pending_.find(request);
  if (found == pending_.end() || !found->second.answer) return false;
  out = std::move(*found->second.answer);
  pending_.erase(found);
  return true;
}

bool Channel::has(std::uint64_t request) {
  std::lock_guard lock(mutex_);
  const auto found = pending_.find(request);
  return found != pending_.end() && found->second.answer.has_value();
}

Status Channel::wait(std::uint64_t request, Nanos deadline, Answer& out) {
  for (;;) {
    if (take(request, out)) return Status::kOk;
    if (broken_) return Status::kUnavailable;
    const Nanos now = monotonic_now();
    if (now >= deadline) return Status::kLate;
    if (!dedicated_) {
      read_for_all(deadline, request);
    } else {
      std::unique_lock lock(mutex_);
      const auto found = pending_.find(request);
      if (found == pending_.end()) return Status::kUnavailable;
      if (!found->second.answer) {
        ++waiters_;
        changed_.wait_for(lock, std::chrono::nanoseconds(std::min(deadline - now, kSlice)));
        --waiters_;
      }
    }
    if (undone_.exchange(false)) flush(now + kSlice);
  }
}

void Channel::read_slice() {
  read_for_all(monotonic_now() + kSlice);
  if (undone_.exchange(false)) flush(monotonic_now() + kSlice);
}

// Reads once, or waits a while for the one who reads. One reader at a time, because it owns the buffer.
void Channel::read_for_all(Nanos deadline, std::uint64_t unless_answered) {
  std::unique_lock lock(mutex_);
  if (const auto own = pending_.find(unless_answered); own != pending_.end() && own->second.answer) return;
  if (reading_) {
    const Nanos left = std::clamp<Nanos>(deadline - monotonic_now(), 0, kSlice);
    ++waiters_;
    changed_.wait_for(lock, std::chrono::nanoseconds(left));
    --waiters_;
    return;
  }
  reading_ = true;
  lock.unlock();
  if (receive(deadline)) dispatch();
  lock.lock();
  reading_ = false;
  if (waiters_ > 0) changed_.notify_all();  // one of them reads on
}

bool Channel::receive(Nanos deadline) {
  const Nanos start = monotonic_now();
  ssize_t got = look_again(start);
  if (got < 0 && errno == EAGAIN) got = sleep_for_it(deadline - monotonic_now());
  const int error = errno;
  spin_.waited(monotonic_now() - start);
  if (got > 0) {
    end_ += static_cast<std::size_t>(got);
    return true;
  }
  if (got < 0 && (error == EAGAIN || error == EINTR)) return false;
  break_off();
  return false;
}

// As recv(), for as long as looking again has paid lately. A thread that reads for everybody has nobody waiting on its wake.
ssize_t Channel::look_again(Nanos start) {
  ssize_t got = -1;
  errno = EAGAIN;
  while (!dedicated_ && monotonic_now() - start < spin_.window()) {
    got = wire_->receive(in_.data() + end_, in_.size() - end_, false);
    if (got >= 0 || errno != EAGAIN) return got;
    if (!spin_.give_way()) break;
  }
  errno = EAGAIN;
  return got;
}

ssize_t Channel::sleep_for_it(Nanos left) {
  const bool waits = left >= 2 * kSlice;  // a whole slice, with one system call
  if (!waits && !wire_->readable(left)) return -1;
  return wire_->receive(in_.data() + end_, in_.size() - end_, waits);
}

void Channel::dispatch() {
  std::vector<std::function<void()>> ready;
  for (;;) {
    FrameHeader header;
    const std::size_t have = end_ - begin_;
    if (have < sizeof header) break;
    std::memcpy(&header, in_.data() + begin_, sizeof header);
    if (header.body_bytes > frame_bytes_max_ || (header.flags & kAnswer) == 0 || header.version != kFrameVersion ||
        header.verb == Verb::kError) {
      return break_off();
    }
    const std::size_t whole = sizeof header + header.body_bytes;
    if (have < whole) {
      if (in_.size() - begin_ < whole) {
        std::memmove(in_.data(), in_.data() + begin_, have);
        begin_ = 0;
        end_ = have;
        if (in_.size() < whole) in_.resize(whole);
      }
      break;
    }
    const std::span<const std::uint8_t> body(in_.data() + begin_ + sizeof header, header.body_bytes);
    begin_ += whole;
    bool wanted = false;
    {
      std::lock_guard lock(mutex_);
      if (const auto found = pending_.find(header.request); found != pending_.end() && !found->second.answer) {
        wanted = true;
        found->second.answer = Answer{header, {body.begin(), body.end()}};
        if (found->second.ready) ready.push_back(found->second.ready);
      }
    }
    if (!wanted) undo(header, body);
  }
  if (begin_ == end_) {
    begin_ = end_ = 0;
    if (in_.size() > kKeepBytes) std::vector<std::uint8_t>(kReceiveBytes).swap(in_);
  } else if (in_.size() - end_ < kReceiveBytes / 4) {
    std::memmove(in_.data(), in_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
    if (in_.size() == end_) in_.resize(in_.size() * 2);
  }
  for (const auto& call : ready) call();
}

void Channel::undo(const FrameHeader& header, std::span<const std::uint8_t> body) {
  if (header.status != Status::kOk) return;
  FrameWriter give_back;
  if (header.verb == Verb::kHold) {
    HoldAnswer held;
    if (!parse_hold(body, held) || held.head.hold == 0) return;
    give_back.put(ReleaseRequest{1, 0});
    give_back.put(held.head.hold);
    later(Verb::kRelease, give_back.bytes);
    undone_ = true;
  } else if (header.verb == Verb::kReserve) {
    std::vector<WireReserved> rows;
    if (!parse_reserved(body, rows)) return;
    std::vector<WireTicket> granted;
    for (const WireReserved& row : rows)
      if (row.status == 0) granted.push_back(row.ticket);
    if (granted.empty()) return;
    give_back.put(TicketsRequest{static_cast<std::uint32_t>(granted.size()), 0});
    give_back.append(granted.data(), granted.size() * sizeof(WireTicket));
    later(Verb::kAbort, give_back.bytes);
    undone_ = true;
  }
}

}  // namespace kvstore::door
