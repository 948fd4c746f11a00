// A process that is killed at any instruction leaves a table that the next one can use: a child works on shared memory
// and is killed; what it had sealed is found, what clients may still see or write is not given to anybody.
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "core/slot_table.hpp"

using namespace kvstore;

namespace {

constexpr std::uint32_t kKeys = 200;

// What clients believe at the time of the kill; written by the child after each answer, cleared before each release.
struct Beliefs {
  std::atomic<std::uint64_t> steps;
  std::atomic<std::uint32_t> tenancy_viewed[1024], tenancy_writing[1024];  // by slot; 0: not
  std::atomic<std::uint32_t> retired[1024];                                // viewed, and perhaps retired
};

Key key_of(std::uint32_t n) {
  Key key;
  std::mt19937_64 random(n + 1);
  for (std::size_t i = 0; i < 4; ++i) {
    const std::uint64_t word = random();
    std::memcpy(key.bytes.data() + 8 * i, &word, 8);
  }
  return key;
}

TableConfig config() {
  TableConfig out;
  out.bytes = 4 * 16 * kSlotAlign;
  out.slab_bytes = 16 * kSlotAlign;
  return out;
}

void open(SlotTable& table) {
  for (NsId ns = 0; ns < 2; ++ns) {
    NamespaceSpec spec;
    spec.digest = key_of(10'000 + ns);
    const std::uint32_t bytes = ns == 0 ? 4096 : 12'000;
    spec.shards.push_back({bytes, {bytes}});
    table.add_namespace(ns, spec);
  }
}

[[noreturn]] void work(void* meta, std::size_t bytes, Beliefs& beliefs, unsigned seed) {
  SlotTable table(config(), meta, bytes);
  table.recover();
  open(table);
  std::mt19937_64 random(seed);
  std::vector<Held> run;
  std::vector<Reserved> granted(4);
  std::vector<std::pair<HoldId, std::vector<Held>>> views;
  std::vector<Ticket> writing;
  // A few of each are open at any time, and end in no order.
  for (Nanos now = 0;; ++now) {
    const NsId ns = static_cast<NsId>(random() % 2);
    std::vector<Key> keys;
    const auto from = static_cast<std::uint32_t>(random() % kKeys);
    for (std::uint32_t i = 0; i < 4; ++i) keys.push_back(key_of(from + i));
    if (views.size() < 3) {
      const HoldId hold = table.hold(1, ns, 0, keys, HoldKind::kView, false, {}, now, 0, run);
      for (const Held& one : run) beliefs.tenancy_viewed[one.ticket.slot] = one.ticket.tenancy;
      if (hold != 0) views.emplace_back(hold, run);
      if (hold != 0 && random() % 4 == 0) {  // a viewed one that is listed no more
        beliefs.retired[run[0].ticket.slot] = 1;
        table.retire(run[0].ticket.slot);
      }
    } else if (random() % 2 == 0) {
      const auto [hold, viewed] = views.front();
      views.erase(views.begin());
      for (const Held& one : viewed) {
        beliefs.tenancy_viewed[one.ticket.slot] = 0;  // first: what is not viewed may be in any state
        beliefs.retired[one.ticket.slot] = 0;
      }
      table.release(1, hold);
      for (const auto& other : views) {  // a slot may be viewed twice
        for (const Held& one : other.second) {
          if (table.info(one.ticket.slot).state == SlotState::kRetired) beliefs.retired[one.ticket.slot] = 1;
          beliefs.tenancy_viewed[one.ticket.slot] = one.ticket.tenancy;
        }
      }
    }
    table.reserve(1, ns, 0, keys, nullptr, {}, {}, true, now, 1'000'000, granted);
    for (const Reserved& one : granted) {
      if (one.status != ReserveStatus::kGranted) continue;
      beliefs.tenancy_writing[one.ticket.slot] = one.ticket.tenancy;
      writing.push_back(one.ticket);
    }
    while (writing.size() > random() % 12) {
      const Ticket ticket = writing[random() % writing.size()];
      std::erase_if(writing, [&ticket](const Ticket& other) { return other.slot == ticket.slot; });
      beliefs.tenancy_writing[ticket.slot] = 0;
      const std::uint64_t checksum = ticket.slot;
      if (random() % 8 == 0) {
        table.abort(1, ticket);
      } else {
        table.seal(1, ticket, {&checksum, 1});
      }
    }
    ++beliefs.steps;
  }
}

// The heir: everything adds up, and no cell that somebody may look at or write into is granted. It dies, and its heir has
// to keep the same: the clients are still there.
void inherit(void* meta, std::size_t bytes, Beliefs& beliefs, bool clients_go) {
  SlotTable table(config(), meta, bytes);
  table.recover();
  table.check_integrity();
  open(table);
  std::set<SlotId> kept;
  for (SlotId slot = 0; slot < 64; ++slot) {
    const std::uint32_t viewed = beliefs.tenancy_viewed[slot], writing = beliefs.tenancy_writing[slot];
    const SlotInfo info = table.info(slot);
    if (viewed != 0) {
      const bool retired = beliefs.retired[slot] != 0 && info.state == SlotState::kRetired;
      CHECK((retired || (info.state == SlotState::kSealed && info.holds > 0)) && info.ticket.tenancy == viewed);
      kept.insert(slot);
    }
    if (writing != 0) {
      CHECK(info.state == SlotState::kRetired && info.ticket.tenancy == writing);
      kept.insert(slot);
    }
  }
  CHECK(kept.empty() || table.quarantine_left());
  std::vector<Reserved> granted(1);
  for (std::uint32_t n = 0; n < 200; ++n) {
    const Key key = key_of(50'000 + n);
    table.reserve(2, static_cast<NsId>(n % 2), 0, {&key, 1}, nullptr, {}, {}, false, 0, 1, granted);
    if (granted[0].status == ReserveStatus::kGranted) CHECK(!kept.contains(granted[0].ticket.slot));
  }
  table.owner_gone(2);
  table.check_integrity();
  if (!clients_go) return;
  table.former_clients_gone();
  CHECK(!table.quarantine_left());
  table.check_integrity();
}

}  // namespace

int main() {
  const std::size_t bytes = SlotTable::meta_bytes(config());
  void* meta = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  auto* beliefs = static_cast<Beliefs*>(
      mmap(nullptr, sizeof(Beliefs), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  std::mt19937 random(11);
  std::uint64_t steps = 0, caught = 0;
  for (unsigned round = 0; round < 150; ++round) {
    for (auto& one : beliefs->tenancy_viewed) one = 0;
    for (auto& one : beliefs->tenancy_writing) one = 0;
    for (auto& one : beliefs->retired) one = 0;
    const std::uint64_t before = beliefs->steps;
    const pid_t child = fork();
    if (child == 0) work(meta, bytes, *beliefs, round);
    while (beliefs->steps < before + 20) usleep(50);
    usleep(static_cast<useconds_t>(random() % 1500));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    steps += beliefs->steps - before;
    for (const auto& one : beliefs->tenancy_writing) caught += one != 0 ? 1 : 0;
    for (const auto& one : beliefs->tenancy_viewed) caught += one != 0 ? 1 : 0;
    try {
      inherit(meta, bytes, *beliefs, false);
      inherit(meta, bytes, *beliefs, true);
    } catch (const std::logic_error& error) {
      std::fprintf(stderr, "round %u: %s\n", round, error.what());
      CHECK(false);
    }
  }
  CHECK(steps > 1000);
  CHECK(caught > 150);  // kills did fall between a grant, or a view, and its end
  return kvstore::test::finish();
}
