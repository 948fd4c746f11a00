// What a core is made with and what its calls are told: table configurations, hints, and every kind and status by name.
#include <nanobind/stl/string.h>

#include "kvstore_core_class.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore::bind {

void bind_core_config(nb::module_& m) {
  nb::class_<TableConfig>(m, "TableConfig", "One tier's table: bytes of its medium, slabs, headers, eviction policy.")
      .def("__init__",
           [](TableConfig* self, std::uint64_t bytes, std::uint64_t slab_bytes, std::uint32_t header_bytes,
              const std::string& policy, std::uint64_t hash_seed) {
             new (self) TableConfig{bytes, slab_bytes, header_bytes, policy, hash_seed};
           },
           "bytes"_a, "slab_bytes"_a = TableConfig{}.slab_bytes, "header_bytes"_a = 0, "policy"_a = "leaf_lru",
           "hash_seed"_a = TableConfig{}.hash_seed)
      .def_ro("bytes", &TableConfig::bytes)
      .def_ro("slab_bytes", &TableConfig::slab_bytes)
      .def_ro("header_bytes", &TableConfig::header_bytes)
      .def_ro("policy", &TableConfig::policy);
  nb::class_<Hint>(m, "Hint", "What a caller tells about the future of the blocks it touches; zero: nothing said.")
      .def("__init__",
           [](Hint* self, std::uint64_t family, std::uint64_t session, std::uint32_t turn, std::uint32_t expected_return_ms,
              int priority, bool end, std::uint32_t position, bool from_below) {
             if (priority < -1 || priority > 1) throw nb::value_error("priority: -1, 0 or 1");
             new (self) Hint{family, session, turn, expected_return_ms, static_cast<std::int8_t>(priority), end, 0, position, from_below};
           },
           "family"_a = 0, "session"_a = 0, "turn"_a = 0, "expected_return_ms"_a = 0, "priority"_a = 0, "end"_a = false,
           "position"_a = 0, "from_below"_a = false)
      .def_ro("family", &Hint::family)
      .def_ro("session", &Hint::session)
      .def_ro("turn", &Hint::turn)
      .def_ro("expected_return_ms", &Hint::expected_return_ms)
      .def_ro("priority", &Hint::priority)
      .def_ro("end", &Hint::end)
      .def_ro("position", &Hint::position)
      .def_ro("from_below", &Hint::from_below);
  nb::enum_<HoldKind>(m, "HoldKind", nb::is_arithmetic())
      .value("LEASE", HoldKind::kLease).value("VIEW", HoldKind::kView).value("PIN", HoldKind::kPin);
  nb::enum_<NeedKind>(m, "NeedKind", nb::is_arithmetic())
      .value("ALL", NeedKind::kAll).value("LAST", NeedKind::kLast).value("STATE", NeedKind::kState);
  nb::enum_<Tier>(m, "Tier", nb::is_arithmetic())
      .value("NONE", Tier::kNone).value("MEMORY", Tier::kMemory).value("FILE", Tier::kFile).value("OBJECT", Tier::kObject);
  nb::enum_<Outcome>(m, "Outcome", nb::is_arithmetic())
      .value("OK", Outcome::kOk).value("STALE", Outcome::kStale).value("BAD_INPUT", Outcome::kBadInput);
  nb::enum_<ReserveStatus>(m, "ReserveStatus", nb::is_arithmetic())
      .value("GRANTED", ReserveStatus::kGranted).value("HELD", ReserveStatus::kHeld).value("PENDING", ReserveStatus::kPending)
      .value("FULL", ReserveStatus::kFull).value("TOO_LARGE", ReserveStatus::kTooLarge);
  nb::enum_<MovePath>(m, "MovePath", nb::is_arithmetic())
      .value("GET_MAPPED", MovePath::kGetMapped).value("GET_TRANSFERRED", MovePath::kGetTransferred).value("GET_GRPC", MovePath::kGetGrpc)
      .value("PUT_MAPPED", MovePath::kPutMapped).value("PUT_TRANSFERRED", MovePath::kPutTransferred).value("PUT_GRPC", MovePath::kPutGrpc)
      .value("HOLD_MEMORY", MovePath::kHoldMemory).value("HOLD_PARKED", MovePath::kHoldParked);
  nb::enum_<Work::Kind>(m, "WorkKind", nb::is_arithmetic())
      .value("PROMOTE", Work::Kind::kPromote).value("WRITE_BEHIND", Work::Kind::kWriteBehind).value("CORRUPT", Work::Kind::kCorrupt)
      .value("PROBE", Work::Kind::kProbe);
  nb::enum_<PacksGone>(m, "PacksGone", nb::is_arithmetic())
      .value("FORGOTTEN", PacksGone::kForgotten).value("SWEPT", PacksGone::kSwept).value("LOST", PacksGone::kLost);
  nb::enum_<Event::Kind>(m, "EventKind", nb::is_arithmetic())
      .value("STORED", Event::Kind::kStored).value("REMOVED", Event::Kind::kRemoved).value("CLEARED", Event::Kind::kCleared);
  m.attr("META_BYTES_MAX") = kMetaBytesMax;
  // A name for bytes that a property called bytes does not hide from type checkers.
  const nb::handle raw(reinterpret_cast<PyObject*>(&PyBytes_Type));
  m.attr("Raw") = nb::module_::import_("typing").attr("Annotated")[nb::make_tuple(raw, "bytes")];
}

}  // namespace kvstore::bind
