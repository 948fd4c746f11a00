// Whose certificate a TLS peer has shown.
#pragma once
#include <string>
#include <vector>

#include "openssl.hpp"

namespace kvstore::tcp {

// DNS names, mail addresses, URIs and addresses among the subject's alternative names, then its common names; whole, whatever bytes they
// hold. Empty where the peer has shown none.
std::vector<std::string> names_of_peer(const OpenSsl& ssl, const OpenSsl::Ssl* handle);

}  // namespace kvstore::tcp
