// Connections without sockets: two ends in one process over pipes that take and give a few bytes at a time.
#pragma once
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "tcp/connection.hpp"
#include "tcp/shared.hpp"
#include "tcp/stream.hpp"

namespace kvstore::test {

using namespace kvstore::tcp;

struct Pipe {
  std::vector<std::uint8_t> bytes;
  std::size_t taken = 0, room = std::size_t{1} << 20;
  bool ended = false;
  std::size_t held() const noexcept { return bytes.size() - taken; }
};

// Moves at most `most` bytes a call.
class PipeStream final : public Stream {
 public:
  PipeStream(std::shared_ptr<Pipe> in, std::shared_ptr<Pipe> out, std::size_t most) : in_(std::move(in)), out_(std::move(out)), most_(most) {}
  ~PipeStream() override { out_->ended = true; }
  int fd() const noexcept override { return -1; }

  std::int64_t read(std::span<const iovec> into) noexcept override {
    std::size_t moved = 0;
    for (const iovec& piece : into) {
      const std::size_t step = std::min({piece.iov_len, in_->held(), most_ - moved});
      if (step > 0) std::memcpy(piece.iov_base, in_->bytes.data() + in_->taken, step);
      in_->taken += step;
      moved += step;
      if (step < piece.iov_len) break;
    }
    if (in_->held() == 0) {
      in_->bytes.clear();
      in_->taken = 0;
    }
    return moved > 0 ? static_cast<std::int64_t>(moved) : in_->ended ? 0 : -EAGAIN;
  }
  std::int64_t write(std::span<const iovec> from) noexcept override {
    std::size_t moved = 0;
    for (const iovec& piece : from) {
      const std::size_t room = out_->room > out_->held() ? out_->room - out_->held() : 0;
      const std::size_t step = std::min({piece.iov_len, room, most_ - moved});
      const auto* at = static_cast<const std::uint8_t*>(piece.iov_base);
      out_->bytes.insert(out_->bytes.end(), at, at + step);
      moved += step;
      if (step < piece.iov_len) break;
    }
    return moved > 0 ? static_cast<std::int64_t>(moved) : -EAGAIN;
  }

 private:
  std::shared_ptr<Pipe> in_, out_;
  std::size_t most_;
};

// One side: its grants, its connection, what it was told.
struct Side {
  static EngineConfig config_of(std::uint32_t requests_max) {
    EngineConfig config;
    config.grants_max = 8;
    config.requests_max = requests_max;
    return config;
  }
  explicit Side(std::uint32_t requests_max) : shared(config_of(requests_max)) {}
  void connect(std::shared_ptr<Pipe> in, std::shared_ptr<Pipe> out, std::size_t most) {
    connection = std::make_unique<Connection>(shared, 1, 7, 0, std::make_unique<PipeStream>(std::move(in), std::move(out), most));
  }
  // False: the connection is over.
  bool turn() {
    if (!connection) return false;
    if (connection->receive() && connection->send()) return true;
    connection->end({});
    connection.reset();
    return false;
  }
  std::shared_ptr<Served> grant(std::uint32_t slot, std::span<std::uint8_t> memory, std::vector<Range> ranges, bool writable = true) {
    auto made = std::make_shared<Served>();
    made->slot = slot;
    made->generation = ++generation;
    made->expiry_ns = std::int64_t{1} << 62;
    made->base = reinterpret_cast<std::byte*>(memory.data());
    made->bytes = memory.size();
    made->readable = true;
    made->writable = writable;
    made->proof.fill(static_cast<std::uint8_t>(slot + 1));
    made->ranges = std::move(ranges);
    shared.grants.issue(made);
    return made;
  }
  std::vector<Event> told() { return shared.events.take(); }
  bool finished(std::uint64_t token) {
    for (Event& event : told())
      if (event.kind == EventKind::kFinished) done.push_back(event.id);
    return std::find(done.begin(), done.end(), token) != done.end();
  }

  Shared shared;
  std::unique_ptr<Connection> connection;
  std::uint32_t generation = 0;
  std::vector<std::uint64_t> done;
};

inline Access access_of(const Served& grant) { return {grant.slot, grant.generation, grant.proof}; }

}  // namespace kvstore::test
