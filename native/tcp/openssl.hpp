// What of OpenSSL 3 the TLS streams use, found at run time: building needs no headers of it, and a process that seals nothing does
// not load it. Prototypes are those of the manual pages (ssl(7)); the ABI of libssl.so.3 is stable within OpenSSL 3.
#pragma once
#include <cstddef>
#include <string>

namespace kvstore::tcp {

struct OpenSsl {
  using Ctx = void;
  using Ssl = void;
  using Bio = void;
  using BioMethod = void;

  const void* (*tls_method)();
  Ctx* (*ctx_new)(const void* method);
  void (*ctx_free)(Ctx*);
  long (*ctx_ctrl)(Ctx*, int command, long number, void* pointer);
  int (*ctx_use_certificate_chain_file)(Ctx*, const char* path);
  int (*ctx_use_private_key_file)(Ctx*, const char* path, int type);
  int (*ctx_check_private_key)(const Ctx*);
  int (*ctx_load_verify_locations)(Ctx*, const char* file, const char* folder);
  int (*ctx_set_default_verify_paths)(Ctx*);
  int (*ctx_set_num_tickets)(Ctx*, std::size_t count);
  Ssl* (*ssl_new)(Ctx*);
  void (*ssl_free)(Ssl*);
  void (*set_bio)(Ssl*, Bio* reads, Bio* writes);
  void (*set_verify)(Ssl*, int mode, void* callback);
  void (*set_accept_state)(Ssl*);
  void (*set_connect_state)(Ssl*);
  int (*set1_host)(Ssl*, const char* name);
  void* (*get0_param)(Ssl*);
  int (*param_set1_ip_asc)(void* param, const char* address);
  long (*ssl_ctrl)(Ssl*, int command, long number, void* pointer);
  int (*read_ex)(Ssl*, void* into, std::size_t bytes, std::size_t* got);
  int (*write_ex)(Ssl*, const void* from, std::size_t bytes, std::size_t* put);
  int (*get_error)(const Ssl*, int result);
  int (*has_pending)(const Ssl*);
  int (*shutdown)(Ssl*);
  long (*get_verify_result)(const Ssl*);
  const char* (*verify_error_string)(long error);
  // A source and sink of one's own.
  int (*bio_new_index)();
  BioMethod* (*bio_meth_new)(int type, const char* name);
  int (*bio_meth_set_write)(BioMethod*, int (*write)(Bio*, const char* from, int bytes));
  int (*bio_meth_set_read)(BioMethod*, int (*read)(Bio*, char* into, int bytes));
  int (*bio_meth_set_ctrl)(BioMethod*, long (*control)(Bio*, int what, long number, void* pointer));
  Bio* (*bio_new)(const BioMethod*);
  void (*bio_set_init)(Bio*, int ready);
  void (*bio_set_data)(Bio*, void* data);
  void* (*bio_get_data)(Bio*);
  void (*bio_set_flags)(Bio*, int flags);
  void (*bio_clear_flags)(Bio*, int flags);
  int (*bio_test_flags)(const Bio*, int flags);
  // A peer's certificate and the names in it.
  void* (*get1_peer_certificate)(const Ssl*);
  void (*certificate_free)(void* certificate);
  void* (*certificate_extension)(const void* certificate, int number, int* critical, int* index);
  void* (*certificate_subject)(const void* certificate);
  int (*stack_size)(const void* stack);
  void* (*stack_value)(const void* stack, int index);
  void (*general_names_free)(void* names);
  void* (*general_name_value)(const void* name, int* kind);
  int (*name_index)(const void* name, int number, int after);
  void* (*name_entry)(const void* name, int index);
  void* (*entry_data)(const void* entry);
  int (*string_length)(const void* string);
  const unsigned char* (*string_data)(const void* string);
  int (*string_to_utf8)(unsigned char** out, const void* string);
  void (*memory_free)(void* memory, const char* file, int line);
  unsigned long (*err_get)();
  void (*err_clear)();
  void (*err_text)(unsigned long error, char* into, std::size_t bytes);

  // The newest complaint of this thread, for people; clears all.
  std::string complaint() const;

  // Loaded once a process. Throws std::runtime_error that says what is missing.
  static const OpenSsl& get();
};

}  // namespace kvstore::tcp
