#include "reactor.hpp"

#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <utility>

namespace kvstore::rdma {

namespace {

constexpr std::uint64_t kInboxTag = ~std::uint64_t{0};
constexpr auto kLookEvery = std::chrono::milliseconds(1);
constexpr std::uint64_t kNewsTag = std::uint64_t{1} << 32;  // and the device

void watch(int epoll, int fd, std::uint64_t tag) {
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = tag;
  ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

}  // namespace

Reactor::Reactor(const EngineConfig& config)
    : config_(config), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
  std::string why;
  verbs_ = verbs(&why);
  if (verbs_ == nullptr) throw std::runtime_error(why);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kInboxTag;
  ::epoll_ctl(epoll_, EPOLL_CTL_ADD, orders_.fd(), &event);
}

Reactor::~Reactor() { ::close(epoll_); }

std::vector<Event> Reactor::take_events() {
  events_.heard();
  return events_.take();
}

EngineStats Reactor::stats() const { return {requests_, bytes_, again_, flushes_}; }

bool Reactor::wait_ended(std::chrono::nanoseconds wait) {
  std::unique_lock lock(mutex_);
  return end_.wait_for(lock, wait, [this] { return ended_; });
}

// ---- the thread

void Reactor::run() {
  Clock::time_point busy_until{}, look_at{};
  while (true) {
    obey();
    if (closing_ && lanes_.empty()) break;
    flush_lingering();
    if (poll()) {
      const Clock::time_point now = Clock::now();
      busy_until = now + config_.spin;
      if (now >= look_at) {  // a device that is never idle must not hide what happens to another
        look(0);
        look_at = now + kLookEvery;
      }
      continue;
    }
    const bool waiting = std::ranges::any_of(lanes_, [](const auto& entry) { return entry.second->out() > 0; });
    if (waiting && Clock::now() < busy_until) continue;
    if (!arm_and_look()) look(patience());
  }
  const std::lock_guard lock(mutex_);
  ended_ = true;
  end_.notify_all();
}

void Reactor::obey() {
  for (const Order& order : orders_.take()) order(*this);
}

// What completes after the arming wakes the thread; what had completed before is found by this look.
bool Reactor::arm_and_look() {
  for (ibv_cq* cq : cqs_) ibv_req_notify_cq(cq, 0);
  return poll();
}

int Reactor::patience() const {
  if (lingering_.empty()) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(lingering_.front().until - Clock::now());
  return static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, 60'000));
}

void Reactor::look(int patience_ms) {
  std::array<epoll_event, 16> events;
  const int count = ::epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), patience_ms);
  for (int i = 0; i < count; ++i) {
    const std::uint64_t tag = events[static_cast<std::size_t>(i)].data.u64;
    if (tag == kInboxTag) {
      orders_.heard();
    } else if (tag >= kNewsTag) {
      read_news(static_cast<std::size_t>(tag - kNewsTag));
    } else {
      read_events(static_cast<std::size_t>(tag));
    }
  }
}

void Reactor::read_events(std::size_t device) {
  ibv_cq* cq = nullptr;
  void* context = nullptr;
  unsigned count = 0;
  while (verbs_->get_cq_event(cqs_[device]->channel, &cq, &context) == 0) ++count;  // the channel does not block
  if (count > 0) verbs_->ack_cq_events(cqs_[device], count);
}

// A port that has lost its link answers nothing: what is out over it moves now, rather than when its retries have run out.
void Reactor::read_news(std::size_t device) {
  ibv_async_event news{};
  while (verbs_->get_async_event(cqs_[device]->context, &news) == 0) {  // the descriptor does not block
    const bool lost = news.event_type == IBV_EVENT_DEVICE_FATAL ||
                      (news.event_type == IBV_EVENT_PORT_ERR && news.element.port_num == Route{}.port);
    verbs_->ack_async_event(&news);
    if (!lost) continue;
    std::vector<Open*> idle;
    for (const auto& [generation, lane] : lanes_) {
      if (lane->lane.device != device) continue;
      break_lane(*lane, IBV_WC_LOC_QP_OP_ERR);
      if (lane->out() == 0) idle.push_back(lane.get());
    }
    for (Open* lane : idle) retire(*lane);
  }
}

