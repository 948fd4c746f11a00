// Inside native/base only: the routines that exist once for each kind of CPU, and the choice among them.
//
// Rules
// - A *_avx2.cpp or *_shani.cpp file is compiled for CPUs that may not be there, so it includes no C++ library
//   header: an inline function of one, emitted there, could be the copy that the linker keeps for everybody.
// - No AVX-512 twins: at 32 bytes XXH3 hashes four times what memory gives, and one core's stores fill its channel.
// - A choice is made once, from what the CPU and the system say; tests call every variant that runs here.
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#define KVSTORE_X86 1
#else
#define KVSTORE_X86 0
#endif

namespace kvstore::kernels {

// SHA-256 compression of `count` 64-byte blocks into `state` (8 words).
using Sha256Blocks = void (*)(uint32_t* state, const uint8_t* blocks, size_t count) noexcept;
// XXH3-64, seed 0.
using Xxh3 = uint64_t (*)(const void* data, size_t bytes) noexcept;
// Non-temporal copy: dst is 64-byte aligned, bytes is a multiple of 64, src is anywhere. No fence.
using Stream = void (*)(void* dst, const void* src, size_t bytes) noexcept;
// Non-temporal copy of one full 4 KiB leaf to a 16-byte aligned dst; the XXH3-64 of the bytes stored. Each source byte is
// loaded once, into a register that is both hashed and stored. `src` is prefetched beyond the leaf. No fence.
using StreamLeaf = uint64_t (*)(void* dst, const void* src) noexcept;

void sha256_blocks_portable(uint32_t* state, const uint8_t* blocks, size_t count) noexcept;
uint64_t xxh3_portable(const void* data, size_t bytes) noexcept;
void stream_portable(void* dst, const void* src, size_t bytes) noexcept;
#if KVSTORE_X86
void sha256_blocks_shani(uint32_t* state, const uint8_t* blocks, size_t count) noexcept;
uint64_t xxh3_avx2(const void* data, size_t bytes) noexcept;
void stream_avx2(void* dst, const void* src, size_t bytes) noexcept;
uint64_t stream_leaf_avx2(void* dst, const void* src) noexcept;
#endif

struct Cpu {
  bool sha = false;
  bool avx2 = false;
};
Cpu cpu() noexcept;

struct Chosen {
  Sha256Blocks sha256_blocks;
  Xxh3 xxh3;
  Stream stream;
  StreamLeaf stream_leaf;  // nullptr: none for this CPU; copy through a bounce leaf
  const char* names;       // for `kvstore doctor` and benchmark headers
};
const Chosen& chosen() noexcept;

}  // namespace kvstore::kernels
