// transfer._native: one bind function a file, called here in the order of the layers.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

namespace kvstore::bind {
void bind_transfer_segment(nb::module_& m);
void bind_transfer_local(nb::module_& m);
void bind_transfer_tcp(nb::module_& m);
#ifdef KVSTORE_RDMA
void bind_transfer_rdma(nb::module_& m);
#endif
}  // namespace kvstore::bind

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // memory that a lost thread may still touch is kept on purpose
  m.doc() = "Native core of transfer. Import it through transfer.native only.";
  kvstore::bind::bind_transfer_segment(m);
  kvstore::bind::bind_transfer_local(m);
  kvstore::bind::bind_transfer_tcp(m);
#ifdef KVSTORE_RDMA
  kvstore::bind::bind_transfer_rdma(m);
#endif
}
