// kvstore._native: one bind function a file, called here in the order of the layers.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

namespace kvstore {
void bind_io(nb::module_& m);
void bind_slot_header(nb::module_& m);
void bind_table(nb::module_& m);
namespace bind {
void bind_checksum(nb::module_& m);
void bind_claims(nb::module_& m);
void bind_core(nb::module_& m);
void bind_door(nb::module_& m);
void bind_session(nb::module_& m);
void bind_keys(nb::module_& m);
}  // namespace bind
}  // namespace kvstore

NB_MODULE(_native, m) {
  m.doc() = "Native core of kvstore. Import it through kvstore.native only.";
  kvstore::bind::bind_checksum(m);
  kvstore::bind::bind_keys(m);
  kvstore::bind_io(m);
  kvstore::bind_slot_header(m);
  kvstore::bind_table(m);
  kvstore::bind::bind_claims(m);
  kvstore::bind::bind_core(m);
  kvstore::bind::bind_door(m);
  kvstore::bind::bind_session(m);
}
