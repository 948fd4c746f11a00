// TLS 1.3 over a connection, by OpenSSL. Both sides verify the other against one CA.
#pragma once
#include <memory>
#include <string>

#include "openssl.hpp"
#include "stream.hpp"

namespace kvstore::tcp {

// Certificates as one side shows and wants them. Read once; streams keep it alive.
class TlsContext {
 public:
  // Paths of PEM files. certificate and key: ours, both or neither; ca: whose peers are believed. Throws std::runtime_error that names
  // the file, and where libssl is not there.
  TlsContext(const std::string& certificate, const std::string& key, const std::string& ca);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;
  OpenSsl::Ctx* raw() const noexcept { return ctx_; }

 private:
  const OpenSsl& ssl_;
  OpenSsl::Ctx* ctx_;
};

// The accepting side of `fd`; it wants a certificate of the peer.
std::unique_ptr<Stream> tls_server(std::shared_ptr<const TlsContext> context, int fd);
// The connecting side; the peer's certificate must be for `name`, a host name or an address.
std::unique_ptr<Stream> tls_client(std::shared_ptr<const TlsContext> context, int fd, const std::string& name);

}  // namespace kvstore::tcp
