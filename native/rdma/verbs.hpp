// What is needed of libibverbs, found at run time: a machine without it loads this module all the same.
//
// Rules
// - Posting, polling and arming are inline in verbs.h and go straight to the provider; the rest is looked up by name.
// - Objects are pyverbs's (queue pairs, completion queues, protection domains); memory regions are made here, since making
//   one pins memory, and queue pairs end here, since a kernel may wait for a link that is gone: seconds for which pyverbs would hold the
//   interpreter.
// - Nothing here throws for what a device says: a call gives an errno.
#pragma once
#include <infiniband/verbs.h>

#include <array>
#include <cstdint>
#include <string>

namespace kvstore::rdma {

struct Verbs {
  decltype(&::ibv_modify_qp) modify_qp = nullptr;
  decltype(&::ibv_destroy_qp) destroy_qp = nullptr;
  decltype(&::ibv_dereg_mr) dereg_mr = nullptr;
  decltype(&::ibv_get_cq_event) get_cq_event = nullptr;
  decltype(&::ibv_ack_cq_events) ack_cq_events = nullptr;
  decltype(&::ibv_get_async_event) get_async_event = nullptr;
  decltype(&::ibv_ack_async_event) ack_async_event = nullptr;
  struct ibv_mr* (*reg_mr_iova)(struct ibv_pd*, void*, std::size_t, std::uint64_t, int) = nullptr;
  // Null where the library is older than dma-bufs.
  struct ibv_mr* (*reg_dmabuf_mr)(struct ibv_pd*, std::uint64_t, std::size_t, std::uint64_t, int, int) = nullptr;
};

// The library's functions, or null where it is not there; `why` then says what is missing.
const Verbs* verbs(std::string* why = nullptr);

// Where a queue pair is to be connected to.
struct Route {
  std::array<std::uint8_t, 16> gid{};
  std::uint8_t gid_index = 0;
  bool global = true;       // by GID (RoCE always, InfiniBand across subnets), else by LID
  std::uint16_t lid = 0;
  std::uint8_t port = 1, hop_limit = 64;
  std::uint32_t peer_qpn = 0, peer_psn = 0, psn = 0;
  std::uint8_t mtu = 1;     // an ibv_mtu
  std::uint8_t reads = 1;   // outstanding, either way
  std::uint8_t timeout = 14, retries = 6;
  bool serving = false;     // the peer may read and write by its keys
};

// Takes a fresh queue pair to where it sends and answers. An errno. May wait seconds for the peer's link address.
int connect(ibv_qp* qp, const Route& route);

// Every outstanding request comes back, flushed. An errno.
int to_error(ibv_qp* qp);

}  // namespace kvstore::rdma
