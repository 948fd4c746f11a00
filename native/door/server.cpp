// The door's thread: sockets, buffers, deadlines. What frames mean is in verbs.cpp. Rules: server.hpp.
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>
#include <system_error>

#include "base/clock.hpp"
#include "core/process.hpp"
#include "server_impl.hpp"

namespace kvstore::door {
namespace {

constexpr std::size_t kReceiveBytes = 256u << 10;   // what a peer's buffer has room for, at least
constexpr std::size_t kKeepBytes = 1u << 20;        // larger buffers are given back when they are empty
constexpr std::size_t kHelloBytesMax = 4u << 10;    // of the first frame, whoever sends it: nobody has asked who that is
constexpr std::size_t kPauseBytes = 1u << 20;       // a peer with so much to take is not listened to
constexpr Nanos kHousekeeping = 100'000'000;
constexpr Nanos kCensus = 1'000'000'000;
constexpr std::uint64_t kListenerTag = 0, kWakeTag = ~std::uint64_t{0};

[[noreturn]] void fail(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

void watch(int epoll, int op, int fd, std::uint32_t events, std::uint64_t tag) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = tag;
  if (epoll_ctl(epoll, op, fd, &event) != 0 && op == EPOLL_CTL_ADD) fail("epoll_ctl");
}

}  // namespace

// ---- what other threads bring

Inbox::~Inbox() { close(wake_event); }

void Inbox::wake() const {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(wake_event, &one, sizeof one);
}

bool Inbox::push(Item&& item) {
  bool first = false;
  {
    std::lock_guard lock(mutex);
    if (closed) return false;
    first = items.empty();
    items.push_back(std::move(item));
    filled = true;
  }
  if (first) wake();
  return true;
}

// ---- life

Door::Impl::Impl(NodeCore& core_, int listener_, int payload_fd, std::uint64_t payload_bytes, const DoorConfig& config_)
    : core(core_), config(config_), payload(payload_fd, payload_bytes, transfer::Access::kReadWrite),
      listener(fcntl(listener_, F_DUPFD_CLOEXEC, 3)) {
  if (listener < 0) fail("listener");
  const int wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  request_event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  epoll = epoll_create1(EPOLL_CLOEXEC);
  if (wake < 0 || request_event < 0 || epoll < 0) fail("eventfd or epoll");
  inbox = std::make_shared<Inbox>(wake);
  inbox->door = this;
  fcntl(listener, F_SETFL, fcntl(listener, F_GETFL) | O_NONBLOCK);
  watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, kListenerTag);
  watch(epoll, EPOLL_CTL_ADD, wake, EPOLLIN, kWakeTag);
}

Door::Impl::~Impl() {
  for (const int fd : {listener, epoll, request_event}) close(fd);
}

Door::Door(NodeCore& core, int listener, int payload_fd, std::uint64_t payload_bytes, const DoorConfig& config)
    : impl_(std::make_unique<Impl>(core, listener, payload_fd, payload_bytes, config)) {}

Door::~Door() { stop(); }

void Door::start() {
  if (impl_->thread.joinable()) return;
  const std::weak_ptr<Inbox> inbox = impl_->inbox;
  impl_->core.on_earlier_deadline([inbox] {
    if (const auto open = inbox.lock(); open && open->thread.load() != std::this_thread::get_id()) open->wake();
  });
  impl_->thread = std::thread([this] { impl_->run(); });
}

void Door::stop() {
  if (!impl_->thread.joinable()) return;
  impl_->stopping = true;
  impl_->inbox->wake();
  impl_->thread.join();
  impl_->core.on_earlier_deadline(nullptr);
}

void Door::Impl::run() {
  inbox->thread = std::this_thread::get_id();
  std::array<epoll_event, 64> events;
  while (!stopping) {
    const int ready = await(events);
    const Nanos now = monotonic_now();
    // First, so that what Python has allowed holds for every frame that was sent after it.
    if (inbox->filled) take_inbox(now);
    for (int i = 0; i < ready; ++i) {
      const std::uint64_t tag = events[static_cast<std::size_t>(i)].data.u64;
      if (tag == kListenerTag) {
        accept_all(now);
      } else if (tag == kWakeTag) {
        take_inbox(now);
      } else if (Connection* peer = find(tag)) {
        on_event(*peer, events[static_cast<std::size_t>(i)].events, now);
      }
    }
    if (const auto deadline = core.next_deadline(); deadline && *deadline <= now) core.tick(now);
    if (now >= next_housekeeping) housekeep(now);
    for (const OwnerId owner : answered)
      if (Connection* peer = find(owner)) flush(*peer, now);
    answered.clear();
    bury();
    std::lock_guard lock(shared);
    counts = tally;
  }
  {
    std::lock_guard lock(inbox->mutex);
    inbox->closed = true;
    inbox->items.clear();
  }
  for (auto& [owner, peer] : peers) close_peer(*peer);
  bury();
}

