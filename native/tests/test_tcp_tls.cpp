// A sealed stream whose peer has hung up says so, and raises no signal: whoever writes may be a thread that SIGPIPE ends.
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <stdexcept>

#include "check.hpp"
#include "tcp/tls.hpp"

using namespace kvstore::tcp;

namespace {

void test_a_peer_that_has_hung_up() {
  std::signal(SIGPIPE, SIG_DFL);
  std::array<int, 2> ends{};
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) == 0);
  const auto stream = tls_client(std::make_shared<TlsContext>("", "", ""), ends[0], "localhost");
  std::array<char, 4> bytes{};
  const iovec piece{bytes.data(), bytes.size()};
  CHECK(stream->read({&piece, 1}) == -EAGAIN);  // it has said hello, and waits
  std::array<char, 4096> hello;
  CHECK(::recv(ends[1], hello.data(), hello.size(), 0) > 0);
  ::close(ends[1]);
  CHECK(stream->read({&piece, 1}) < 0);
  CHECK(stream->trouble().find("eof") != std::string::npos);

  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) == 0);
  ::close(ends[1]);
  const auto late = tls_client(std::make_shared<TlsContext>("", "", ""), ends[0], "localhost");
  CHECK(late->write({&piece, 1}) < 0);
  CHECK(late->trouble() == "Broken pipe");
}

}  // namespace

int main() {
  try {
    OpenSsl::get();
  } catch (const std::runtime_error& error) {
    std::printf("skipped: %s\n", error.what());
    return 0;
  }
  test_a_peer_that_has_hung_up();
  return kvstore::test::finish();
}
