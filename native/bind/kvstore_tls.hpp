// What Python gives a door or a session for TLS (kvstore_door.cpp binds it).
#pragma once
#include <memory>
#include <optional>

#include "tcp/tls.hpp"

namespace kvstore::bind {

struct TlsFiles {
  std::shared_ptr<const tcp::TlsContext> held;
};

inline std::shared_ptr<const tcp::TlsContext> context_of(const std::optional<TlsFiles>& tls) { return tls ? tls->held : nullptr; }

}  // namespace kvstore::bind