// Looks again for a while, if that has paid lately, and then sleeps.
int Door::Impl::await(std::span<epoll_event> events) {
  const Nanos start = monotonic_now();
  const auto room = static_cast<int>(events.size());
  Nanos now = start;
  int ready = 0;
  while (now - start < spin.window()) {
    ready = epoll_wait(epoll, events.data(), room, 0);
    if (ready != 0 || !spin.give_way()) break;
    now = monotonic_now();
  }
  if (ready == 0) {
    ready = epoll_wait(epoll, events.data(), room, wait_ms(now));
    now = monotonic_now();
  }
  spin.waited(now - start);
  return ready;
}

int Door::Impl::wait_ms(Nanos now) const {
  Nanos until = next_housekeeping;
  if (const auto deadline = core.next_deadline(); deadline && *deadline < until) until = *deadline;
  return until <= now ? 0 : static_cast<int>(std::min<Nanos>((until - now + 999'999) / 1'000'000, 1'000));
}

Connection* Door::Impl::find(OwnerId owner) {
  const auto found = peers.find(owner);
  return found == peers.end() || found->second->state == Connection::State::kClosed ? nullptr : found->second.get();
}

// ---- connections

void Door::Impl::accept_all(Nanos now) {
  for (;;) {
    const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      if (errno == EMFILE || errno == ENFILE) {  // else epoll would spin on it
        watch(epoll, EPOLL_CTL_MOD, listener, 0, kListenerTag);
        listening = false;
      }
      if (errno == EINTR || errno == ECONNABORTED) continue;
      return;
    }
    ucred who{static_cast<pid_t>(0), static_cast<uid_t>(-1), static_cast<gid_t>(-1)};
    socklen_t size = sizeof who;
    const bool known = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0;
    // The last quarter is for those who are trusted: strangers that only connect keep no engine out.
    const std::uint32_t most = known && trusts(who.uid) ? config.connections_max : config.connections_max - config.connections_max / 4;
    if (peers.size() >= most) {
      FrameWriter no;
      no.error(Verb::kError, 0, 0, Status::kRejected, "connections_max", "too many connections", most);
      [[maybe_unused]] const auto sent = send(fd, no.bytes.data(), no.bytes.size(), MSG_NOSIGNAL);
      close(fd);
      tally.refused_full += 1;
      continue;
    }
    auto peer = std::make_unique<Connection>();
    peer->fd = fd;
    peer->owner = core.new_owner();
    peer->uid = who.uid;
    peer->pid = who.pid;
    peer->hello_by = now + Nanos{config.hello_ms_max} * 1'000'000;
    peer->in.resize(kReceiveBytes);
    peer->armed = EPOLLIN;
    watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, peer->owner);
    peers.emplace(peer->owner, std::move(peer));
    next_housekeeping = std::min(next_housekeeping, now + kHousekeeping);
    tally.accepted += 1;
    tally.connections += 1;
  }
}

void Door::Impl::on_event(Connection& peer, std::uint32_t events, Nanos now) {
  if (peer.state == Connection::State::kCondemned) {
    // Nothing of it is heard any more, except that it has gone: then nothing of it can land any more.
    if ((events & (EPOLLHUP | EPOLLERR)) != 0) close_peer(peer);
    return;
  }
  if ((events & EPOLLIN) != 0) {
    const bool open = receive(peer);
    work_off(peer, now);
    if (!open) return close_peer(peer);
  } else if ((events & (EPOLLHUP | EPOLLERR)) != 0) {
    return close_peer(peer);
  } else {
    flush(peer, now);
    work_off(peer, now);
  }
}

