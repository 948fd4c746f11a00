#include "openssl.hpp"

#include <dlfcn.h>

#include <stdexcept>

namespace kvstore::tcp {

namespace {

constexpr const char* kNames[] = {"libssl.so.3", "libssl.so"};

template <class Function>
void find(void* library, const char* name, Function& into) {
  void* symbol = dlsym(library, name);
  if (symbol == nullptr) throw std::runtime_error(std::string("TLS needs OpenSSL 3: libssl has no ") + name);
  into = reinterpret_cast<Function>(symbol);
}

OpenSsl load() {
  void* library = nullptr;
  for (const char* name : kNames)
    if (library = dlopen(name, RTLD_NOW | RTLD_LOCAL); library != nullptr) break;
  if (library == nullptr) throw std::runtime_error("TLS needs OpenSSL 3: libssl.so.3 is not installed (apt-get install libssl3)");
  OpenSsl found{};
  find(library, "TLS_method", found.tls_method);
  find(library, "SSL_CTX_new", found.ctx_new);
  find(library, "SSL_CTX_free", found.ctx_free);
  find(library, "SSL_CTX_ctrl", found.ctx_ctrl);
  find(library, "SSL_CTX_use_certificate_chain_file", found.ctx_use_certificate_chain_file);
  find(library, "SSL_CTX_use_PrivateKey_file", found.ctx_use_private_key_file);
  find(library, "SSL_CTX_check_private_key", found.ctx_check_private_key);
  find(library, "SSL_CTX_load_verify_locations", found.ctx_load_verify_locations);
  find(library, "SSL_CTX_set_default_verify_paths", found.ctx_set_default_verify_paths);
  find(library, "SSL_CTX_set_num_tickets", found.ctx_set_num_tickets);
  find(library, "SSL_new", found.ssl_new);
  find(library, "SSL_free", found.ssl_free);
  find(library, "SSL_set_bio", found.set_bio);
  find(library, "SSL_set_verify", found.set_verify);
  find(library, "SSL_set_accept_state", found.set_accept_state);
  find(library, "SSL_set_connect_state", found.set_connect_state);
  find(library, "SSL_set1_host", found.set1_host);
  find(library, "SSL_get0_param", found.get0_param);
  find(library, "X509_VERIFY_PARAM_set1_ip_asc", found.param_set1_ip_asc);  // of libcrypto, which libssl brings along
  find(library, "SSL_ctrl", found.ssl_ctrl);
  find(library, "SSL_read_ex", found.read_ex);
  find(library, "SSL_write_ex", found.write_ex);
  find(library, "SSL_get_error", found.get_error);
  find(library, "SSL_has_pending", found.has_pending);
  find(library, "SSL_shutdown", found.shutdown);
  find(library, "SSL_get_verify_result", found.get_verify_result);
  find(library, "X509_verify_cert_error_string", found.verify_error_string);
  find(library, "BIO_get_new_index", found.bio_new_index);
  find(library, "BIO_meth_new", found.bio_meth_new);
  find(library, "BIO_meth_set_write", found.bio_meth_set_write);
  find(library, "BIO_meth_set_read", found.bio_meth_set_read);
  find(library, "BIO_meth_set_ctrl", found.bio_meth_set_ctrl);
  find(library, "BIO_new", found.bio_new);
  find(library, "BIO_set_init", found.bio_set_init);
  find(library, "BIO_set_data", found.bio_set_data);
  find(library, "BIO_get_data", found.bio_get_data);
  find(library, "BIO_set_flags", found.bio_set_flags);
  find(library, "BIO_clear_flags", found.bio_clear_flags);
  find(library, "BIO_test_flags", found.bio_test_flags);
  find(library, "SSL_get1_peer_certificate", found.get1_peer_certificate);
  find(library, "X509_free", found.certificate_free);
  find(library, "X509_get_ext_d2i", found.certificate_extension);
  find(library, "X509_get_subject_name", found.certificate_subject);
  find(library, "OPENSSL_sk_num", found.stack_size);
  find(library, "OPENSSL_sk_value", found.stack_value);
  find(library, "GENERAL_NAMES_free", found.general_names_free);
  find(library, "GENERAL_NAME_get0_value", found.general_name_value);
  find(library, "X509_NAME_get_index_by_NID", found.name_index);
  find(library, "X509_NAME_get_entry", found.name_entry);
  find(library, "X509_NAME_ENTRY_get_data", found.entry_data);
  find(library, "ASN1_STRING_length", found.string_length);
  find(library, "ASN1_STRING_get0_data", found.string_data);
  find(library, "ASN1_STRING_to_UTF8", found.string_to_utf8);
  find(library, "CRYPTO_free", found.memory_free);
  find(library, "ERR_get_error", found.err_get);
  find(library, "ERR_clear_error", found.err_clear);
  find(library, "ERR_error_string_n", found.err_text);
  return found;
}

}  // namespace

std::string OpenSsl::complaint() const {
  std::string last;
  for (unsigned long error = err_get(); error != 0; error = err_get()) {
    char text[256];
    err_text(error, text, sizeof text);
    last = text;
  }
  return last;
}

const OpenSsl& OpenSsl::get() {
  static const OpenSsl loaded = load();
  return loaded;
}

}  // namespace kvstore::tcp
