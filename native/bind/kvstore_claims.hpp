// The claim table as Python has it; the door is given the same one.
#pragma once
#include <memory>
#include <utility>

#include "directory/claims_desk.hpp"

namespace kvstore::bind {

struct Claims {
  std::shared_ptr<ClaimsDesk> desk;
  template <class Use>
  auto with(Use&& use) {
    return desk->with(std::forward<Use>(use));
  }
};

}  // namespace kvstore::bind
