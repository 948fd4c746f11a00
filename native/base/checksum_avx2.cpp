// XXH3-64 as the xxHash header builds it for AVX2. No C++ library header here: see kernels.hpp.
#include "kernels.hpp"
#if KVSTORE_X86
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace kvstore::kernels {
uint64_t xxh3_avx2(const void* data, size_t bytes) noexcept { return XXH3_64bits(data, bytes); }
}  // namespace kvstore::kernels
#endif
