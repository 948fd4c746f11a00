#include <stdexcept>

#include "policy_impl.hpp"

namespace kvstore {

std::unique_ptr<Policy> make_policy(std::string_view name, std::size_t ids_max) {
  if (ids_max == 0 || ids_max >= 0xfffffff0u) throw std::invalid_argument("policy: ids_max out of range");
  if (name == "leaf_lru") return make_leaf_lru(ids_max);
  if (name == "s3_fifo") return make_s3_fifo(ids_max);
  throw std::invalid_argument("policy: '" + std::string(name) + "' is not one of leaf_lru, s3_fifo");
}

}  // namespace kvstore
