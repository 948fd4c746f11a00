// A node's core and door over a small memory, in this process, for tests and fuzz targets.
#pragma once
#include <netinet/in.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "core/node_core.hpp"
#include "door/operation.hpp"
#include "door/server.hpp"
#include "door/session.hpp"

namespace kvstore::test {

using namespace kvstore::door;

inline Key key_of(std::uint64_t n) {
  Key key;
  for (std::size_t i = 0; i < 32; ++i) key.bytes[i] = static_cast<std::uint8_t>((n * 0x9e3779b97f4a7c15ull) >> (8 * (i % 8)) ^ (i * 31) ^ (n >> (i % 7)));
  std::memcpy(key.bytes.data() + 24, &n, 8);
  return key;
}

inline std::vector<Key> chain_of(std::uint64_t from, std::size_t count) {
  std::vector<Key> keys;
  for (std::size_t i = 0; i < count; ++i) keys.push_back(key_of(from + i));
  return keys;
}

inline NamespaceSpec spec_of(std::uint64_t id, std::vector<std::uint32_t> parts) {
  NamespaceSpec spec;
  spec.digest = key_of(0xdead0000 + id);
  spec.block_tokens = 16;
  ShardSpec shard;
  for (const std::uint32_t bytes : parts) shard.bytes += bytes;
  shard.part_bytes = std::move(parts);
  spec.shards.push_back(std::move(shard));
  return spec;
}

inline Nanos in_ms(Nanos ms) { return monotonic_now() + ms * 1'000'000; }

struct Rig {
  explicit Rig(std::uint64_t bytes = 64ull << 20, CoreConfig base = {}, DoorConfig doors = {}, bool with_file = false) {
    config = std::move(base);
    config.memory.bytes = bytes;
    config.memory.slab_bytes = bytes / 16;
    if (with_file) config.file = TableConfig{bytes, bytes / 16, 4096, "leaf_lru", 1};
    payload_fd = memfd_create("payload", MFD_CLOEXEC);
    if (payload_fd < 0 || ftruncate(payload_fd, static_cast<off_t>(bytes)) != 0) std::abort();
    payload = static_cast<std::byte*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, payload_fd, 0));
    meta_bytes = MetaSegment::bytes(config.memory);
    meta = mmap(nullptr, meta_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    door_config = std::move(doors);
    door_config.allowed_uids = {getuid()};  // so that a peer that is not trusted comes in
    door_config.anonymous_over_tcp = true;
    start(1);
  }
  void start(std::uint64_t incarnation) {
    core = std::make_unique<NodeCore>(config, meta, meta_bytes, incarnation);
    static int count = 0;
    path = "/tmp/kv-door-" + std::to_string(getpid()) + "-" + std::to_string(count++) + ".sock";
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    unlink(path.c_str());
    if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || listen(listener, 128) != 0) std::abort();
    door = std::make_unique<Door>(*core, listener, payload_fd, config.memory.bytes, door_config);
    const int remote = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in place{};
    place.sin_family = AF_INET;
    place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof place;
    if (bind(remote, reinterpret_cast<sockaddr*>(&place), size) != 0 || listen(remote, 128) != 0) std::abort();
    if (getsockname(remote, reinterpret_cast<sockaddr*>(&place), &size) != 0) std::abort();
    port = ntohs(place.sin_port);
    door->listen_tcp(remote, nullptr);
    close(remote);
    door->start();
  }
  void stop() {
    door.reset();
    close(listener);
    unlink(path.c_str());
    core.reset();
  }
  ~Rig() {
    if (door) stop();
    munmap(payload, config.memory.bytes);
    munmap(meta, meta_bytes);
    close(payload_fd);
  }
  std::shared_ptr<Session> connect(std::string token = "", bool verify = true) {
    SessionConfig session;
    if (by_tcp) {
      session.host = "127.0.0.1";
      session.port = port;
    } else {
      session.path = path;
    }
    session.token = std::move(token);
    session.verify = verify;
    return std::make_shared<Session>(session);
  }
  // A session that may use the namespace and knows its parts.
  std::shared_ptr<Session> connect(NsId ns, std::string token = "") {
    auto session = connect(std::move(token));
    permit(*session, ns);
    return session;
  }
  void permit(Session& session, NsId ns) {
    if (!door->allow(session.info().session, ns)) std::abort();
    const auto spec = core->namespace_spec(ns);
    std::vector<std::vector<std::uint32_t>> parts;
    for (const ShardSpec& shard : spec->shards) parts.push_back(shard.part_bytes);
    session.describe(ns, parts);
  }

  CoreConfig config;
  DoorConfig door_config;
  int payload_fd = -1, listener = -1;
  std::byte* payload = nullptr;
  void* meta = nullptr;
  std::size_t meta_bytes = 0;
  std::string path;
  std::uint16_t port = 0;  // of 127.0.0.1
  bool by_tcp = false;     // how connect() comes
  std::unique_ptr<NodeCore> core;
  std::unique_ptr<Door> door;
};

inline DoorConfig trusting() {
  DoorConfig config;
  config.trusted_uids = {getuid()};
  return config;
}

struct Bytes {
  explicit Bytes(std::size_t blocks, std::size_t block_bytes, std::uint64_t seed = 1) : each(block_bytes), data(blocks * block_bytes) {
    std::uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
    for (std::uint8_t& byte : data) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      byte = static_cast<std::uint8_t>(state);
    }
  }
  Scattered whole() const {
    Scattered where;
    for (std::size_t at = 0; at < data.size(); at += each) where.addresses.push_back(reinterpret_cast<std::uint64_t>(data.data() + at));
    where.lengths = {each};
    return where;
  }
  std::size_t each;
  std::vector<std::uint8_t> data;
};

inline Result put(Session& session, NsId ns, const std::vector<Key>& keys, const Scattered& from, Nanos ms = 5'000) {
  ReserveArguments arguments;
  arguments.ns = ns;
  arguments.keys = keys;
  PutOperation operation(std::move(arguments), session.parts_of(ns, 0), from);
  return session.run(operation, in_ms(ms));
}

inline Result fetch(Session& session, NsId ns, const std::vector<Key>& keys, const Scattered& into, std::uint32_t wait_ms = 0, Nanos ms = 5'000) {
  HoldArguments arguments;
  arguments.ns = ns;
  arguments.keys = keys;
  arguments.wait_ms = wait_ms;
  FetchOperation operation(std::move(arguments), session.parts_of(ns, 0), into);
  return session.run(operation, in_ms(ms));
}

inline Result lookup(Session& session, NsId ns, const std::vector<Key>& keys, std::vector<Need> needs = {}) {
  LookupOperation operation(ns, keys, needs);
  return session.run(operation, in_ms(5'000));
}

inline std::vector<Result> completions(Session& session, std::size_t count) {
  std::vector<Result> all;
  for (int i = 0; i < 100 && all.size() < count; ++i) {
    pollfd one{session.completion_fd(), POLLIN, 0};
    poll(&one, 1, 100);
    for (Result& result : session.take_completions()) all.push_back(std::move(result));
  }
  return all;
}

inline std::vector<Request> requests_of(Rig& rig, std::size_t count) {
  std::vector<Request> all;
  for (int i = 0; i < 400 && all.size() < count; ++i) {
    usleep(5'000);
    for (Request& request : rig.door->take_requests(count)) all.push_back(std::move(request));
  }
  return all;
}

}  // namespace kvstore::test
