#include "worker.hpp"

#include <poll.h>

#include <array>
#include <cerrno>
#include <system_error>

#include "base/clock.hpp"

namespace kvstore::tcp {

namespace {

constexpr std::uint64_t kInboxTag = 0;  // connections count from 1
constexpr int kDriveMs = 5;             // then the deadline is looked at again

}  // namespace

Worker::Worker(std::shared_ptr<Shared> shared, std::uint32_t index)
    : shared_(std::move(shared)), index_(index), epoll_(epoll_create1(EPOLL_CLOEXEC)),
      spin_(shared_->config.spin_ns_max) {
  if (epoll_ < 0) throw std::system_error(errno, std::generic_category(), "epoll_create1");
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kInboxTag;
  epoll_ctl(epoll_, EPOLL_CTL_ADD, shared_->inboxes[index_]->fd(), &event);
}

Worker::~Worker() { ::close(epoll_); }

void Worker::run() {
  std::array<epoll_event, 64> events;
  std::unique_lock turn(turn_);
  while (!shared_->stopping) {
    const bool more = !holding_.empty();
    turn.unlock();
    const int count = await(events, more);
    turn.lock();
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = events[static_cast<std::size_t>(i)];
      if (event.data.u64 == kInboxTag) {
        obey();
      } else if (Connection* connection = find(event.data.u64)) {
        ready(*connection, event.events);
      }
    }
    for (const std::uint64_t id : std::vector<std::uint64_t>(holding_.begin(), holding_.end()))
      if (Connection* connection = find(id)) ready(*connection, EPOLLIN);
  }
  obey();
  while (!connections_.empty()) end(connections_.begin()->first, "this side has closed");
  obey();  // nothing is posted any more that holds a job: see Shared::elsewhere and Engine::submit
}

// Looks again for a while, if that has paid lately, and then sleeps.
int Worker::await(std::span<epoll_event> events, bool more) {
  const auto room = static_cast<int>(events.size());
  if (more) return epoll_wait(epoll_, events.data(), room, 0);
  const std::int64_t start = monotonic_now();
  int count = 0;
  for (std::int64_t now = start; count == 0 && now - start < spin_.window(); now = monotonic_now()) {
    count = epoll_wait(epoll_, events.data(), room, 0);
    if (count == 0 && !spin_.give_way()) break;
  }
  if (count == 0) count = epoll_wait(epoll_, events.data(), room, -1);
  spin_.waited(monotonic_now() - start);
  return count;
}

void Worker::obey() {
  Inbox& inbox = *shared_->inboxes[index_];
  inbox.heard();
  for (const auto& order : inbox.take()) order(*this);
}

Connection* Worker::find(std::uint64_t id) {
  const auto found = connections_.find(id);
  return found == connections_.end() ? nullptr : found->second.get();
}

void Worker::ready(Connection& connection, std::uint32_t events) {
  const bool in = (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0 || connection.reads_by_writing();
  if ((in && !connection.receive()) || !connection.send()) return end(connection.id(), connection.why());
  arm(connection);
}

void Worker::arm(Connection& connection) {
  if (connection.holds_input()) {
    holding_.insert(connection.id());
  } else {
    holding_.erase(connection.id());
  }
  const std::uint32_t wanted = connection.driven ? static_cast<std::uint32_t>(EPOLLERR) : connection.events();
  if (wanted == connection.armed) return;
  epoll_event event{};
  event.events = wanted;
  event.data.u64 = connection.id();
  epoll_ctl(epoll_, connection.armed == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, connection.fd(), &event);
  connection.armed = wanted;
}

void Worker::end(std::uint64_t id, const std::string& why) {
  const auto found = connections_.find(id);
  const std::unique_ptr<Connection> last = std::move(found->second);
  connections_.erase(found);
  holding_.erase(id);
  last->end(std::string(why));
}

// ---- from other threads

bool Worker::ask_now(const Lane& lane, const std::shared_ptr<Job>& job, const std::vector<std::size_t>& slices) {
  const std::unique_lock turn(turn_, std::try_to_lock);
  if (!turn || find(lane.connection) == nullptr) return false;
  ask(lane, job, slices, 0);
  return true;
}

bool Worker::drive(const Lane& lane, const std::shared_ptr<Job>& job, std::int64_t deadline_ns) {
  thread_local SpinWindow spin(shared_->config.spin_ns_max);
  std::unique_lock turn(turn_, std::try_to_lock);
  Connection* connection = turn ? find(lane.connection) : nullptr;
  if (connection == nullptr || connection->driven) return false;
  connection->driven = true;
  ask(lane, job, {0}, 0);
  while (!job->finished() && monotonic_now() < deadline_ns && step(lane.connection, turn, spin)) {
  }
  connection = find(lane.connection);
  if (connection == nullptr) return true;
  connection->driven = false;
  arm(*connection);
  if (connection->holds_input()) shared_->inboxes[index_]->put([](Worker&) {});  // nothing else would tell the worker
  return true;
}

// Takes what has come, or waits a little for it. False: the connection has ended.
bool Worker::step(std::uint64_t id, std::unique_lock<std::mutex>& turn, SpinWindow& spin) {
  Connection* connection = find(id);
  if (connection == nullptr) return false;
  const std::uint64_t before = connection->received();
  ready(*connection, EPOLLIN);
  connection = find(id);
  if (connection == nullptr || connection->received() != before) return connection != nullptr;
  pollfd one{connection->fd(), static_cast<short>(connection->events()), 0};
  turn.unlock();
  const std::int64_t start = monotonic_now();
  int ready_now = 0;
  while (ready_now == 0 && monotonic_now() - start < spin.window()) {
    ready_now = ::poll(&one, 1, 0);
    if (ready_now == 0 && !spin.give_way()) break;
  }
  if (ready_now == 0) ::poll(&one, 1, kDriveMs);
  spin.waited(monotonic_now() - start);
  turn.lock();
  return true;
}

// ---- orders

void Worker::add(std::uint64_t id, std::uint64_t peer, std::unique_ptr<Stream> stream) {
  auto made = std::make_unique<Connection>(*shared_, id, peer, index_, std::move(stream));
  Connection& connection = *made;
  connections_.emplace(id, std::move(made));
  ready(connection, 0);
}

void Worker::set_peer(std::uint64_t id, std::uint64_t peer) {
  if (Connection* connection = find(id)) {
    connection->set_peer(peer);
  } else if (peer != 0) {
    shared_->lane_closed(peer, id);  // it had ended before anybody knew whose it is
  }
}

void Worker::drop(std::uint64_t id) {
  if (find(id) != nullptr) end(id, "this side has closed");
}

void Worker::ask(const Lane& lane, const std::shared_ptr<Job>& job, const std::vector<std::size_t>& slices, std::uint32_t tries) {
  Connection* connection = find(lane.connection);
  if (connection == nullptr) {  // it has ended since the slices were dealt out
    for (const std::size_t slice : slices) shared_->lost(lane.peer, job, slice, tries);
    return;
  }
  for (const std::size_t slice : slices) connection->ask(job, slice, tries);
  if (!connection->flush()) return end(lane.connection, connection->why());
  arm(*connection);
}

void Worker::withdraw(const Job& job) {
  std::vector<std::uint64_t> ended;
  for (const auto& [id, connection] : connections_) {
    if (connection->withdraw(job)) {
      arm(*connection);
    } else {
      ended.push_back(id);
    }
  }
  for (const std::uint64_t id : ended) end(id, connections_.at(id)->why());
}

void Worker::detach_ended() {
  for (const auto& [id, connection] : connections_) connection->detach_ended();
}

}  // namespace kvstore::tcp
