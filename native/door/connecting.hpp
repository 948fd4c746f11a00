// How a session gets to its node: a socket, TLS where that is spoken, and HELLO. Rules: session.hpp.
#pragma once
#include <unistd.h>

#include <memory>
#include <utility>

#include "session.hpp"
#include "wire.hpp"

namespace kvstore::door {

struct Descriptor {
  int fd = -1;
  Descriptor() = default;
  explicit Descriptor(int taken) : fd(taken) {}
  Descriptor(Descriptor&& other) noexcept : fd(std::exchange(other.fd, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd, other.fd);
    return *this;
  }
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
  int release() { return std::exchange(fd, -1); }
};

struct Welcome {
  std::unique_ptr<Wire> wire;
  SessionInfo info;
  Descriptor segment;  // none unless trusted
};

// Throws as Session's constructor.
Welcome say_hello(const SessionConfig& config, Nanos deadline);

}  // namespace kvstore::door
