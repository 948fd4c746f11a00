// How rows become work requests, and what becomes of them.
#include <algorithm>
#include <array>
#include <utility>

#include "reactor.hpp"

namespace kvstore::rdma {

namespace {

constexpr std::uint32_t kTrialPlace = ~std::uint32_t{0};  // where no flight is
constexpr std::size_t kChain = 16;  // work requests handed over at once: more would starve a peer's other lanes

std::uint64_t id_of(std::uint32_t generation, std::uint32_t place) { return static_cast<std::uint64_t>(generation) << 32 | place; }

}  // namespace

// What the front of the queue asks for is over already: the job was stopped, or its grant has ended.
bool Reactor::settle_front(const Peer& peer, std::deque<Run>& queue) {
  const Run& run = queue.front();
  Reason reason = Reason::kNone;
  if (run.job->stopped() == Reason::kNone) {
    const auto ended = peer.ended.find(run.job->access(run.job->layout().slices()[run.slice]));
    if (ended == peer.ended.end()) return false;
    reason = ended->second;
  }
  const Run last = std::move(queue.front());
  queue.pop_front();
  row_done(last.job, last.slice, last.row_end - last.row, reason);
  return true;
}

bool Reactor::Peer::waits() const noexcept {
  return std::ranges::any_of(queues, [](const auto& entry) { return !entry.second.empty(); });
}

// The lane with the least out, of those over near devices; over any, where no lane over a near one is whole.
Reactor::Open* Reactor::lane_for(const Peer& peer, std::uint32_t near) {
  const bool some_near = std::ranges::any_of(peer.lanes, [near](const Open* lane) { return lane->takes() && lane->near(near); });
  Open* best = nullptr;
  for (Open* lane : peer.lanes) {
    if (!lane->takes() || lane->free.empty() || (some_near && !lane->near(near))) continue;
    if (best == nullptr || lane->out() < best->out()) best = lane;
  }
  return best;
}

// The queues in turn, until none has anything that a lane takes.
void Reactor::pump(Peer& peer) {
  for (std::size_t stuck = 0; stuck < peer.queues.size();) {
    auto next = peer.queues.upper_bound(peer.turn);
    if (next == peer.queues.end()) next = peer.queues.begin();
    peer.turn = next->first;
    stuck = serve(peer, next->first, next->second) ? 0 : stuck + 1;
  }
}

// False: nothing is left, or no lane has room for it.
bool Reactor::serve(Peer& peer, std::uint32_t near, std::deque<Run>& queue) {
  while (!queue.empty() && settle_front(peer, queue)) {
  }
  if (queue.empty()) return false;
  Open* lane = lane_for(peer, near);
  return lane != nullptr && fill(peer, queue, *lane) > 0;
}

// Takes from the queue what fits, and sends it. How much was taken.
std::uint32_t Reactor::fill(const Peer& peer, std::deque<Run>& queue, Open& lane) {
  std::array<std::uint32_t, kChain> places;
  std::uint32_t count = 0;
  while (count < kChain && !lane.free.empty() && !queue.empty()) {
    if (settle_front(peer, queue)) continue;
    Run& run = queue.front();
    if (!run.job->reaches(lane.lane.device, lane.lane.peer_device)) {
      const Run last = std::move(run);
      queue.pop_front();
      row_done(last.job, last.slice, last.row_end - last.row, Reason::kRevoked);
      continue;
    }
    const std::uint32_t place = lane.free.back();
    lane.free.pop_back();
    places[count++] = place;
    lane.flights[place] = {run.job, run.slice, run.row, run.tries};
    if (++run.row == run.row_end) queue.pop_front();
  }
  if (count > 0) send(lane, std::span(places).first(count));
  return count;
}

bool Reactor::send(Open& lane, std::span<const std::uint32_t> places) {
  std::array<ibv_send_wr, kChain> requests{};
  std::array<ibv_sge, kChain> pieces{};
  for (std::size_t i = 0; i < places.size(); ++i) {
    const Flight& flight = lane.flights[places[i]];
    const Job::Request request = flight.job->request(flight.row, lane.lane.device, lane.lane.peer_device);
    pieces[i] = {request.local, request.bytes, request.local_key};
    requests[i].wr_id = id_of(lane.generation, places[i]);
    requests[i].sg_list = &pieces[i];
    requests[i].num_sge = 1;
    requests[i].opcode = flight.job->direction() == Direction::kRead ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE;
    requests[i].send_flags = IBV_SEND_SIGNALED;
    requests[i].wr.rdma.remote_addr = request.remote;
    requests[i].wr.rdma.rkey = request.remote_key;
    requests[i].next = i + 1 < places.size() ? &requests[i + 1] : nullptr;
  }
  ibv_send_wr* refused = nullptr;
  if (ibv_post_send(lane.lane.qp, requests.data(), &refused) == 0) return true;
  const std::size_t taken = refused != nullptr ? static_cast<std::size_t>(refused - requests.data()) : 0;
  break_lane(lane, IBV_WC_GENERAL_ERR);
  for (const std::uint32_t place : places.subspan(taken)) {  // never out: nothing will come back for them
    const Flight flight = std::move(lane.flights[place]);
    lane.free.push_back(place);
    failed(lane, flight, IBV_WC_WR_FLUSH_ERR);
  }
  if (lane.out() == 0) retire_later(lane);
  return false;
}

// Whoever is here may still use the lane.
void Reactor::retire_later(const Open& lane) {
  post([generation = lane.generation](Reactor& self) {
    const auto found = self.lanes_.find(generation);
    if (found != self.lanes_.end() && found->second->out() == 0) self.retire(*found->second);
  });
}

void Reactor::try_out(Open& lane) {
  const Trial& trial = lane.lane.trial;
  ibv_sge piece{trial.local, trial.bytes, trial.local_key};
  ibv_send_wr request{};
  request.wr_id = id_of(lane.generation, kTrialPlace);
  request.sg_list = &piece;
  request.num_sge = 1;
  request.opcode = IBV_WR_RDMA_READ;
  request.send_flags = IBV_SEND_SIGNALED;
  request.wr.rdma.remote_addr = trial.remote;
  request.wr.rdma.rkey = trial.remote_key;
  ibv_send_wr* refused = nullptr;
  lane.trying = ibv_post_send(lane.lane.qp, &request, &refused) == 0;
  if (lane.trying) return;
  break_lane(lane, IBV_WC_GENERAL_ERR);
  retire_later(lane);
}

void Reactor::tried(Open& lane, std::uint32_t status) {
  lane.trying = false;
  if (status != IBV_WC_SUCCESS) return break_lane(lane, status);
  if (lane.broken) return;  // meanwhile, by this side
  lane.proven = true;
  tell({EventKind::kLaneUp, lane.lane.id});
}

void Reactor::break_lane(Open& lane, std::uint32_t status) {
  if (lane.broken) return;
  lane.broken = true;
  lane.status = status;
  to_error(lane.lane.qp);  // it may be there already
}

bool Reactor::poll() {
  std::array<ibv_wc, 64> completions;
  bool some = false;
  for (ibv_cq* cq : cqs_) {
    const int count = ibv_poll_cq(cq, static_cast<int>(completions.size()), completions.data());
    for (int i = 0; i < count; ++i) completed(completions[static_cast<std::size_t>(i)]);
    some |= count > 0;
  }
  return some;
}

void Reactor::completed(const ibv_wc& completion) {
  const auto found = lanes_.find(static_cast<std::uint32_t>(completion.wr_id >> 32));
  if (found == lanes_.end()) return;
  Open& lane = *found->second;
  const auto place = static_cast<std::uint32_t>(completion.wr_id);
  if (place == kTrialPlace && lane.trying) {
    tried(lane, completion.status);
  } else if (place < lane.flights.size() && lane.flights[place].job != nullptr) {
    landed_or_failed(lane, place, completion.status);
  } else {
    return;
  }
  const std::uint64_t peer = lane.lane.peer;
  if (lane.broken && lane.out() == 0) retire(lane);
  if (const auto at = peers_.find(peer); at != peers_.end()) pump(at->second);
}

void Reactor::landed_or_failed(Open& lane, std::uint32_t place, std::uint32_t status) {
  const Flight flight = std::move(lane.flights[place]);
  lane.flights[place] = {};
  lane.free.push_back(place);
  if (status == IBV_WC_SUCCESS) {
    ++requests_;
    bytes_ += flight.job->layout().rows()[flight.row].length;
    row_done(flight.job, flight.slice, 1, Reason::kLanded);
  } else {
    break_lane(lane, status);
    failed(lane, flight, status);
  }
}

void Reactor::failed(Open& lane, Flight flight, std::uint32_t status) {
  Peer& peer = peers_[lane.lane.peer];
  if (status == IBV_WC_REM_ACCESS_ERR) {
    const std::uint64_t access = flight.job->access(flight.job->layout().slices()[flight.slice]);
    if (peer.ended.emplace(access, Reason::kRevoked).second) tell({EventKind::kRefused, access, status});
    return row_done(flight.job, flight.slice, 1, peer.ended[access]);
  }
  // A lane that this side broke, or that another grant's end broke, is no fault of the path.
  const bool path = lane.status != 0 && lane.status != IBV_WC_REM_ACCESS_ERR;
  const std::uint32_t tries = flight.tries + (path ? 1 : 0);
  if (flight.job->stopped() != Reason::kNone) return row_done(flight.job, flight.slice, 1, Reason::kNone);
  if (peer.gone || closing_ || tries >= config_.tries_max) return row_done(flight.job, flight.slice, 1, Reason::kPeerGone);
  ++again_;
  peer.queues[flight.job->near(flight.row)].push_front({flight.job, flight.slice, flight.row, flight.row + 1, tries});
}

void Reactor::retire(Open& lane) {
  const Lane last = lane.lane;
  const std::uint32_t status = lane.status;
  Peer& peer = peers_[last.peer];
  std::erase(peer.lanes, &lane);
  generations_.erase(last.id);
  lanes_.erase(lane.generation);
  tell({EventKind::kLaneDown, last.id, status});
}

void Reactor::row_done(const std::shared_ptr<Job>& job, std::uint32_t slice, std::uint32_t rows, Reason reason) {
  if (!job->done(slice, rows, reason)) return;
  job->finish();
  jobs_.erase(job->token());
  tell({EventKind::kFinished, job->token()});
}

void Reactor::drain_queue(Peer& peer, Reason reason) {
  const auto queues = std::exchange(peer.queues, {});
  for (const auto& [near, runs] : queues)
    for (const Run& run : runs) row_done(run.job, run.slice, run.row_end - run.row, reason);
}

}  // namespace kvstore::rdma
