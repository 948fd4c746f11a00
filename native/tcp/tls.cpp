#include "tls.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "peer_names.hpp"
#include "tls_socket.hpp"

namespace kvstore::tcp {

namespace {

// Numbers of openssl/ssl.h, which is not needed to build.
constexpr int kFilePem = 1, kVerifyNone = 0, kVerifyPeer = 1, kVerifyMust = 2;
constexpr int kCtrlMode = 33, kCtrlServerName = 55, kCtrlMinVersion = 123;
constexpr long kPartialWrite = 1, kMovingBuffer = 2, kReleaseBuffers = 16, kTls13 = 0x0304;
constexpr int kErrorWantRead = 2, kErrorWantWrite = 3, kErrorSyscall = 5, kErrorZeroReturn = 6;

class Tls final : public Stream {
 public:
  Tls(std::shared_ptr<const TlsContext> context, int fd) : ssl_(OpenSsl::get()), context_(std::move(context)), fd_(fd) {
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    handle_ = ssl_.ssl_new(context_->raw());
    if (handle_ == nullptr || !put_on_socket(ssl_, handle_, fd)) {
      ssl_.ssl_free(handle_);
      ::close(fd);
      throw std::runtime_error("TLS: " + ssl_.complaint());
    }
  }
  ~Tls() override {
    ssl_.err_clear();
    if (getpid() == process_) ssl_.shutdown(handle_);  // says goodbye if that can be said at once; a child after fork has no say
    ssl_.ssl_free(handle_);
    ssl_.err_clear();
    ::close(fd_);
  }
  void accept() {
    ssl_.set_verify(handle_, context_->asks() ? kVerifyPeer | kVerifyMust : kVerifyNone, nullptr);
    ssl_.set_accept_state(handle_);
  }
  void connect(const std::string& name) {
    std::array<unsigned char, 16> address;
    const bool numeric = inet_pton(AF_INET, name.c_str(), address.data()) == 1 || inet_pton(AF_INET6, name.c_str(), address.data()) == 1;
    const int good = numeric ? ssl_.param_set1_ip_asc(ssl_.get0_param(handle_), name.c_str()) : ssl_.set1_host(handle_, name.c_str());
    if (good != 1) throw std::runtime_error("TLS: " + name + " is no name that a certificate can have");
    if (!numeric) ssl_.ssl_ctrl(handle_, kCtrlServerName, 0, const_cast<char*>(name.c_str()));
    ssl_.set_verify(handle_, kVerifyPeer, nullptr);
    ssl_.set_connect_state(handle_);
  }

  int fd() const noexcept override { return fd_; }
  bool reads_by_writing() const noexcept override { return read_wants_write_; }
  bool writes_by_reading() const noexcept override { return write_wants_read_; }
  bool holds_input() const noexcept override { return holds_; }
  std::string trouble() const override { return trouble_; }
  std::vector<std::string> peer_names() const override { return names_of_peer(ssl_, handle_); }

  std::int64_t read(std::span<const iovec> into) noexcept override {
    std::int64_t moved = 0;
    holds_ = read_wants_write_ = false;
    for (const iovec& piece : into) {
      for (std::size_t at = 0; at < piece.iov_len;) {
        std::size_t got = 0;
        ssl_.err_clear();
        const int result = ssl_.read_ex(handle_, static_cast<std::byte*>(piece.iov_base) + at, piece.iov_len - at, &got);
        if (result != 1) return over(result, moved, read_wants_write_, kErrorWantWrite);
        at += got;
        moved += static_cast<std::int64_t>(got);
      }
    }
    holds_ = ssl_.has_pending(handle_) == 1;
    return moved;
  }

