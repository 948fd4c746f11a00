// Evidence that a block will be read again: fetched, put again, or said to be.
#include <vector>

#include "check.hpp"
#include "core/slot_table.hpp"

using namespace kvstore;

namespace {

Key key(std::uint8_t name) {
  Key out;
  out.bytes.fill(name);
  return out;
}

struct Bench {
  SlotTable table{{.bytes = 1 << 20, .slab_bytes = 1 << 17}, nullptr, 0};
  Bench() {
    NamespaceSpec spec;
    spec.digest = key(200);
    spec.shards = {{4096, {4096}}};
    table.add_namespace(0, spec);
  }
  SlotId put(std::uint8_t name, const Hint& hint = {}) {
    const Key keys[] = {key(name)};
    Reserved out[1];
    table.reserve(1, 0, 0, keys, nullptr, {}, hint, false, 0, 1000, out);
    const std::uint64_t checksum[] = {7};
    if (out[0].status == ReserveStatus::kGranted) CHECK(table.seal(1, out[0].ticket, checksum) == Outcome::kOk);
    return out[0].ticket.slot;
  }
  bool wanted(SlotId slot) const { return table.info(slot).wanted; }
};

}  // namespace

int main() {
  Bench b;
  const SlotId once = b.put(1);
  CHECK(!b.wanted(once));
  CHECK(b.put(1) == once && b.wanted(once));

  const SlotId fetched = b.put(2);
  const Key keys[] = {key(2)};
  std::vector<Held> held;
  Ticket ticket = b.table.info(fetched).ticket;
  CHECK(b.table.release(9, b.table.hold_slots(9, {&ticket, 1}, held)) == Outcome::kOk);
  CHECK(!b.wanted(fetched));  // the mover's hold says nothing
  CHECK(b.table.release(9, b.table.hold(9, 0, 0, keys, HoldKind::kLease, false, {}, 0, 1000, held)) == Outcome::kOk);
  CHECK(b.wanted(fetched));

  CHECK(b.wanted(b.put(3, {.turn = 2})));
  CHECK(b.wanted(b.put(4, {.expected_return_ms = 5000})));
  CHECK(b.wanted(b.put(5, {.priority = 1})));
  CHECK(!b.wanted(b.put(6, {.turn = 1})));
  CHECK(!b.wanted(b.put(7, {.turn = 5, .end = true})));

  // A slot's next tenant starts anew.
  CHECK(b.table.retire(fetched) == Outcome::kOk);
  CHECK(b.put(8) == fetched && !b.wanted(fetched));
  b.table.check_integrity();
  return kvstore::test::finish();
}