bool Door::Impl::receive(Connection& peer) {
  if (peer.in_begin == peer.in_end) {
    peer.in_begin = peer.in_end = 0;
    if (peer.in.size() > kKeepBytes) {
      peer.in.resize(kReceiveBytes);
      peer.in.shrink_to_fit();
    }
  }
  if (peer.in_begin > 0 && peer.in.size() - peer.in_end < kReceiveBytes / 2) {
    std::memmove(peer.in.data(), peer.in.data() + peer.in_begin, peer.in_end - peer.in_begin);
    peer.in_end -= peer.in_begin;
    peer.in_begin = 0;
  }
  const std::size_t room = peer.in.size() - peer.in_end;
  if (room == 0) return true;  // a whole frame is waiting to be worked off
  const ssize_t got = recv(peer.fd, peer.in.data() + peer.in_end, room, 0);
  if (got == 0) return false;
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  peer.in_end += static_cast<std::size_t>(got);
  tally.bytes_in += static_cast<std::uint64_t>(got);
  return true;
}

// Handles the whole frames that have come, as long as the peer takes its answers.
void Door::Impl::work_off(Connection& peer, Nanos now) {
  std::uint64_t frames = 0;
  working_on = peer.owner;
  while (peer.state == Connection::State::kHello || peer.state == Connection::State::kOpen) {
    if (peer.pending() >= kPauseBytes) flush(peer, now);
    if (peer.pending() >= kPauseBytes || !peer.reads.empty()) break;
    const std::size_t have = peer.in_end - peer.in_begin;
    FrameHeader header;
    if (have < sizeof header) break;
    std::memcpy(&header, peer.in.data() + peer.in_begin, sizeof header);
    const std::size_t most = peer.state == Connection::State::kHello ? kHelloBytesMax : config.frame_bytes_max;
    if (header.body_bytes > most) {
      malformed(peer, header, "body_bytes", "larger than frame_bytes_max", most);
      break;
    }
    const std::size_t whole = sizeof header + header.body_bytes;
    if (have < whole) {
      if (peer.in.size() - peer.in_begin < whole) {
        std::memmove(peer.in.data(), peer.in.data() + peer.in_begin, have);
        peer.in_begin = 0;
        peer.in_end = have;
        if (peer.in.size() < whole) peer.in.resize(whole);
      }
      break;
    }
    const std::span<const std::uint8_t> body(peer.in.data() + peer.in_begin + sizeof header, header.body_bytes);
    peer.in_begin += whole;
    ++frames;
    if (!handle(peer, header, body, now)) break;
  }
  working_on = 0;
  tally.frames += frames;
  if (peer.state != Connection::State::kClosed) flush(peer, now);
}