  std::int64_t write(std::span<const iovec> from) noexcept override {
    std::int64_t moved = 0;
    write_wants_read_ = false;
    for (const iovec& piece : from) {
      for (std::size_t at = 0; at < piece.iov_len;) {
        std::size_t put = 0;
        ssl_.err_clear();
        const int result = ssl_.write_ex(handle_, static_cast<const std::byte*>(piece.iov_base) + at, piece.iov_len - at, &put);
        if (result != 1) return over(result, moved, write_wants_read_, kErrorWantRead);
        at += put;
        moved += static_cast<std::int64_t>(put);
      }
    }
    return moved;
  }

 private:
  // A call that moves nothing more. What had been moved is told first: if there is trouble, it comes again.
  // `crossed`: set where it waits for the other direction, which `other` says.
  std::int64_t over(int result, std::int64_t moved, bool& crossed, int other) noexcept {
    const int error = ssl_.get_error(handle_, result);
    if (error == kErrorWantRead || error == kErrorWantWrite) {
      crossed = error == other;
      return moved > 0 ? moved : -EAGAIN;
    }
    if (error == kErrorZeroReturn) return moved;
    const int system = errno;
    if (const long verified = ssl_.get_verify_result(handle_); verified != 0) {
      trouble_ = std::string("TLS: the peer's certificate: ") + ssl_.verify_error_string(verified);
    } else if (const std::string said = ssl_.complaint(); !said.empty()) {
      trouble_ = "TLS: " + said;
    } else {
      trouble_ = error == kErrorSyscall && system != 0 ? std::strerror(system) : "TLS: the peer has ended the connection";
    }
    return moved > 0 ? moved : -EIO;
  }

  const OpenSsl& ssl_;
  std::shared_ptr<const TlsContext> context_;
  const pid_t process_ = getpid();
  int fd_;
  OpenSsl::Ssl* handle_;
  bool read_wants_write_ = false, write_wants_read_ = false, holds_ = false;
  std::string trouble_;
};

}  // namespace

TlsContext::TlsContext(const std::string& certificate, const std::string& key, const std::string& ca)
    : ssl_(OpenSsl::get()), ctx_(ssl_.ctx_new(ssl_.tls_method())), has_certificate_(!certificate.empty()), has_ca_(!ca.empty()) {
  const auto fail = [this](const std::string& what) {
    const std::string said = ssl_.complaint();
    ssl_.ctx_free(ctx_);
    throw std::runtime_error(what + ": " + said);
  };
  if (ctx_ == nullptr) fail("TLS");
  ssl_.ctx_ctrl(ctx_, kCtrlMinVersion, kTls13, nullptr);
  ssl_.ctx_ctrl(ctx_, kCtrlMode, kPartialWrite | kMovingBuffer | kReleaseBuffers, nullptr);
  ssl_.ctx_set_num_tickets(ctx_, 0);
  if (has_certificate_) {
    if (ssl_.ctx_use_certificate_chain_file(ctx_, certificate.c_str()) != 1) fail(certificate);
    if (ssl_.ctx_use_private_key_file(ctx_, key.c_str(), kFilePem) != 1) fail(key);
    if (ssl_.ctx_check_private_key(ctx_) != 1) fail(key + " is not the key of " + certificate);
  }
  if (has_ca_ && ssl_.ctx_load_verify_locations(ctx_, ca.c_str(), nullptr) != 1) fail(ca);
  if (!has_ca_ && ssl_.ctx_set_default_verify_paths(ctx_) != 1) fail("the certificates that the system trusts");
}

TlsContext::~TlsContext() { ssl_.ctx_free(ctx_); }

std::unique_ptr<Stream> tls_server(std::shared_ptr<const TlsContext> context, int fd) {
  auto made = std::make_unique<Tls>(std::move(context), fd);
  made->accept();
  return made;
}

std::unique_ptr<Stream> tls_client(std::shared_ptr<const TlsContext> context, int fd, const std::string& name) {
  auto made = std::make_unique<Tls>(std::move(context), fd);
  made->connect(name);
  return made;
}

}  // namespace kvstore::tcp
