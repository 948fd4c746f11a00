// Sockets by which two machines meet: found by name, connected within a time, tuned.
#pragma once
#include <cstdint>
#include <string>

namespace kvstore::tcp {

// No delay for small frames; a peer whose machine has gone is noticed within half a minute or so.
void tune(int fd);

// The first of the host's addresses that answers; non-blocking, close-on-exec. Each gets its share of the time that is left, so
// that one that swallows what is sent to it does not keep us from the next. `deadline_ns`: of the monotonic clock. Throws
// std::system_error that names host and port.
int dial(const std::string& host, std::uint16_t port, std::int64_t deadline_ns);

}  // namespace kvstore::tcp
