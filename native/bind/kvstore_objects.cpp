// What the core knows of the object tier.
//
//   set_object_tier(blocks_max: int) -> None          # 0: there is none; before anything is served
//   object_answers(answers: bool) -> None             # False: what lies there is not counted on for now
//   object_known(ns, shard, keys), object_gone(ns, shard, keys, why: PacksGone); object_blocks: int
//   forget_probes()                                   # a hole that was told of (WorkKind.PROBE) may be told of again
#include "kvstore_core_class.hpp"
#include "kvstore_core_types.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore::bind {

void bind_objects(nb::class_<CoreClass>& core) {
  core.def("set_object_tier", [](CoreClass& self, std::size_t blocks_max) { self.core.set_object_tier(blocks_max); }, "blocks_max"_a)
      .def("object_answers", [](CoreClass& self, bool answers) { self.core.object_answers(answers); }, "answers"_a)
      .def("object_known", [](CoreClass& self, NsId ns, std::uint16_t shard, const KeysIn& keys) {
             const auto span = keys_of(keys);
             nb::gil_scoped_release release;
             self.core.object_known(ns, shard, span);
           }, "ns"_a, "shard"_a, "keys"_a)
      .def("object_gone", [](CoreClass& self, NsId ns, std::uint16_t shard, const KeysIn& keys, PacksGone why) {
             const auto span = keys_of(keys);
             nb::gil_scoped_release release;
             self.core.object_gone(ns, shard, span, why);
           }, "ns"_a, "shard"_a, "keys"_a, "why"_a)
      .def_prop_ro("object_blocks", [](CoreClass& self) { return self.core.object_blocks(); })
      .def("forget_probes", [](CoreClass& self) { self.core.forget_probes(); });
}

}  // namespace kvstore::bind
