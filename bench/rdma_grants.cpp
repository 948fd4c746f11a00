// Grants and revocations by bare verbs, for bench/rdma_grants_inside.py: a memory region of exactly the range, or a type 2 window on the
// peer's queue pair. Every call gives an errno.
#include <infiniband/verbs.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kRights = IBV_ACCESS_REMOTE_READ;
constexpr auto kPatience = std::chrono::seconds(10);
constexpr int kFlushed = EIO;  // the queue pair is in error: a peer's read was refused first. It answers nothing any more, either
constexpr std::uint8_t kGranted = 0x11, kTakenBack = 0xEE;

std::uint64_t ns_since(Clock::time_point start) {
  return static_cast<std::uint64_t>(std::chrono::nanoseconds(Clock::now() - start).count());
}

// Posts a chain, waits for its last request, the only one that is signalled.
int posted(ibv_qp* qp, std::vector<ibv_send_wr>& chain) {
  for (std::size_t i = 0; i < chain.size(); ++i) chain[i].next = i + 1 < chain.size() ? &chain[i + 1] : nullptr;
  chain.back().send_flags = IBV_SEND_SIGNALED;
  ibv_send_wr* refused = nullptr;
  if (const int error = ibv_post_send(qp, chain.data(), &refused)) return error;
  ibv_wc completion{};
  for (const auto end = Clock::now() + kPatience; Clock::now() < end;) {
    if (ibv_poll_cq(qp->send_cq, 1, &completion) == 1) return completion.status == IBV_WC_SUCCESS ? 0 : kFlushed;
  }
  return ETIMEDOUT;
}

int bind(ibv_qp* qp, ibv_mr* whole, const std::vector<ibv_mw*>& windows, std::uint64_t address, std::uint64_t bytes, std::uint64_t step) {
  std::vector<ibv_send_wr> chain(windows.size());
  for (std::size_t i = 0; i < windows.size(); ++i) {
    chain[i].opcode = IBV_WR_BIND_MW;
    chain[i].bind_mw.mw = windows[i];
    chain[i].bind_mw.rkey = ibv_inc_rkey(windows[i]->rkey);
    chain[i].bind_mw.bind_info = {whole, address + i * step, bytes, static_cast<unsigned>(kRights)};
  }
  const int error = posted(qp, chain);
  if (error == 0)
    for (ibv_mw* window : windows) window->rkey = ibv_inc_rkey(window->rkey);
  return error;
}

int invalidate(ibv_qp* qp, const std::vector<ibv_mw*>& windows) {
  std::vector<ibv_send_wr> chain(windows.size());
  for (std::size_t i = 0; i < windows.size(); ++i) {
    chain[i].opcode = IBV_WR_LOCAL_INV;
    chain[i].invalidate_rkey = windows[i]->rkey;
  }
  return posted(qp, chain);
}

}  // namespace

