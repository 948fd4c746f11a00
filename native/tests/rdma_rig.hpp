// The engine over stub devices: lanes between them, batches, and what the engine tells.
#pragma once
#include <poll.h>

#include <chrono>
#include <deque>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "check.hpp"
#include "rdma/engine.hpp"
#include "stub_verbs.hpp"

namespace kvstore::test {

using namespace kvstore::rdma;
using namespace std::chrono_literals;
using stub::Device;
using stub::Request;

constexpr std::uint64_t kPeer = 7, kAccess = 70, kBase = std::uint64_t{1} << 41;
constexpr std::uint64_t kRowBytes = 4096;
constexpr auto kPatience = 20s;

template <typename Holds>
bool within(Holds holds) {
  for (const auto end = std::chrono::steady_clock::now() + kPatience; !holds();) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(100us);
  }
  return true;
}

struct Settings {
  std::uint32_t window = 32, tries_max = 4;
  std::chrono::nanoseconds linger = 1h;
  std::size_t depth = 64;
};

class Rig {
 public:
  explicit Rig(Settings settings = {}, std::size_t devices = 1) : engine({settings.window, settings.tries_max, settings.linger, 0ns}) {
    for (std::size_t i = 0; i < devices; ++i) {
      held.push_back(std::make_unique<Device>(4, settings.depth));
      engine.add_device(held.back()->queue());
    }
  }
  ~Rig() {
    for (const auto& device : held) device->release();
    CHECK(engine.close(kPatience));
    for (const auto& device : held) CHECK(device->unacknowledged() == 0);
  }

  Device& device(std::size_t index = 0) { return *held[index]; }

  // A lane is numbered by its device and pair: 1, 2, .. of the first, 11, 12, .. of the second.
  static std::uint64_t lane_of(std::size_t pair, std::size_t on = 0) { return on * 10 + pair + 1; }
  void lane(std::size_t pair, std::size_t on = 0, Trial trial = {}) {
    const auto number = static_cast<std::uint32_t>(on);
    engine.add_lane({lane_of(pair, on), kPeer, device(on).pair(pair), number, number, trial});
  }

  // `rows` rows of kRowBytes, one a slice, with a gap between them; from `memory`, where it is given, else from places that nobody touches.
  std::shared_ptr<Job> job(std::size_t rows, std::uint64_t access = kAccess, Direction direction = Direction::kRead,
                           std::byte* memory = nullptr, std::uint64_t base = kBase, bool hashed = false) {
    std::vector<transfer::Row> table;
    std::vector<transfer::Slice> slices;
    for (std::uint32_t i = 0; i < rows; ++i) {
      table.push_back({0, 0, i * 2 * kRowBytes, i * 2 * kRowBytes, kRowBytes});
      slices.push_back({i * kRowBytes, i, i + 1, 0});
    }
    const transfer::LocalSpan span{memory != nullptr ? memory : reinterpret_cast<std::byte*>(std::uintptr_t{1} << 40),
                                   rows * 2 * kRowBytes + 1, true};
    std::vector<std::uint64_t> parts;
    if (hashed) parts.push_back(rows * kRowBytes);
    return std::make_shared<Job>(++last_token, direction, std::vector<Local>{{span, {100, 101}, kAnywhere}},
                                 std::vector<Window>{{access, base, {200, 201}}}, std::vector<std::uint32_t>(rows, 0),
                                 transfer::Layout(std::move(table), std::move(slices), parts));
  }
  std::shared_ptr<Job> submit(std::size_t rows, std::uint64_t access = kAccess) {
    auto made = job(rows, access);
    engine.submit(made, kPeer);
    return made;
  }

  // Waits until so many requests are out.
  bool out(std::size_t count, std::size_t pair = 0, std::size_t on = 0) {
    return within([&] { return device(on).out(pair).size() == count; });
  }

  // Returns when the engine has obeyed all that was ordered before, and has seen all completions.
  void settle() {
    CHECK(within([&] { return std::ranges::all_of(held, [](const auto& one) { return one->drained(); }); }));
    const auto last = job(0);
    engine.submit(last, kPeer);
    CHECK(await(EventKind::kFinished, last->token()));
  }

  // Waits for that event, which is told once; others stay told.
  bool await(EventKind kind, std::uint64_t id, std::uint32_t* status = nullptr) {
    return within([&] {
      const auto found = std::ranges::find_if(gather(), [&](const Event& event) { return event.kind == kind && event.id == id; });
      if (found == told.end()) return false;
      if (status != nullptr) *status = found->status;
      told.erase(found);
      return true;
    });
  }
  bool finished(const std::shared_ptr<Job>& job) { return await(EventKind::kFinished, job->token()); }
  bool is_told(EventKind kind, std::uint64_t id) {
    settle();
    return std::ranges::any_of(gather(), [&](const Event& event) { return event.kind == kind && event.id == id; });
  }
  bool is_finished(const std::shared_ptr<Job>& job) { return is_told(EventKind::kFinished, job->token()); }

  std::deque<Event>& gather() {
    for (const Event& event : engine.events()) told.push_back(event);
    return told;
  }

  std::vector<std::unique_ptr<Device>> held;
  Engine engine;
  std::deque<Event> told;
  std::uint64_t last_token = 1000;
};

inline std::size_t count(const std::shared_ptr<Job>& job, Reason reason) {
  return static_cast<std::size_t>(std::ranges::count(job->layout().states(), static_cast<std::uint8_t>(reason)));
}

}  // namespace kvstore::test
