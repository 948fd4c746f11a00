// The socket below a TLS stream, as OpenSSL asks for it. OpenSSL's own writes with write(2): where a peer has hung up, SIGPIPE would end
// a process that has not said what it does about it, and writes happen in the caller's threads, too. This one says MSG_NOSIGNAL.
#pragma once
#include "openssl.hpp"

namespace kvstore::tcp {

// The stream then reads from and writes to `fd`, which stays the caller's to close. False: no memory.
bool put_on_socket(const OpenSsl& ssl, OpenSsl::Ssl* handle, int fd);

}  // namespace kvstore::tcp
