#include "kernels.hpp"

#if KVSTORE_X86
#include <cpuid.h>
#endif

namespace kvstore::kernels {

#if KVSTORE_X86
Cpu cpu() noexcept {
  Cpu found;
  // The builtins also ask the system whether it saves the wide registers.
  found.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool sha_bit = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (ebx & (1u << 29)) != 0;
  found.sha = sha_bit && __builtin_cpu_supports("sse4.1");
  return found;
}
#else
Cpu cpu() noexcept { return {}; }
#endif

namespace {

Chosen choose() noexcept {
  Chosen use{sha256_blocks_portable, xxh3_portable, stream_portable, nullptr, "portable"};
#if KVSTORE_X86
  const Cpu has = cpu();
  if (has.sha) use.sha256_blocks = sha256_blocks_shani;
  if (has.avx2) {
    use.xxh3 = xxh3_avx2;
    use.stream = stream_avx2;
    use.stream_leaf = stream_leaf_avx2;
  }
  use.names = has.avx2 ? (has.sha ? "SHA-NI, AVX2" : "AVX2") : (has.sha ? "SHA-NI, SSE2" : "SSE2");
#endif
  return use;
}

}  // namespace

const Chosen& chosen() noexcept {
  static const Chosen once = choose();
  return once;
}

}  // namespace kvstore::kernels