extern "C" {

// Memory that windows may be bound to, without remote rights of its own.
ibv_mr* grants_whole(ibv_qp* qp, void* address, std::uint64_t bytes) {
  return ibv_reg_mr(qp->pd, address, bytes, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND);
}
int grants_let_go(ibv_mr* whole) { return ibv_dereg_mr(whole); }

// `count` ranges a grant, `step` apart. Into `ns`: of each round, granting and revoking.
int grants_regions(ibv_qp* qp, std::uint64_t address, std::uint64_t bytes, std::uint64_t step, int count, int rounds, std::uint64_t* ns) {
  std::vector<ibv_mr*> made(static_cast<std::size_t>(count));
  for (int round = 0; round < rounds; ++round) {
    auto start = Clock::now();
    for (std::size_t i = 0; i < made.size(); ++i) {
      made[i] = ibv_reg_mr(qp->pd, reinterpret_cast<void*>(address + i * step), bytes, kRights);
      if (made[i] == nullptr) return errno;
    }
    *ns++ = ns_since(start);
    start = Clock::now();
    for (ibv_mr* one : made)
      if (const int error = ibv_dereg_mr(one)) return error;
    *ns++ = ns_since(start);
  }
  return 0;
}

int grants_windows(ibv_qp* qp, ibv_mr* whole, std::uint64_t address, std::uint64_t bytes, std::uint64_t step, int count, int rounds,
                   std::uint64_t* ns) {
  std::vector<ibv_mw*> windows(static_cast<std::size_t>(count));
  for (ibv_mw*& window : windows)
    if ((window = ibv_alloc_mw(qp->pd, IBV_MW_TYPE_2)) == nullptr) return errno;
  int error = 0;
  for (int round = 0; round < rounds && error == 0; ++round) {
    auto start = Clock::now();
    error = bind(qp, whole, windows, address, bytes, step);
    *ns++ = ns_since(start);
    if (error != 0) break;
    start = Clock::now();
    error = invalidate(qp, windows);
    *ns++ = ns_since(start);
  }
  for (ibv_mw* window : windows) ibv_dealloc_mw(window);
  return error;
}

// A grant of one range, left open; its key is in `key`.
void* grants_open(ibv_qp* qp, ibv_mr* whole, std::uint64_t address, std::uint64_t bytes, int by_window, std::uint32_t* key) {
  if (by_window == 0) {
    ibv_mr* made = ibv_reg_mr(qp->pd, reinterpret_cast<void*>(address), bytes, kRights);
    if (made != nullptr) *key = made->rkey;
    return made;
  }
  ibv_mw* window = ibv_alloc_mw(qp->pd, IBV_MW_TYPE_2);
  if (window != nullptr && bind(qp, whole, {window}, address, bytes, 0) != 0) {
    ibv_dealloc_mw(window);
    window = nullptr;
  }
  if (window != nullptr) *key = window->rkey;
  return window;
}

// What revoking waits for.
int grants_revoke(ibv_qp* qp, void* grant, int by_window) {
  return by_window != 0 ? invalidate(qp, {static_cast<ibv_mw*>(grant)}) : ibv_dereg_mr(static_cast<ibv_mr*>(grant));
}

int grants_close(ibv_qp* qp, void* grant, int by_window) {
  const int error = grants_revoke(qp, grant, by_window);
  if (by_window != 0) ibv_dealloc_mw(static_cast<ibv_mw*>(grant));
  return error;
}

// Of a queue pair that cannot be posted on any more.
int grants_drop(void* grant, int by_window) {
  return by_window != 0 ? ibv_dealloc_mw(static_cast<ibv_mw*>(grant)) : ibv_dereg_mr(static_cast<ibv_mr*>(grant));
}

// One READ of the peer's; a completion status, or -1 where none came.
int grants_read(ibv_qp* qp, std::uint64_t into, std::uint32_t local_key, std::uint64_t from, std::uint32_t key, std::uint32_t bytes) {
  ibv_sge piece{into, bytes, local_key};
  ibv_send_wr request{}, *refused = nullptr;
  request.sg_list = &piece;
  request.num_sge = 1;
  request.opcode = IBV_WR_RDMA_READ;
  request.send_flags = IBV_SEND_SIGNALED;
  request.wr.rdma = {from, key};
  if (ibv_post_send(qp, &request, &refused) != 0) return -1;
  ibv_wc completion{};
  for (const auto end = Clock::now() + kPatience; Clock::now() < end;)
    if (ibv_poll_cq(qp->send_cq, 1, &completion) == 1) return completion.status;
  return -1;
}

// The peer (`reader`) reads one granted page again and again; the grant is taken back meanwhile, and the page overwritten at once. How many
// of the reads brought what was written after that, -1 for an error. Both queue pairs are of no more use afterwards.
int grants_late(ibv_qp* reader, std::uint64_t into, std::uint32_t local_key, int slots, ibv_qp* owner, ibv_mr* whole, void* page,
                std::uint32_t bytes, int by_window, std::uint32_t wait_us) {
  std::memset(page, kGranted, bytes);
  std::memset(reinterpret_cast<void*>(into), 0, static_cast<std::size_t>(slots) * bytes);
  const auto address = reinterpret_cast<std::uint64_t>(page);
  std::uint32_t key = 0;
  void* grant = grants_open(owner, whole, address, bytes, by_window, &key);
  if (grant == nullptr) return -1;
  std::atomic<bool> broken{false};
  std::thread reading([&] {
    int out = 0;
    const auto ask = [&](std::uint64_t slot) {
      ibv_sge piece{into + slot * bytes, bytes, local_key};
      ibv_send_wr request{}, *refused = nullptr;
      request.wr_id = slot;
      request.sg_list = &piece;
      request.num_sge = 1;
      request.opcode = IBV_WR_RDMA_READ;
      request.send_flags = IBV_SEND_SIGNALED;
      request.wr.rdma = {address, key};
      if (ibv_post_send(reader, &request, &refused) == 0) ++out;
    };
    for (int slot = 0; slot < slots; ++slot) ask(static_cast<std::uint64_t>(slot));
    for (const auto end = Clock::now() + kPatience; out > 0 && Clock::now() < end;) {
      ibv_wc completion{};
      if (ibv_poll_cq(reader->send_cq, 1, &completion) != 1) continue;
      --out;
      if (completion.status == IBV_WC_SUCCESS && !broken) ask(completion.wr_id);
      else broken = true;
    }
  });
  std::this_thread::sleep_for(std::chrono::microseconds(wait_us));
  const int error = grants_revoke(owner, grant, by_window);
  std::memset(page, kTakenBack, bytes);
  reading.join();
  if (by_window != 0) grants_drop(grant, by_window);
  if (error != 0 && error != kFlushed) return -1;
  int late = 0;
  for (int slot = 0; slot < slots; ++slot) {
    const auto* got = reinterpret_cast<const std::uint8_t*>(into) + static_cast<std::size_t>(slot) * bytes;
    late += std::find(got, got + bytes, kTakenBack) != got + bytes;
  }
  return late;
}
}
