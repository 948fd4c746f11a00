#include "verbs.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cerrno>

namespace kvstore::rdma {

namespace {

struct Loaded {
  Verbs verbs;
  std::string why;

  template <typename Function>
  void find(void* library, const char* name, Function& into) {
    into = reinterpret_cast<Function>(::dlsym(library, name));
    if (into == nullptr && why.empty()) why = std::string("libibverbs has no ") + name;
  }

  Loaded() {
    void* library = ::dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* told = ::dlerror();
      why = told != nullptr ? told : "libibverbs.so.1 cannot be loaded";
      return;
    }
    find(library, "ibv_modify_qp", verbs.modify_qp);
    find(library, "ibv_destroy_qp", verbs.destroy_qp);
    find(library, "ibv_dereg_mr", verbs.dereg_mr);
    find(library, "ibv_get_cq_event", verbs.get_cq_event);
    find(library, "ibv_ack_cq_events", verbs.ack_cq_events);
    find(library, "ibv_get_async_event", verbs.get_async_event);
    find(library, "ibv_ack_async_event", verbs.ack_async_event);
    find(library, "ibv_reg_mr_iova", verbs.reg_mr_iova);
    verbs.reg_dmabuf_mr = reinterpret_cast<decltype(verbs.reg_dmabuf_mr)>(::dlsym(library, "ibv_reg_dmabuf_mr"));
  }
};

int modify(ibv_qp* qp, ibv_qp_attr& attr, int mask) {
  const Verbs* v = verbs();
  if (v == nullptr) return ENOSYS;
  const int error = v->modify_qp(qp, &attr, mask);
  return error < 0 ? errno : error;
}

int to_init(ibv_qp* qp, const Route& route) {
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_INIT;
  attr.port_num = route.port;
  attr.qp_access_flags = route.serving ? IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE : 0U;
  return modify(qp, attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
}

int to_receive(ibv_qp* qp, const Route& route) {
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_RTR;
  attr.path_mtu = static_cast<ibv_mtu>(route.mtu);
  attr.dest_qp_num = route.peer_qpn;
  attr.rq_psn = route.peer_psn;
  attr.max_dest_rd_atomic = route.reads;
  attr.min_rnr_timer = 12;
  attr.ah_attr.port_num = route.port;
  attr.ah_attr.dlid = route.lid;
  if (route.global) {
    attr.ah_attr.is_global = 1;
    std::copy(route.gid.begin(), route.gid.end(), attr.ah_attr.grh.dgid.raw);
    attr.ah_attr.grh.sgid_index = route.gid_index;
    attr.ah_attr.grh.hop_limit = route.hop_limit;
  }
  return modify(qp, attr,
                IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
                    IBV_QP_MIN_RNR_TIMER);
}

int to_send(ibv_qp* qp, const Route& route) {
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_RTS;
  attr.sq_psn = route.psn;
  attr.timeout = route.timeout;
  attr.retry_cnt = route.retries;
  attr.rnr_retry = 7;
  attr.max_rd_atomic = route.reads;
  return modify(qp, attr,
                IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
}

}  // namespace

const Verbs* verbs(std::string* why) {
  static const Loaded loaded;
  if (why != nullptr) *why = loaded.why;
  return loaded.why.empty() ? &loaded.verbs : nullptr;
}

int connect(ibv_qp* qp, const Route& route) {
  int error = to_init(qp, route);
  if (error == 0) error = to_receive(qp, route);
  if (error == 0) error = to_send(qp, route);
  return error;
}

int to_error(ibv_qp* qp) {
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_ERR;
  return modify(qp, attr, IBV_QP_STATE);
}

}  // namespace kvstore::rdma
