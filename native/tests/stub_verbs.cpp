#include "stub_verbs.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

#define STUB_PUBLIC __attribute__((visibility("default")))

namespace {

int new_event_fd() { return ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC | EFD_SEMAPHORE); }

// ---- at once, for the benchmark

constexpr std::size_t kEntries = 1 << 16;  // more than can be out

struct Stub {
  ibv_context context{};
  ibv_comp_channel channel{};
  ibv_cq cq{};
  std::vector<ibv_qp> pairs;
  std::vector<std::uint64_t> done = std::vector<std::uint64_t>(kEntries);  // ids
  std::uint64_t put = 0, taken = 0;
};

int post_at_once(ibv_qp* qp, ibv_send_wr* request, ibv_send_wr**) {
  auto* stub = static_cast<Stub*>(qp->qp_context);
  for (; request != nullptr; request = request->next) stub->done[stub->put++ % kEntries] = request->wr_id;
  return 0;
}

int poll_at_once(ibv_cq* cq, int room, ibv_wc* into) {
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

int never_notify(ibv_cq*, int) { return 0; }

}  // namespace

// ---- held, for tests

namespace kvstore::stub {

struct Pair {
  ibv_qp qp{};
  Device::Held* device = nullptr;
  std::deque<Request> out;
  bool broken = false;
};

struct Device::Held {
  ibv_context context{};  // first: a context is its device
  ibv_comp_channel channel{};
  ibv_cq cq{};
  std::deque<Pair> pairs;
  std::size_t depth = 0;

  mutable std::mutex mutex;  // of all below, and of the pairs
  std::deque<ibv_wc> done;
  std::deque<ibv_async_event> news;
  std::vector<std::size_t> chains;
  std::uint64_t events = 0;  // that nobody has acknowledged
  bool armed = false, hangs = false, moves = false;

  void tell(std::uint64_t id, ibv_wc_status status) {
    ibv_wc completion{};
    completion.wr_id = id;
    completion.status = status;
    done.push_back(completion);
    if (std::exchange(armed, false)) ::eventfd_write(channel.fd, 1);
  }
  void flush(Pair& pair) {
    if (hangs || !pair.broken) return;
    for (const Request& request : std::exchange(pair.out, {})) tell(request.id, IBV_WC_WR_FLUSH_ERR);
  }
};

namespace {

Device::Held& device_of(ibv_context* context) { return *reinterpret_cast<Device::Held*>(context); }

int post_held(ibv_qp* qp, ibv_send_wr* request, ibv_send_wr** refused) {
  Pair& pair = *static_cast<Pair*>(qp->qp_context);
  Device::Held& device = *pair.device;
  const std::lock_guard lock(device.mutex);
  std::size_t count = 0;
  for (; request != nullptr; request = request->next, ++count) {
    if (pair.out.size() == device.depth) {
      *refused = request;
      return ENOMEM;
    }
    const ibv_sge& piece = *request->sg_list;
    pair.out.push_back({request->wr_id, piece.addr, request->wr.rdma.remote_addr, piece.length, piece.lkey, request->wr.rdma.rkey,
                        request->opcode, request->send_flags});
  }
  device.chains.push_back(count);
  device.flush(pair);
  return 0;
}

int poll_held(ibv_cq* cq, int room, ibv_wc* into) {
  Device::Held& device = device_of(cq->context);
  const std::lock_guard lock(device.mutex);
  int count = 0;
  for (; count < room && !device.done.empty(); ++count) {
    into[count] = device.done.front();
    device.done.pop_front();
  }
  return count;
}

int notify_held(ibv_cq* cq, int) {
  Device::Held& device = device_of(cq->context);
  const std::lock_guard lock(device.mutex);
  device.armed = true;
  return 0;
}

bool taken(int fd) {
  eventfd_t count = 0;
  return ::eventfd_read(fd, &count) == 0;
}

}  // namespace

STUB_PUBLIC Device::Device(std::size_t pairs, std::size_t depth) : held_(std::make_unique<Held>()) {
  Held& held = *held_;
  held.context.ops.post_send = post_held;
  held.context.ops.poll_cq = poll_held;
  held.context.ops.req_notify_cq = notify_held;
  held.context.async_fd = new_event_fd();
  held.channel.context = &held.context;
  held.channel.fd = new_event_fd();
  held.cq.context = &held.context;
  held.cq.channel = &held.channel;
  held.depth = depth;
  for (std::size_t i = 0; i < pairs; ++i) {
    Pair& pair = held.pairs.emplace_back();
    pair.device = &held;
    pair.qp.context = &held.context;
    pair.qp.qp_context = &pair;
    pair.qp.send_cq = pair.qp.recv_cq = &held.cq;
  }
}

STUB_PUBLIC Device::~Device() {
  ::close(held_->channel.fd);
  ::close(held_->context.async_fd);
}

STUB_PUBLIC ibv_cq* Device::queue() noexcept { return &held_->cq; }
STUB_PUBLIC ibv_qp* Device::pair(std::size_t index) noexcept { return &held_->pairs[index].qp; }

STUB_PUBLIC std::vector<Request> Device::out(std::size_t pair) const {
  const std::lock_guard lock(held_->mutex);
  return {held_->pairs[pair].out.begin(), held_->pairs[pair].out.end()};
}

STUB_PUBLIC std::vector<std::size_t> Device::chains() const {
  const std::lock_guard lock(held_->mutex);
  return held_->chains;
}

STUB_PUBLIC bool Device::broken(std::size_t pair) const {
  const std::lock_guard lock(held_->mutex);
  return held_->pairs[pair].broken;
}

STUB_PUBLIC bool Device::drained() const {
  const std::lock_guard lock(held_->mutex);
  return held_->done.empty();
}

STUB_PUBLIC std::uint64_t Device::unacknowledged() const {
  const std::lock_guard lock(held_->mutex);
  return held_->events;
}

STUB_PUBLIC void Device::complete(std::size_t pair, std::size_t place, ibv_wc_status status) {
  const std::lock_guard lock(held_->mutex);
  std::deque<Request>& out = held_->pairs[pair].out;
  const Request request = out.at(place);
  out.erase(out.begin() + static_cast<std::ptrdiff_t>(place));
  if (status == IBV_WC_SUCCESS && held_->moves) {
    void* local = reinterpret_cast<void*>(request.local);
    void* remote = reinterpret_cast<void*>(request.remote);
    const bool reads = request.opcode == IBV_WR_RDMA_READ;
    std::memcpy(reads ? local : remote, reads ? remote : local, request.bytes);
  }
  held_->tell(request.id, status);
}

STUB_PUBLIC void Device::complete_all(std::size_t pair) {
  for (std::size_t left = out(pair).size(); left > 0; --left) complete(pair, 0);
}

STUB_PUBLIC void Device::push(std::uint64_t id, ibv_wc_status status) {
  const std::lock_guard lock(held_->mutex);
  held_->tell(id, status);
}

STUB_PUBLIC void Device::hang() {
  const std::lock_guard lock(held_->mutex);
  held_->hangs = true;
}

STUB_PUBLIC void Device::release() {
  const std::lock_guard lock(held_->mutex);
  held_->hangs = false;
  for (Pair& pair : held_->pairs) held_->flush(pair);
}

STUB_PUBLIC void Device::move_bytes() {
  const std::lock_guard lock(held_->mutex);
  held_->moves = true;
}

STUB_PUBLIC void Device::news(ibv_event_type type, int port) {
  const std::lock_guard lock(held_->mutex);
  ibv_async_event event{};
  event.event_type = type;
  event.element.port_num = port;
  held_->news.push_back(event);
  ::eventfd_write(held_->context.async_fd, 1);
}

}  // namespace kvstore::stub

