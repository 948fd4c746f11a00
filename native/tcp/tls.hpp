// TLS 1.3 over a connection, by OpenSSL.
//
// Rules
// - Who connects verifies who accepts: by the CA of its context, or, without one, by those that the system trusts.
// - Who accepts asks for a certificate if its context has a CA, and then lets nobody in who shows none that the CA signed.
// - Nothing is resumed: every connection shows what it has.
#pragma once
#include <memory>
#include <string>

#include "openssl.hpp"
#include "stream.hpp"

namespace kvstore::tcp {

// Certificates as one side shows and wants them. Read once; streams keep it alive.
class TlsContext {
 public:
  // Paths of PEM files. certificate and key: ours, both or neither (""); ca: whose peers are believed, or "". Throws
  // std::runtime_error that names the file, and where libssl is not there.
  TlsContext(const std::string& certificate, const std::string& key, const std::string& ca);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;
  OpenSsl::Ctx* raw() const noexcept { return ctx_; }
  bool can_accept() const noexcept { return has_certificate_; }
  bool asks() const noexcept { return has_ca_; }

 private:
  const OpenSsl& ssl_;
  OpenSsl::Ctx* ctx_;
  const bool has_certificate_, has_ca_;
};

// The accepting side of `fd`; the context has a certificate.
std::unique_ptr<Stream> tls_server(std::shared_ptr<const TlsContext> context, int fd);
// The connecting side; the peer's certificate must be for `name`, a host name or an address.
std::unique_ptr<Stream> tls_client(std::shared_ptr<const TlsContext> context, int fd, const std::string& name);

}  // namespace kvstore::tcp
