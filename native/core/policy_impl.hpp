// The makers behind make_policy(): one a file.
#pragma once
#include <memory>

#include "policy.hpp"

namespace kvstore {

std::unique_ptr<Policy> make_leaf_lru(std::size_t ids_max);
std::unique_ptr<Policy> make_s3_fifo(std::size_t ids_max);

}  // namespace kvstore