// ---- what the engine looks up in libibverbs by name. Only tests get here: the benchmark's engine has the real library's.

using kvstore::stub::device_of;

extern "C" {

STUB_PUBLIC int ibv_modify_qp(ibv_qp* qp, ibv_qp_attr* attr, int mask) {
  kvstore::stub::Pair& pair = *static_cast<kvstore::stub::Pair*>(qp->qp_context);
  const std::lock_guard lock(pair.device->mutex);
  if (mask != IBV_QP_STATE || attr->qp_state != IBV_QPS_ERR) return EINVAL;
  pair.broken = true;
  pair.device->flush(pair);
  return 0;
}

STUB_PUBLIC int ibv_get_cq_event(ibv_comp_channel* channel, ibv_cq** cq, void** context) {
  if (!kvstore::stub::taken(channel->fd)) return -1;
  kvstore::stub::Device::Held& device = device_of(channel->context);
  const std::lock_guard lock(device.mutex);
  ++device.events;
  *cq = &device.cq;
  *context = nullptr;
  return 0;
}

STUB_PUBLIC void ibv_ack_cq_events(ibv_cq* cq, unsigned count) {
  kvstore::stub::Device::Held& device = device_of(cq->context);
  const std::lock_guard lock(device.mutex);
  device.events -= count;
}

STUB_PUBLIC int ibv_get_async_event(ibv_context* context, ibv_async_event* event) {
  if (!kvstore::stub::taken(context->async_fd)) return -1;
  kvstore::stub::Device::Held& device = device_of(context);
  const std::lock_guard lock(device.mutex);
  *event = device.news.front();
  device.news.pop_front();
  return 0;
}

STUB_PUBLIC void ibv_ack_async_event(ibv_async_event*) {}

// Nothing that is tested here registers or destroys anything.
STUB_PUBLIC int ibv_dereg_mr(ibv_mr*) { return ENOSYS; }
STUB_PUBLIC int ibv_destroy_qp(ibv_qp*) { return ENOSYS; }
#undef ibv_reg_mr_iova
STUB_PUBLIC ibv_mr* ibv_reg_mr_iova(ibv_pd*, void*, size_t, uint64_t, int) {
  errno = ENOSYS;
  return nullptr;
}

// ---- the benchmark's

// Lives as long as the process, since the engine that uses it may.
STUB_PUBLIC void* stub_new(int pairs) {
  auto* stub = new Stub;
  stub->context.ops.post_send = post_at_once;
  stub->context.ops.poll_cq = poll_at_once;
  stub->context.ops.req_notify_cq = never_notify;
  stub->channel.context = &stub->context;
  stub->channel.fd = new_event_fd();  // neither is ever readable
  stub->context.async_fd = new_event_fd();
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

STUB_PUBLIC void* stub_queue(void* stub) { return &static_cast<Stub*>(stub)->cq; }
STUB_PUBLIC void* stub_pair(void* stub, int index) { return &static_cast<Stub*>(stub)->pairs[static_cast<std::size_t>(index)]; }
}
