#include "engine.hpp"

#include <pthread.h>

#include <csignal>
#include <stdexcept>
#include <thread>

#include "reactor.hpp"

namespace kvstore::rdma {

Engine::Engine(const EngineConfig& config) {
  if (config.window == 0 || config.tries_max == 0) throw std::invalid_argument("window and tries_max are at least 1");
  reactor_ = std::make_shared<Reactor>(config);
  sigset_t all, before;  // signals belong to the interpreter's threads
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread([reactor = reactor_] { reactor->run(); }).detach();  // it keeps what it touches alive
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Engine::~Engine() {
  reactor_->post([](Reactor& reactor) { reactor.close(); });
}

int Engine::fd() const noexcept { return reactor_->event_fd(); }
std::vector<Event> Engine::events() { return reactor_->take_events(); }
EngineStats Engine::stats() const { return reactor_->stats(); }

void Engine::add_device(ibv_cq* cq) {
  reactor_->post([=](Reactor& reactor) { reactor.add_device(cq); });
}
void Engine::add_lane(const Lane& lane) {
  reactor_->post([=](Reactor& reactor) { reactor.add_lane(lane); });
}
void Engine::drop_lane(std::uint64_t lane) {
  reactor_->post([=](Reactor& reactor) { reactor.drop_lane(lane); });
}
void Engine::give_up(std::uint64_t peer, bool gone) {
  reactor_->post([=](Reactor& reactor) { reactor.give_up(peer, gone); });
}
void Engine::forget(std::uint64_t peer) {
  reactor_->post([=](Reactor& reactor) { reactor.forget(peer); });
}
void Engine::end_access(std::uint64_t peer, std::uint64_t access, Reason reason) {
  reactor_->post([=](Reactor& reactor) { reactor.end_access(peer, access, reason); });
}
void Engine::submit(std::shared_ptr<Job> job, std::uint64_t peer) {
  reactor_->post([job = std::move(job), peer](Reactor& reactor) { reactor.submit(job, peer); });
}
void Engine::stop(std::uint64_t token, Reason reason) {
  reactor_->post([=](Reactor& reactor) { reactor.stop(token, reason); });
}

bool Engine::close(std::chrono::nanoseconds wait) {
  reactor_->post([](Reactor& reactor) { reactor.close(); });
  return reactor_->wait_ended(wait);
}

}  // namespace kvstore::rdma