void Door::Impl::flush(Connection& peer, Nanos now) {
  for (;;) {
    if (peer.pending() < kReceiveBytes && !peer.reads.empty()) produce(peer);
    if (peer.pending() == 0) break;
    const ssize_t sent = send(peer.fd, peer.out.bytes.data() + peer.out_sent, peer.pending(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) {
      if (errno != EAGAIN) return close_peer(peer);
      break;
    }
    peer.out_sent += static_cast<std::size_t>(sent);
    tally.bytes_out += static_cast<std::uint64_t>(sent);
    peer.stalled_since = now;
  }
  if (peer.pending() == 0) {
    peer.stalled_since = 0;
    peer.out_sent = 0;
    peer.out.bytes.clear();
    if (peer.out.bytes.capacity() > kKeepBytes) peer.out.bytes.shrink_to_fit();
  } else {
    if (peer.stalled_since == 0) peer.stalled_since = now;
    if (peer.out_sent > kKeepBytes) {  // the queue is bounded, and so is what is kept before it
      peer.out.bytes.erase(peer.out.bytes.begin(), peer.out.bytes.begin() + static_cast<std::ptrdiff_t>(peer.out_sent));
      peer.out_sent = 0;
    }
  }
  if (peer.pending() > config.queue_bytes_max && peer.state == Connection::State::kOpen) {
    tally.cut_slow += 1;
    return condemn(peer);
  }
  arm(peer);
}

void Door::Impl::arm(Connection& peer) {
  if (peer.state != Connection::State::kHello && peer.state != Connection::State::kOpen) return;
  std::uint32_t wanted = 0;
  if (peer.pending() > 0) wanted |= EPOLLOUT;
  if (peer.pending() < kPauseBytes && peer.reads.empty()) wanted |= EPOLLIN;
  if (wanted == peer.armed) return;
  peer.armed = wanted;
  watch(epoll, EPOLL_CTL_MOD, peer.fd, wanted, peer.owner);
}

// Cuts a peer off. If it maps the segment, what it holds and may write stays until it has closed its end or has died.
void Door::Impl::condemn(Connection& peer) {
  if (!peer.joined) return close_peer(peer);
  if (peer.state == Connection::State::kCondemned || peer.state == Connection::State::kClosed) return;
  peer.state = Connection::State::kCondemned;
  shutdown(peer.fd, SHUT_WR);
  watch(epoll, EPOLL_CTL_MOD, peer.fd, 0, peer.owner);  // a hang-up is always told
}

void Door::Impl::close_peer(Connection& peer) {
  if (peer.state == Connection::State::kClosed) return;
  const bool was_open = peer.state != Connection::State::kHello;
  peer.state = Connection::State::kClosed;
  epoll_ctl(epoll, EPOLL_CTL_DEL, peer.fd, nullptr);
  close(peer.fd);
  peer.fd = -1;
  {
    std::lock_guard lock(inbox->mutex);
    inbox->owners.erase(peer.owner);
  }
  core.owner_gone(peer.owner);
  if (peer.joined) core.client_left(peer.owner);
  tally.connections -= 1;
  if (peer.trusted) tally.trusted -= 1;
  dead.push_back(peer.owner);
  if (!was_open) return;
  Request gone;
  gone.owner = peer.owner;
  gone.gone = true;
  gone.trusted = peer.trusted;
  gone.uid = peer.uid;
  std::lock_guard lock(shared);
  requests.push_back(std::move(gone));
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(request_event, &one, sizeof one);
}

// Closed peers are destroyed only here, when nothing refers to them any more.
void Door::Impl::bury() {
  for (const OwnerId owner : dead) peers.erase(owner);
  dead.clear();
}

void Door::Impl::take_inbox(Nanos now) {
  std::uint64_t count = 0;
  [[maybe_unused]] const auto drained = ::read(inbox->wake_event, &count, sizeof count);
  std::vector<Inbox::Item> items;
  {
    std::lock_guard lock(inbox->mutex);
    items.swap(inbox->items);
    inbox->filled = false;
  }
  for (Inbox::Item& item : items) {
    if (auto* frame = std::get_if<Inbox::Frame>(&item)) {
      Connection* peer = find(frame->owner);
      if (peer == nullptr || peer->state != Connection::State::kOpen) continue;
      if (frame->answers_call && peer->requests > 0) peer->requests -= 1;
      peer->out.append(frame->bytes.data(), frame->bytes.size());
      flush(*peer, now);
    } else if (auto* fetched_ = std::get_if<Inbox::Fetched>(&item)) {
      Connection* peer = find(fetched_->owner);
      if (peer == nullptr) continue;
      held(*peer, fetched_->request, fetched_->flags, std::move(fetched_->answer));
      flush(*peer, now);
    } else if (const auto* allow_ = std::get_if<Inbox::Allow>(&item)) {
      if (Connection* peer = find(allow_->owner)) peer->allow(allow_->ns);
    } else if (const auto* disallow_ = std::get_if<Inbox::Disallow>(&item)) {
      for (auto& [owner, peer] : peers) peer->disallow(disallow_->ns);
    } else {
      end_withdrawn();
    }
  }
}

void Door::Impl::housekeep(Nanos now) {
  bool soon = false;
  for (auto& [owner, held_peer] : peers) {
    Connection& peer = *held_peer;
    if (peer.state == Connection::State::kHello) {
      soon = true;
      if (now < peer.hello_by) continue;
      tally.cut_hello += 1;
      close_peer(peer);
    } else if (peer.state == Connection::State::kOpen) {
      soon = soon || peer.stalled_since != 0 || !peer.landings.empty() || !peer.holds.empty();
      lapse_streams(peer, now);
      if (peer.stalled_since == 0 || now - peer.stalled_since < Nanos{config.stall_ms_max} * 1'000'000) continue;
      tally.cut_slow += 1;
      condemn(peer);
    }
  }
  if (!listening) {
    listening = true;
    watch(epoll, EPOLL_CTL_MOD, listener, EPOLLIN, kListenerTag);
  }
  if (now >= next_census && core.quarantine_left()) {
    next_census = now + kCensus;
    for (const ClientEntry& client : core.former_clients())
      if (process_start(static_cast<pid_t>(client.pid)) != client.start)
        core.former_client_gone(client.pid, client.session, client.incarnation);
  }
  next_housekeeping = now + (soon ? kHousekeeping : kCensus);
}

}  // namespace kvstore::door
