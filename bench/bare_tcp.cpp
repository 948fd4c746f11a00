// The limit of bench/tcp.py: what two processes do over loopback with plain blocking sockets, a thread a stream, and nothing else.
//
// As a program, `bare_tcp BYTES [SPIN_NS]`: serves that many bytes; each stream is told (offset, length) and sends those bytes. Prints its
// port. With SPIN_NS who receives looks again for so long before it sleeps, as our threads do.
// As a library: asks a server for extents over some streams, and receives each where it belongs.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

struct Extent {
  std::uint64_t offset, length;
};

static std::chrono::nanoseconds spin{0};

static ssize_t receive(int fd, char* at, std::size_t bytes) {
  if (spin.count() > 0) {
    const auto until = std::chrono::steady_clock::now() + spin;
    do {
      const ssize_t moved = recv(fd, at, bytes, MSG_DONTWAIT);
      if (moved >= 0 || errno != EAGAIN) return moved;
      sched_yield();
    } while (std::chrono::steady_clock::now() < until);
  }
  return recv(fd, at, bytes, 0);
}

static bool move_all(int fd, char* at, std::size_t bytes, bool sending) {
  while (bytes > 0) {
    const ssize_t moved = sending ? send(fd, at, bytes, MSG_NOSIGNAL) : receive(fd, at, bytes);
    if (moved <= 0) return false;
    at += moved;
    bytes -= static_cast<std::size_t>(moved);
  }
  return true;
}

extern "C" {

void bare_tcp_spin(std::int64_t ns) { spin = std::chrono::nanoseconds(ns); }

int bare_tcp_connect(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<std::uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0 ? fd : -1;
}

// Extents from `offsets` to the same places behind `target`, dealt out over the streams in turn. 0 when all came.
int bare_tcp_read(const int* fds, int streams, const std::uint64_t* offsets, int extents, std::uint64_t length, char* target) {
  std::vector<int> failed(static_cast<std::size_t>(streams), 0);
  auto one = [&](int stream) {
    std::vector<Extent> asked;
    for (int i = stream; i < extents; i += streams) asked.push_back({offsets[i], length});
    bool good = move_all(fds[stream], reinterpret_cast<char*>(asked.data()), asked.size() * sizeof(Extent), true);
    for (const Extent& extent : asked) good = good && move_all(fds[stream], target + extent.offset, extent.length, false);
    failed[static_cast<std::size_t>(stream)] = good ? 0 : 1;
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < streams; ++i) threads.emplace_back(one, i);
  one(0);
  for (std::thread& thread : threads) thread.join();
  for (const int one_failed : failed)
    if (one_failed != 0) return 1;
  return 0;
}
}

int main(int count, char** arguments) {
  if (count > 2) bare_tcp_spin(std::strtoll(arguments[2], nullptr, 10));
  const std::size_t bytes = std::strtoull(arguments[1], nullptr, 10);
  auto* held = static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  for (std::size_t i = 0; i < bytes; ++i) held[i] = static_cast<char>(i * 2654435761u >> 13);
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in here{};
  here.sin_family = AF_INET;
  here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof here;
  if (bind(listener, reinterpret_cast<sockaddr*>(&here), size) != 0 || listen(listener, 64) != 0) return 1;
  getsockname(listener, reinterpret_cast<sockaddr*>(&here), &size);
  std::printf("%d\n", ntohs(here.sin_port));
  std::fflush(stdout);
  for (;;) {
    const int fd = accept(listener, nullptr, nullptr);
    if (fd < 0) return 1;
    const int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    std::thread([fd, held, bytes] {
      for (Extent asked{}; move_all(fd, reinterpret_cast<char*>(&asked), sizeof asked, false);)
        if (asked.length > bytes || asked.offset > bytes - asked.length || !move_all(fd, held + asked.offset, asked.length, true)) break;
      close(fd);
    }).detach();
  }
}
