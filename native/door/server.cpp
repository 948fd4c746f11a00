// The door's thread: sockets, buffers, deadlines. What frames mean is in verbs.cpp. Rules: server.hpp.
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "base/clock.hpp"
#include "core/process.hpp"
#include "server_impl.hpp"

namespace kvstore::door {
namespace {

constexpr std::size_t kReceiveBytes = 256u << 10;   // what a peer's buffer has room for, at least
constexpr std::size_t kKeepBytes = 1u << 20;        // larger buffers are given back when they are empty
constexpr std::size_t kPauseBytes = 1u << 20;       // a peer with so much to take is not listened to
constexpr int kHandshakesPerTurn = 4;
constexpr int kReceivesPerTurn = 4;  // of one peer
constexpr Nanos kCensus = 1'000'000'000;

// The first bytes of a TLS handshake: the record's type, and the greater number of its version.
bool is_tls(const std::uint8_t* bytes) noexcept { return bytes[0] == 22 && bytes[1] == 3; }

[[noreturn]] void fail(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

}  // namespace

void watch(int epoll, int op, int fd, std::uint32_t events, std::uint64_t tag) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = tag;
  if (epoll_ctl(epoll, op, fd, &event) != 0 && op == EPOLL_CTL_ADD) fail("epoll_ctl");
}

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
    : core(core_), config(config_), payload(payload_fd, payload_bytes, transfer::Access::kReadWrite) {
  const int wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  request_event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  epoll = epoll_create1(EPOLL_CLOEXEC);
  if (wake < 0 || request_event < 0 || epoll < 0) fail("eventfd or epoll");
  inbox = std::make_shared<Inbox>(wake);
  inbox->door = this;
  watch(epoll, EPOLL_CTL_ADD, wake, EPOLLIN, kWakeTag);
  listen_on(listener_, false);
}

void Door::Impl::listen_on(int fd, bool remote) {
  const int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (own < 0) fail("listener");
  fcntl(own, F_SETFL, fcntl(own, F_GETFL) | O_NONBLOCK);
  watch(epoll, EPOLL_CTL_ADD, own, EPOLLIN, kListenerTag + listeners.size());
  listeners.push_back({own, remote});
}

Door::Impl::~Impl() {
  for (const Listener& one : listeners) close(one.fd);
  for (const int fd : {epoll, request_event}) close(fd);
}

Door::Door(NodeCore& core, int listener, int payload_fd, std::uint64_t payload_bytes, const DoorConfig& config)
    : impl_(std::make_unique<Impl>(core, listener, payload_fd, payload_bytes, config)) {}

Door::~Door() { stop(); }

void Door::listen_tcp(int listener, std::shared_ptr<const tcp::TlsContext> tls) {
  if (impl_->thread.joinable()) throw std::logic_error("listen_tcp: before start");
  if (impl_->listeners.size() > 1) throw std::logic_error("listen_tcp: once");
  if (tls && !tls->can_accept()) throw std::invalid_argument("tls: a door shows a certificate");
  impl_->tls = std::move(tls);
  impl_->listen_on(listener, true);
}

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
    int handshakes = 0;
    // First, so that what Python has allowed holds for every frame that was sent after it.
    if (inbox->filled) take_inbox(now);
    // After it: whoever allows anything anew has moved the time on before.
    if (now > trusted_until.load(std::memory_order_relaxed))
      for (auto& [owner, peer] : peers) peer->disallow_all();
    for (int i = 0; i < ready; ++i) {
      const std::uint64_t tag = events[static_cast<std::size_t>(i)].data.u64;
      if (tag == kWakeTag) {
        take_inbox(now);
      } else if (tag >= kListenerTag) {
        accept_all(listeners[tag - kListenerTag], tag, now);
      } else if (Connection* peer = find(tag)) {
        if (peer->handshaking() && ++handshakes > kHandshakesPerTurn) continue;  // epoll tells of it again
        on_event(*peer, events[static_cast<std::size_t>(i)].events, now);
      }
    }
    for (const OwnerId owner : std::exchange(unread, {}))
      if (Connection* peer = find(owner); peer != nullptr && listens_to(*peer)) take(*peer, now);
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
  while (unread.empty() && now - start < spin.window()) {
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
  if (!unread.empty()) return 0;
  Nanos until = next_housekeeping;
  if (const auto deadline = core.next_deadline(); deadline && *deadline < until) until = *deadline;
  return until <= now ? 0 : static_cast<int>(std::min<Nanos>((until - now + 999'999) / 1'000'000, 1'000));
}

Connection* Door::Impl::find(OwnerId owner) {
  const auto found = peers.find(owner);
  return found == peers.end() || found->second->state == Connection::State::kClosed ? nullptr : found->second.get();
}

// ---- connections

void Door::Impl::on_event(Connection& peer, std::uint32_t events, Nanos now) {
  if (peer.state == Connection::State::kCondemned) {
    // Nothing of it is heard any more, except that it has gone: then nothing of it can land any more.
    if ((events & (EPOLLHUP | EPOLLERR)) != 0) close_peer(peer);
    return;
  }
  if (peer.stream == nullptr && !begin_tls(peer)) return;
  if (peer.stream == nullptr) return;
  if ((events & EPOLLIN) != 0 || peer.stream->reads_by_writing()) {
    take(peer, now);
  } else if ((events & (EPOLLHUP | EPOLLERR)) != 0) {
    return close_peer(peer);
  } else {
    flush(peer, now);
    work_off(peer, now);
    if (peer.holds_input()) unread.push_back(peer.owner);  // it was not listened to, and epoll has nothing to tell
  }
}

bool Door::Impl::listens_to(const Connection& peer) const {
  const bool open = peer.state == Connection::State::kHello || peer.state == Connection::State::kOpen;
  return open && peer.pending() < kPauseBytes;
}

// Receives and works off. Bytes that TLS has and epoll does not know of are looked after in the same turn, or in the next.
void Door::Impl::take(Connection& peer, Nanos now) {
  for (int i = 0; i < kReceivesPerTurn; ++i) {
    const bool open = receive(peer);
    doubt(peer, now);
    work_off(peer, now);
    if (!open) return close_peer(peer);
    if (!peer.holds_input() || !listens_to(peer)) return;
  }
  unread.push_back(peer.owner);
}

// What has just come may have been sent during a pause of this process that began in this turn, after it looked for one.
void Door::Impl::doubt(Connection& peer, Nanos now) {
  const Nanos until = trusted_until.load(std::memory_order_acquire);
  if (inbox->filled) take_inbox(now);  // what Python takes back for a pause it takes back before it moves the time on
  if (monotonic_now() > until) peer.disallow_all();
}

bool Door::Impl::receive(Connection& peer) {
  if (peer.in_begin == peer.in_end) {
    peer.in_begin = peer.in_end = 0;
    if (peer.state == Connection::State::kOpen && peer.in.size() < kReceiveBytes) peer.in.resize(kReceiveBytes);
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
  const iovec into{peer.in.data() + peer.in_end, room};
  const std::int64_t got = peer.stream->read({&into, 1});
  if (got < 0 && got != -EAGAIN && peer.handshaking()) tally.cut_tls += 1;
  if (got <= 0) return got == -EAGAIN;
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
    if (peer.pending() >= kPauseBytes) break;
    const std::size_t have = peer.in_end - peer.in_begin;
    FrameHeader header;
    if (have < sizeof header) break;
    std::memcpy(&header, peer.in.data() + peer.in_begin, sizeof header);
    if (peer.state == Connection::State::kHello && peer.remote && is_tls(peer.in.data() + peer.in_begin)) {
      malformed(peer, header, "tls", "this door speaks clear text");
      break;
    }
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
  while (peer.pending() > 0) {
    const std::int64_t sent = peer.write({peer.out.bytes.data() + peer.out_sent, peer.pending()});
    if (sent == -EAGAIN) break;
    if (sent < 0) return close_peer(peer);
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
  if (peer.pending() > 0 || (peer.stream != nullptr && peer.stream->reads_by_writing())) wanted |= EPOLLOUT;
  if (listens_to(peer) || (peer.stream != nullptr && peer.stream->writes_by_reading())) wanted |= EPOLLIN;
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
  if (peer.stream == nullptr) close(peer.fd);
  peer.stream.reset();
  peer.fd = -1;
  {
    std::lock_guard lock(inbox->mutex);
    inbox->owners.erase(peer.owner);
  }
  core.owner_gone(peer.owner);
  if (peer.joined) core.client_left(peer.owner);
  tally.connections -= 1;
  if (peer.trusted) tally.trusted -= 1;
  if (peer.remote) tally.remote -= 1;
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
    } else if (auto* locates = std::get_if<Inbox::Locates>(&item)) {
      Connection* peer = find(locates->owner);
      if (peer == nullptr) continue;
      peer->locate_method = locates->method;
      peer->claims = std::move(locates->claims);
    } else {
      end_withdrawn();
    }
  }
}

void Door::Impl::resume_listening() {
  for (std::size_t i = 0; i < listeners.size(); ++i)
    if (!std::exchange(listeners[i].listening, true)) watch(epoll, EPOLL_CTL_MOD, listeners[i].fd, EPOLLIN, kListenerTag + i);
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
      soon = soon || peer.stalled_since != 0;
      if (peer.stalled_since == 0 || now - peer.stalled_since < Nanos{config.stall_ms_max} * 1'000'000) continue;
      tally.cut_slow += 1;
      condemn(peer);
    }
  }
  resume_listening();
  if (now >= next_census && core.quarantine_left()) {
    next_census = now + kCensus;
    for (const ClientEntry& client : core.former_clients())
      if (process_start(static_cast<pid_t>(client.pid)) != client.start)
        core.former_client_gone(client.pid, client.session, client.incarnation);
  }
  next_housekeeping = now + (soon ? kHousekeeping : kCensus);
}

}  // namespace kvstore::door
