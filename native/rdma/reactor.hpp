// The engine's thread: queues, lanes and completion queues. Everything but the inbox and the outbox is the thread's alone.
#pragma once
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <unordered_map>
#include <utility>

#include "engine.hpp"
#include "transfer/box.hpp"

namespace kvstore::rdma {

class Reactor {
 public:
  explicit Reactor(const EngineConfig& config);
  ~Reactor();
  using Order = std::function<void(Reactor&)>;
  using Clock = std::chrono::steady_clock;

  // From any thread.
  void post(Order order) { orders_.put(std::move(order)); }
  std::vector<Event> take_events();
  EngineStats stats() const;
  int event_fd() const noexcept { return events_.fd(); }
  bool wait_ended(std::chrono::nanoseconds wait);

  void run();  // the thread

  // Orders.
  void add_device(ibv_cq* cq);
  void add_lane(const Lane& lane);
  void drop_lane(std::uint64_t lane);
  void give_up(std::uint64_t peer, bool gone);
  void forget(std::uint64_t peer);
  void end_access(std::uint64_t peer, std::uint64_t access, Reason reason);
  void submit(std::shared_ptr<Job> job, std::uint64_t peer);
  void stop(std::uint64_t token, Reason reason);
  void close();

 private:
  struct Run {  // rows of a slice that have not been asked for
    std::shared_ptr<Job> job;
    std::uint32_t slice, row, row_end, tries;
  };
  struct Flight {  // a request that is out
    std::shared_ptr<Job> job;
    std::uint32_t slice = 0, row = 0, tries = 0;
  };
  struct Open {
    Lane lane;
    std::uint32_t generation;
    std::vector<Flight> flights;      // by the low half of a request's id
    std::vector<std::uint32_t> free;  // places of `flights`
    bool trying = false;              // its trial is out
    bool proven = false;              // its trial has landed, or it needs none
    bool broken = false;
    std::uint32_t status = 0;         // what broke it
    std::size_t out() const noexcept { return flights.size() - free.size() + (trying ? 1 : 0); }
    bool takes() const noexcept { return proven && !broken; }
    bool near(std::uint32_t devices) const noexcept { return (devices >> lane.device & 1) != 0; }
  };
  struct Peer {
    // By the devices near what they read or write, so that nothing waits behind what wants other lanes.
    std::map<std::uint32_t, std::deque<Run>> queues;
    std::uint32_t turn = 0;  // the queue that was served last
    std::vector<Open*> lanes;
    std::unordered_map<std::uint64_t, Reason> ended;  // accesses
    bool gone = false;
    bool waits() const noexcept;  // whether something is in a queue
  };
  static Open* lane_for(const Peer& peer, std::uint32_t near);
  struct Lingering {
    Clock::time_point until;
    std::uint64_t token;
  };

  // sending (reactor_send.cpp)
  void pump(Peer& peer);
  bool serve(Peer& peer, std::uint32_t near, std::deque<Run>& queue);
  bool settle_front(const Peer& peer, std::deque<Run>& queue);
  std::uint32_t fill(const Peer& peer, std::deque<Run>& queue, Open& lane);
  bool send(Open& lane, std::span<const std::uint32_t> places);
  void try_out(Open& lane);
  void tried(Open& lane, std::uint32_t status);
  void retire_later(const Open& lane);
  void break_lane(Open& lane, std::uint32_t status);
  // what comes back
  bool poll();
  void completed(const ibv_wc& completion);
  void landed_or_failed(Open& lane, std::uint32_t place, std::uint32_t status);
  void failed(Open& lane, Flight flight, std::uint32_t status);
  void retire(Open& lane);
  void row_done(const std::shared_ptr<Job>& job, std::uint32_t slice, std::uint32_t rows, Reason reason);
  void drain_queue(Peer& peer, Reason reason);

  void tell(Event event) { events_.put(event); }
  void obey();
  void flush_lingering();
  void look(int patience_ms);  // at what descriptors tell
  int patience() const;  // for epoll_wait, in ms
  bool arm_and_look();
  void read_events(std::size_t device);
  void read_news(std::size_t device);

  const EngineConfig config_;
  const Verbs* verbs_;
  int epoll_;
  transfer::Box<Order> orders_;
  transfer::Box<Event> events_;
  std::vector<ibv_cq*> cqs_;
  std::map<std::uint64_t, Peer> peers_;
  std::unordered_map<std::uint32_t, std::unique_ptr<Open>> lanes_;  // by generation
  std::unordered_map<std::uint64_t, std::uint32_t> generations_;    // by lane
  std::unordered_map<std::uint64_t, std::shared_ptr<Job>> jobs_;
  std::deque<Lingering> lingering_;
  std::uint32_t next_generation_ = 1;
  bool closing_ = false;

  std::mutex mutex_;  // of what follows
  bool ended_ = false;
  std::condition_variable end_;
  std::atomic<std::uint64_t> requests_{0}, bytes_{0}, again_{0}, flushes_{0};
};

}  // namespace kvstore::rdma
