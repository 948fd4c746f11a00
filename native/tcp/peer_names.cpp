#include "peer_names.hpp"

#include <arpa/inet.h>

namespace kvstore::tcp {

namespace {

// Numbers of openssl/obj_mac.h and openssl/x509v3.h.
constexpr int kSubjectAltName = 85, kCommonName = 13;
constexpr int kMail = 1, kDns = 2, kUri = 6, kAddress = 7;

// What the library has made for us, given back at the end of the scope.
struct Owned {
  void* held;
  void (*free)(void*);
  ~Owned() {
    if (held != nullptr) free(held);
  }
};

std::string bytes_of(const OpenSsl& ssl, const void* string) {
  return {reinterpret_cast<const char*>(ssl.string_data(string)), static_cast<std::size_t>(ssl.string_length(string))};
}

std::string address_of(const std::string& raw) {
  char text[INET6_ADDRSTRLEN] = {};
  const int family = raw.size() == 4 ? AF_INET : AF_INET6;
  if ((raw.size() != 4 && raw.size() != 16) || inet_ntop(family, raw.data(), text, sizeof text) == nullptr) return {};
  return text;
}

void alternative(const OpenSsl& ssl, const void* certificate, std::vector<std::string>& names) {
  const Owned all{ssl.certificate_extension(certificate, kSubjectAltName, nullptr, nullptr), ssl.general_names_free};
  if (all.held == nullptr) return;
  for (int i = 0; i < ssl.stack_size(all.held); ++i) {
    int kind = 0;
    const void* value = ssl.general_name_value(ssl.stack_value(all.held, i), &kind);
    if (kind == kDns || kind == kMail || kind == kUri) names.push_back(bytes_of(ssl, value));
    if (kind == kAddress) names.push_back(address_of(bytes_of(ssl, value)));
  }
}

void common(const OpenSsl& ssl, const void* certificate, std::vector<std::string>& names) {
  const void* subject = ssl.certificate_subject(certificate);
  for (int at = ssl.name_index(subject, kCommonName, -1); at >= 0; at = ssl.name_index(subject, kCommonName, at)) {
    unsigned char* text = nullptr;
    const int length = ssl.string_to_utf8(&text, ssl.entry_data(ssl.name_entry(subject, at)));
    if (length < 0) continue;
    names.emplace_back(reinterpret_cast<const char*>(text), static_cast<std::size_t>(length));
    ssl.memory_free(text, "", 0);
  }
}

}  // namespace

std::vector<std::string> names_of_peer(const OpenSsl& ssl, const OpenSsl::Ssl* handle) {
  const Owned certificate{ssl.get1_peer_certificate(handle), ssl.certificate_free};
  if (certificate.held == nullptr) return {};
  std::vector<std::string> names;
  alternative(ssl, certificate.held, names);
  common(ssl, certificate.held, names);
  std::erase(names, std::string{});
  ssl.err_clear();
  return names;
}

}  // namespace kvstore::tcp
