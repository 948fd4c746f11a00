// A provider without a kernel or a device, for bench/rdma_cost.py: what is posted has completed when the completion queue is next polled.
// Bytes do not move. Objects are those of verbs.h with a table of operations of ours, so posting and polling go the way they go with
// any provider.
#include <infiniband/verbs.h>
#include <sys/eventfd.h>

#include <cstdint>
#include <vector>

namespace {

constexpr std::size_t kEntries = 1 << 16;  // more than can be out

struct Stub {
  ibv_context context{};
  ibv_comp_channel channel{};
  ibv_cq cq{};
  std::vector<ibv_qp> pairs;
  std::vector<std::uint64_t> done = std::vector<std::uint64_t>(kEntries);  // ids
  std::uint64_t put = 0, taken = 0;
};

int post_send(ibv_qp* qp, ibv_send_wr* request, ibv_send_wr**) {
  auto* stub = static_cast<Stub*>(qp->qp_context);
  for (; request != nullptr; request = request->next) stub->done[stub->put++ % kEntries] = request->wr_id;
  return 0;
}

int poll_cq(ibv_cq* cq, int room, ibv_wc* into) {
  auto* stub = static_cast<Stub*>(cq->cq_context);
  int count = 0;
  for (; count < room && stub->taken < stub->put; ++count) {
    into[count] = {};
    into[count].wr_id = stub->done[stub->taken++ % kEntries];
    into[count].status = IBV_WC_SUCCESS;
    into[count].opcode = IBV_WC_RDMA_READ;
  }
  return count;
}

int notify(ibv_cq*, int) { return 0; }

}  // namespace

extern "C" {

// Lives as long as the process, since the engine that uses it may.
void* stub_new(int pairs) {
  auto* stub = new Stub;
  stub->context.ops.post_send = post_send;
  stub->context.ops.poll_cq = poll_cq;
  stub->context.ops.req_notify_cq = notify;
  stub->channel.context = &stub->context;
  stub->channel.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);  // neither is ever readable
  stub->context.async_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  stub->cq.context = &stub->context;
  stub->cq.channel = &stub->channel;
  stub->cq.cq_context = stub;
  stub->pairs.resize(static_cast<std::size_t>(pairs));
  for (ibv_qp& pair : stub->pairs) {
    pair.context = &stub->context;
    pair.qp_context = stub;
    pair.send_cq = pair.recv_cq = &stub->cq;
  }
  return stub;
}

void* stub_queue(void* stub) { return &static_cast<Stub*>(stub)->cq; }
void* stub_pair(void* stub, int index) { return &static_cast<Stub*>(stub)->pairs[static_cast<std::size_t>(index)]; }
}