void Reactor::flush_lingering() {
  while (!lingering_.empty() && lingering_.front().until <= Clock::now()) {
    const std::uint64_t token = lingering_.front().token;
    lingering_.pop_front();
    if (!jobs_.contains(token)) continue;
    for (const auto& [generation, lane] : lanes_) {
      const bool carries = !lane->broken && std::ranges::any_of(lane->flights, [token](const Flight& flight) {
        return flight.job != nullptr && flight.job->token() == token;
      });
      if (!carries) continue;
      ++flushes_;
      break_lane(*lane, 0);
    }
  }
}

// ---- orders

void Reactor::add_device(ibv_cq* cq) {
  watch(epoll_, cq->channel->fd, cqs_.size());
  watch(epoll_, cq->context->async_fd, kNewsTag + cqs_.size());
  cqs_.push_back(cq);
}

void Reactor::add_lane(const Lane& lane) {
  Peer& peer = peers_[lane.peer];
  if (peer.gone || closing_) return tell({EventKind::kLaneDown, lane.id});
  auto open = std::make_unique<Open>();
  open->lane = lane;
  open->generation = next_generation_++;
  open->flights.resize(config_.window);
  for (std::uint32_t place = config_.window; place > 0; --place) open->free.push_back(place - 1);
  peer.lanes.push_back(open.get());
  generations_[lane.id] = open->generation;
  Open& made = *lanes_.emplace(open->generation, std::move(open)).first->second;
  if (lane.trial.bytes > 0) return try_out(made);
  tried(made, IBV_WC_SUCCESS);
  pump(peer);
}

void Reactor::drop_lane(std::uint64_t lane) {
  const auto found = generations_.find(lane);
  if (found == generations_.end()) return;
  Open& open = *lanes_.at(found->second);
  break_lane(open, 0);
  if (open.out() == 0) retire(open);
}

void Reactor::give_up(std::uint64_t id, bool gone) {
  Peer& peer = peers_[id];
  peer.gone |= gone;
  if (gone || std::ranges::none_of(peer.lanes, [](const Open* lane) { return lane->takes(); })) drain_queue(peer, Reason::kPeerGone);
  if (!gone) return;
  for (Open* lane : std::vector<Open*>(peer.lanes)) drop_lane(lane->lane.id);
}

void Reactor::forget(std::uint64_t peer) {
  const auto found = peers_.find(peer);
  if (found != peers_.end() && found->second.lanes.empty() && !found->second.waits()) peers_.erase(found);
}

void Reactor::end_access(std::uint64_t peer, std::uint64_t access, Reason reason) {
  Peer& of = peers_[peer];
  of.ended[access] = reason;
  pump(of);
  // Nothing is asked for by it any more: what is remembered serves only requests that were under way.
  if (!of.waits() && std::ranges::all_of(of.lanes, [](const Open* lane) { return lane->out() == 0; })) of.ended.clear();
}

void Reactor::submit(std::shared_ptr<Job> job, std::uint64_t id) {
  const std::vector<Slice>& slices = job->layout().slices();
  if (slices.empty()) {
    job->finish();
    return tell({EventKind::kFinished, job->token()});
  }
  jobs_.emplace(job->token(), job);
  Peer& peer = peers_[id];
  for (std::uint32_t i = 0; i < slices.size(); ++i) {
    for (std::uint32_t row = slices[i].row_first, end = row; row < slices[i].row_end; row = end) {
      const std::uint32_t near = job->near(row);
      while (end < slices[i].row_end && job->near(end) == near) ++end;
      peer.queues[near].push_back({job, i, row, end, 0});
    }
  }
  if (peer.gone || closing_) return drain_queue(peer, Reason::kPeerGone);
  pump(peer);
}

void Reactor::stop(std::uint64_t token, Reason reason) {
  const auto found = jobs_.find(token);
  if (found == jobs_.end()) return;
  const std::shared_ptr<Job> job = found->second;
  job->stop(reason);
  for (auto& [id, peer] : peers_) {
    std::vector<Run> mine;
    for (auto& [near, queue] : peer.queues) {
      std::erase_if(queue, [&](const Run& run) {
        if (run.job == job) mine.push_back(run);
        return run.job == job;
      });
    }
    for (const Run& run : mine) row_done(job, run.slice, run.row_end - run.row, Reason::kNone);
  }
  if (!job->over()) lingering_.push_back({Clock::now() + config_.linger, token});
}

void Reactor::close() {
  closing_ = true;
  for (auto& [id, peer] : peers_) drain_queue(peer, Reason::kPeerGone);
  std::vector<std::uint64_t> open;
  for (const auto& [lane, generation] : generations_) open.push_back(lane);
  for (const std::uint64_t lane : open) drop_lane(lane);
}

}  // namespace kvstore::rdma
