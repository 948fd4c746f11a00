#include "engine.hpp"

#include <pthread.h>

#include <csignal>
#include <stdexcept>
#include <thread>
#include <utility>

#include "base/clock.hpp"
#include "shared.hpp"
#include "worker.hpp"

namespace kvstore::tcp {

// ---- what is shared

Shared::Shared(const EngineConfig& config_) : config(config_), grants(config_.grants_max) {
  for (std::uint32_t i = 0; i < config.workers; ++i) inboxes.push_back(std::make_unique<Inbox>());
}

void Shared::settled(const std::shared_ptr<Job>& job, std::size_t slice, Reason reason) {
  if (!job->settle(slice, reason)) return;
  {
    const std::lock_guard lock(mutex);
    jobs.erase(job->token());
  }
  ended(job);
}

void Shared::ended(const std::shared_ptr<Job>& job) {
  if (!job->waited_in_a_thread()) {
    job->finish();
    return tell({EventKind::kFinished, job->token(), {}});
  }
  const std::lock_guard lock(mutex);  // who waits looks at it under the lock
  job->finish();
  finished.notify_all();
}

bool Shared::wait(const Job& job, std::optional<std::int64_t> until_ns) {
  std::unique_lock lock(mutex);
  const auto done = [&job] { return job.finished(); };
  if (until_ns) return finished.wait_for(lock, std::chrono::nanoseconds(*until_ns - monotonic_now()), done);
  finished.wait(lock, done);
  return true;
}

void Shared::lost(std::uint64_t peer, const std::shared_ptr<Job>& job, std::size_t slice, std::uint32_t tries) {
  if (job->stopped() != Reason::kNone) return settled(job, slice, Reason::kNone);
  Lane lane{};
  {
    const std::lock_guard lock(mutex);
    const auto found = lanes.find(peer);
    if (!stopping && tries + 1 < kTriesMax && found != lanes.end()) lane = found->second[slice % found->second.size()];
  }
  if (lane.connection == 0) return settled(job, slice, Reason::kPeerGone);
  inboxes[lane.worker]->put([=](Worker& worker) { worker.ask(lane, job, {slice}, tries + 1); });
}

void Shared::lane_opened(const Lane& lane) {
  const std::lock_guard lock(mutex);
  lanes[lane.peer].push_back(lane);
}

void Shared::lane_closed(std::uint64_t peer, std::uint64_t connection) {
  const std::lock_guard lock(mutex);
  const auto found = lanes.find(peer);
  if (found == lanes.end()) return;
  std::erase_if(found->second, [&](const Lane& lane) { return lane.connection == connection; });
  if (found->second.empty()) lanes.erase(found);
}

// ---- the engine

Engine::Engine(const EngineConfig& config) {
  if (config.workers == 0 || config.requests_max == 0) throw std::invalid_argument("workers and requests_max are at least 1");
  shared_ = std::make_shared<Shared>(config);
  sigset_t all, before;  // signals belong to the interpreter's threads
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (std::uint32_t i = 0; i < config.workers; ++i) {
    {
      const std::lock_guard lock(shared_->mutex);
      ++shared_->threads;
    }
    workers_.push_back(std::make_shared<Worker>(shared_, i));
    std::thread thread([shared = shared_, worker = workers_.back()] {
      worker->run();
      const std::lock_guard lock(shared->mutex);
      --shared->threads;
      shared->idle.notify_all();
    });
    pthread_setname_np(thread.native_handle(), "transfer-tcp");
    thread.detach();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Engine::~Engine() { close(std::chrono::seconds(0)); }

int Engine::fd() const noexcept { return shared_->events.fd(); }

std::vector<Event> Engine::events() {
  shared_->events.heard();
  return shared_->events.take();
}

EngineStats Engine::stats() const {
  return {shared_->bytes_read, shared_->bytes_written, shared_->bytes_served, shared_->bytes_taken};
}

void Engine::add(std::uint64_t connection, std::uint64_t peer, std::unique_ptr<Stream> stream) {
  const auto held = std::make_shared<std::unique_ptr<Stream>>(std::move(stream));  // orders are copied about, streams are not
  shared_->inboxes[connection % shared_->config.workers]->put(
      [=](Worker& worker) { worker.add(connection, peer, std::move(*held)); });
}

void Engine::set_peer(std::uint64_t connection, std::uint64_t peer) {
  const auto worker = static_cast<std::uint32_t>(connection % shared_->config.workers);
  if (peer != 0) shared_->lane_opened({peer, connection, worker});  // here, so that what is submitted next finds it
  shared_->inboxes[worker]->put([=](Worker& own) { own.set_peer(connection, peer); });
}

void Engine::drop(std::uint64_t connection) {
  shared_->inboxes[connection % shared_->config.workers]->put([=](Worker& worker) { worker.drop(connection); });
}

void Engine::issue(std::shared_ptr<Served> grant) { shared_->grants.issue(std::move(grant)); }

void Engine::end(std::uint32_t slot) {
  shared_->grants.end(slot);
  if (shared_->grants.quiet(slot)) return;
  for (const auto& inbox : shared_->inboxes) inbox->put([](Worker& worker) { worker.detach_ended(); });
}

bool Engine::quiet(std::uint32_t slot) const { return shared_->grants.quiet(slot); }

std::vector<Lane> Engine::enter(const std::shared_ptr<Job>& job, std::uint64_t peer) {
  const std::lock_guard lock(shared_->mutex);
  if (job->slices() > 0 && !shared_->jobs.emplace(job->token(), job).second) throw std::invalid_argument("token: in motion already");
  const auto found = shared_->lanes.find(peer);
  return found != shared_->lanes.end() && !shared_->stopping ? found->second : std::vector<Lane>();
}

void Engine::submit(const std::shared_ptr<Job>& job, std::uint64_t peer) { deal(job, enter(job, peer)); }

void Engine::deal(const std::shared_ptr<Job>& job, const std::vector<Lane>& lanes) {
  if (job->slices() == 0) return shared_->ended(job);
  if (lanes.empty()) {
    for (std::size_t i = 0; i < job->slices(); ++i) shared_->settled(job, i, Reason::kPeerGone);
    return;
  }
  std::vector<std::vector<std::size_t>> dealt(lanes.size());
  for (std::size_t i = 0; i < job->slices(); ++i) dealt[job->slice(i).rail % lanes.size()].push_back(i);
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    if (dealt[i].empty()) continue;
    const Lane lane = lanes[i];
    // A small request goes out from here, if the worker has nothing to do: that spares the wake of a thread.
    if (job->small() && workers_[lane.worker]->ask_now(lane, job, dealt[i])) continue;
    shared_->inboxes[lane.worker]->put(
        [lane, job, some = std::move(dealt[i])](Worker& worker) { worker.ask(lane, job, some, 0); });
  }
}

void Engine::run(const std::shared_ptr<Job>& job, std::uint64_t peer, std::int64_t deadline_ns) {
  job->wait_in_a_thread();
  const std::vector<Lane> lanes = enter(job, peer);
  const bool driven = job->slices() == 1 && job->small() && !lanes.empty() &&
                      workers_[lanes.front().worker]->drive(lanes.front(), job, deadline_ns);
  if (!driven) deal(job, lanes);
  if (shared_->wait(*job, deadline_ns)) return;
  stop(job->token(), Reason::kLate);
  shared_->wait(*job, std::nullopt);  // a turn of the workers
}

void Engine::stop(std::uint64_t token, Reason reason) {
  std::shared_ptr<Job> job;
  {
    const std::lock_guard lock(shared_->mutex);
    const auto found = shared_->jobs.find(token);
    if (found == shared_->jobs.end()) return;
    job = found->second;
  }
  job->stop(reason);
  for (const auto& inbox : shared_->inboxes) inbox->put([job](Worker& worker) { worker.withdraw(*job); });
}

bool Engine::close(std::chrono::nanoseconds wait) {
  shared_->stopping = true;
  for (const auto& inbox : shared_->inboxes) inbox->put([](Worker&) {});
  std::unique_lock lock(shared_->mutex);
  return shared_->idle.wait_for(lock, wait, [this] { return shared_->threads == 0; });
}

}  // namespace kvstore::tcp
