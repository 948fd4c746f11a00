// Devices without a kernel: objects of verbs.h with a table of operations of ours, so that posting and polling go the way they go with any
// provider. Native tests load this as their libibverbs.so.1; bench/rdma_cost.py as a plain library, beside the real one.
//
// Rules
// - Here, requests are held until the test says how each ends. (Those of stub_new, for the benchmark, end when the queue is next polled.)
// - As on a real device, a queue takes `depth` requests at most, and a pair that is moved to error gives back all that is out; but a
//   request that fails breaks its pair no further: whoever is told of it must.
// - `hang`: the device gives nothing back, until `release`.
#pragma once
#include <infiniband/verbs.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace kvstore::stub {

struct Request {
  std::uint64_t id, local, remote;
  std::uint32_t bytes, local_key, remote_key;
  ibv_wr_opcode opcode;
  unsigned flags;
};

class Device {
 public:
  Device(std::size_t pairs, std::size_t depth);
  ~Device();

  ibv_cq* queue() noexcept;
  ibv_qp* pair(std::size_t index) noexcept;

  std::vector<Request> out(std::size_t pair) const;
  std::vector<std::size_t> chains() const;  // how many requests came at a time
  bool broken(std::size_t pair) const;      // it was moved to error
  bool drained() const;                     // all completions have been taken
  std::uint64_t unacknowledged() const;     // events of the completion queue

  // The request at a place of `out` ends. One that succeeds moves its bytes, if that was asked for.
  void complete(std::size_t pair, std::size_t place, ibv_wc_status status = IBV_WC_SUCCESS);
  void complete_all(std::size_t pair);
  void push(std::uint64_t id, ibv_wc_status status);  // of no request
  void hang();
  void release();
  void move_bytes();
  void news(ibv_event_type type, int port);

  struct Held;

 private:
  std::unique_ptr<Held> held_;
};

}  // namespace kvstore::stub
