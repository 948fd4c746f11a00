// Whatever a peer sends, before HELLO and after it, trusted or not: the door answers or cuts it off, and its tables stay whole.
// The first byte chooses the peer; the rest is its stream, given in two pieces so that frames are cut anywhere.
#include <fcntl.h>
#include <sys/epoll.h>

#include <cstdint>

#include "../tests/door_rig.hpp"
#include "door/server_impl.hpp"

using namespace kvstore;
using namespace kvstore::test;

namespace {

struct Target {
  Target() {
    CoreConfig config;
    config.memory.bytes = 1 << 20;
    config.memory.slab_bytes = 1 << 16;
    config.file = TableConfig{1 << 20, 1 << 16, 4096, "leaf_lru", 1};
    config.works_max = 64;
    config.events_max = 64;
    config.reserve_lapse = 1'000;
    meta_bytes = MetaSegment::bytes(config.memory);
    meta = mmap(nullptr, meta_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    core = std::make_unique<NodeCore>(config, meta, meta_bytes, 1);
    core->open_namespace(spec_of(1, {4096, 100, 8000}));
    core->open_namespace(spec_of(2, {4096}));
    memory = memfd_create("fuzz", MFD_CLOEXEC);
    if (ftruncate(memory, 1 << 20) != 0) std::abort();
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    DoorConfig doors = trusting();
    doors.frame_bytes_max = 1 << 16;
    doors.requests_max = 8;
    door = std::make_unique<Door::Impl>(*core, listener, memory, 1 << 20, doors);
    door->inbox->thread = std::this_thread::get_id();
  }
  std::size_t meta_bytes;
  void* meta;
  std::unique_ptr<NodeCore> core;
  int memory, listener;
  std::unique_ptr<Door::Impl> door;
};

void feed(Door::Impl& door, Connection& peer, const std::uint8_t* data, std::size_t size, Nanos now) {
  if (peer.state != Connection::State::kHello && peer.state != Connection::State::kOpen) return;
  if (peer.in.size() - peer.in_end < size) peer.in.resize(peer.in_end + size);
  std::memcpy(peer.in.data() + peer.in_end, data, size);
  peer.in_end += size;
  door.work_off(peer, now);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Target target;
  if (size < 2) return 0;
  Door::Impl& door = *target.door;
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) std::abort();
  auto owned = std::make_unique<Connection>();
  Connection& peer = *owned;
  peer.fd = pair[0];
  peer.stream = tcp::plain_stream(pair[0]);
  peer.owner = target.core->new_owner();
  peer.uid = getuid();
  peer.pid = getpid();
  peer.in.resize(64);
  peer.trusted = (data[0] & 1) != 0;
  if ((data[0] & 2) != 0) peer.state = Connection::State::kOpen;
  if (peer.state == Connection::State::kHello) peer.trusted = false;
  peer.remote = !peer.trusted && (data[0] & 4) != 0;
  peer.allow(0);
  epoll_event event{};
  epoll_ctl(door.epoll, EPOLL_CTL_ADD, peer.fd, &event);
  const OwnerId owner = peer.owner;
  door.peers.emplace(owner, std::move(owned));
  static Nanos now = 1'000'000'000;
  const std::size_t half = 1 + (size - 1) * (data[0] >> 2) / 64;
  feed(door, peer, data + 1, half - 1, now);
  now += 500;
  feed(door, peer, data + half, size - half, now);
  target.core->tick(now + 10'000);
  for (const Work& work : target.core->take_work(100)) target.core->promoted(work.ns, work.shard, work.keys, now);
  if (peer.state == Connection::State::kCondemned || peer.state != Connection::State::kClosed) door.close_peer(peer);
  door.bury();
  door.requests.clear();
  close(pair[1]);
  now += 20'000;
  target.core->tick(now);
  target.core->with_memory([](SlotTable& table) {
    table.check_integrity();
    if (table.stats().holds != 0 || table.stats().slots_reserved != 0) std::abort();  // its end is the end of all it had
  });
  return 0;
}
