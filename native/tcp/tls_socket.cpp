#include "tls_socket.hpp"

#include <sys/socket.h>

#include <cerrno>
#include <cstdint>

namespace kvstore::tcp {

namespace {

// Numbers of openssl/bio.h, which is not needed to build.
constexpr int kSourceAndSink = 0x0400, kDescriptor = 0x0100;
constexpr int kRead = 1, kWrite = 2, kRetry = 8, kWhy = 7, kAtEnd = 0x800;
constexpr int kAskEnd = 2, kAskFlush = 11;

int fd_of(OpenSsl::Bio* bio) noexcept { return static_cast<int>(reinterpret_cast<std::intptr_t>(OpenSsl::get().bio_get_data(bio))); }

// What a call moved, with the flags that say whether and for what it is asked again.
int told(OpenSsl::Bio* bio, ssize_t moved, int waits_for) noexcept {
  const OpenSsl& ssl = OpenSsl::get();
  ssl.bio_clear_flags(bio, kWhy | kRetry);
  if (moved < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) ssl.bio_set_flags(bio, waits_for | kRetry);
  return static_cast<int>(moved);
}

int write_to(OpenSsl::Bio* bio, const char* from, int bytes) noexcept {
  return told(bio, ::send(fd_of(bio), from, static_cast<std::size_t>(bytes), MSG_NOSIGNAL), kWrite);
}

int read_from(OpenSsl::Bio* bio, char* into, int bytes) noexcept {
  const ssize_t moved = ::recv(fd_of(bio), into, static_cast<std::size_t>(bytes), 0);
  if (moved == 0) OpenSsl::get().bio_set_flags(bio, kAtEnd);
  return told(bio, moved, kRead);
}

// 0: what is not known, such as whether the kernel does the sealing.
long control(OpenSsl::Bio* bio, int what, long, void*) noexcept {
  if (what == kAskEnd) return OpenSsl::get().bio_test_flags(bio, kAtEnd) != 0 ? 1 : 0;
  return what == kAskFlush ? 1 : 0;
}

OpenSsl::BioMethod* method_of(const OpenSsl& ssl) {
  static OpenSsl::BioMethod* const made = [&ssl]() -> OpenSsl::BioMethod* {
    OpenSsl::BioMethod* method = ssl.bio_meth_new(ssl.bio_new_index() | kSourceAndSink | kDescriptor, "socket without SIGPIPE");
    if (method == nullptr) return nullptr;
    ssl.bio_meth_set_write(method, &write_to);
    ssl.bio_meth_set_read(method, &read_from);
    ssl.bio_meth_set_ctrl(method, &control);
    return method;
  }();
  return made;
}

}  // namespace

bool put_on_socket(const OpenSsl& ssl, OpenSsl::Ssl* handle, int fd) {
  OpenSsl::BioMethod* method = method_of(ssl);
  OpenSsl::Bio* bio = method != nullptr ? ssl.bio_new(method) : nullptr;
  if (bio == nullptr) return false;
  ssl.bio_set_data(bio, reinterpret_cast<void*>(static_cast<std::intptr_t>(fd)));
  ssl.bio_set_init(bio, 1);
  ssl.set_bio(handle, bio, bio);  // which owns it now
  return true;
}

}  // namespace kvstore::tcp
