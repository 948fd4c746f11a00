// Which process a pid is. Reads /proc; the only I/O about clients.
#pragma once
#include <sys/types.h>

#include <cstdint>

namespace kvstore {

// When the process began, in clock ticks since boot (field 22 of /proc/PID/stat, proc(5)); 0: there is none, or it is a zombie.
std::uint64_t process_start(pid_t pid) noexcept;

}  // namespace kvstore
