// Non-temporal copies at 32 bytes, and the one-pass checksummed leaf. No C++ library header here: see kernels.hpp.
//
// stream_leaf_avx2 is XXH3-64 (seed 0, built-in secret) unrolled for exactly 4096 bytes, so that the registers that are
// hashed are those that are stored. XXH3's long form, from its specification: 64-byte stripes are accumulated into eight
// lanes with a secret that moves 8 bytes a stripe; sixteen stripes (1 KiB) make a round, after which the lanes are
// scrambled; the last 64 bytes are accumulated with the secret at 121 instead, and no scramble; the lanes are merged.
//
// Both copies load two stripes ahead of what they store. Where (dst - src) modulo 4 KiB is small and positive (a page-aligned slot and an
// array that malloc placed 16 bytes into its page), a load would else match a store still in flight by its low 12 bits and
// wait for it: without this, a third of the speed is gone.
#include "kernels.hpp"
#if KVSTORE_X86
#include <immintrin.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace kvstore::kernels {
namespace {

constexpr int kStripe = 64;
constexpr int kStripesARound = 16;
constexpr int kRounds = 4;
constexpr int kLeaf = kStripe * kStripesARound * kRounds;
// Measured: far enough for memory's latency, near enough not to be evicted again.
constexpr int kPrefetchLeaf = 4096;
constexpr int kPrefetchStream = 1024;
// One line a leaf of the page that is written next, and of the one that is read after next: the page walks are done by the time
// they are needed. Shared memory mostly has 4 KiB pages, and where memory is fragmented no two lie together: there a checksummed copy
// goes at 19 GiB/s with these lines and at 13 without, as fast as between huge pages. The lines themselves are of no use.
constexpr int kNextPage = 4096;
constexpr int kPageAfterNext = 8192;

constexpr uint64_t kPrime32_1 = 0x9E3779B1u, kPrime32_2 = 0x85EBCA77u, kPrime32_3 = 0xC2B2AE3Du;
constexpr uint64_t kPrime64_1 = 0x9E3779B185EBCA87u, kPrime64_2 = 0xC2B2AE3D27D4EB4Fu, kPrime64_3 = 0x165667B19E3779F9u,
                   kPrime64_4 = 0x85EBCA77C2B2AE63u, kPrime64_5 = 0x27D4EB2F165667C5u;

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m256i lanes(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
  return _mm256_set_epi64x(static_cast<long long>(d), static_cast<long long>(c), static_cast<long long>(b),
                           static_cast<long long>(a));
}
inline uint64_t word(const unsigned char* p) {
  uint64_t w;
  __builtin_memcpy(&w, p, 8);
  return w;
}
inline uint64_t multiply_fold(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

inline __m256i accumulate(__m256i acc, __m256i data, const unsigned char* secret) {
  const __m256i keyed = _mm256_xor_si256(data, load(secret));
  const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
  return _mm256_add_epi64(_mm256_add_epi64(acc, _mm256_shuffle_epi32(data, 0x4e)), product);
}

inline __m256i scramble(__m256i acc, const unsigned char* secret) {
  const __m256i prime = _mm256_set1_epi32(static_cast<int>(kPrime32_1));
  const __m256i mixed = _mm256_xor_si256(_mm256_xor_si256(acc, _mm256_srli_epi64(acc, 47)), load(secret));
  const __m256i high = _mm256_slli_epi64(_mm256_mul_epu32(_mm256_srli_epi64(mixed, 32), prime), 32);
  return _mm256_add_epi64(_mm256_mul_epu32(mixed, prime), high);
}

inline uint64_t merge(__m256i acc0, __m256i acc1) {
  alignas(32) uint64_t acc[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(acc), acc0);
  _mm256_store_si256(reinterpret_cast<__m256i*>(acc + 4), acc1);
  const unsigned char* secret = XXH3_kSecret + 11;
  uint64_t hash = kLeaf * kPrime64_1;
  for (int i = 0; i < 4; ++i) {
    hash += multiply_fold(acc[2 * i] ^ word(secret + 16 * i), acc[2 * i + 1] ^ word(secret + 16 * i + 8));
  }
  hash ^= hash >> 37;
  hash *= 0x165667919E3779F9u;
  return hash ^ (hash >> 32);
}

struct Stripe {
  __m256i first, second;
};

inline Stripe load_stripe(const char* from) {
  Stripe stripe{load(from), load(from + 32)};
  // Loaded here and once: the compiler may neither move it behind the stores nor load again for a second use.
  asm volatile("" : "+x"(stripe.first), "+x"(stripe.second) : : "memory");
  return stripe;
}

inline void stream32(char* to, __m256i data) { _mm256_stream_si256(reinterpret_cast<__m256i*>(to), data); }
inline void stream_stripe(char* to, const Stripe& stripe) {
  stream32(to, stripe.first);
  stream32(to + 32, stripe.second);
}

// Writes consecutive stripes to a destination that is aligned to 32 bytes, or to 16 only: then halves are carried over, so
// that all stores but the first and the last are 32 bytes wide.
template <bool kAligned32>
class StripeWriter {
 public:
  explicit StripeWriter(char* to) : to_(to) {}
  void write(const Stripe& stripe, bool first) {
    if constexpr (kAligned32) {
      stream_stripe(to_, stripe);
    } else {
      if (first) {
        _mm_stream_si128(reinterpret_cast<__m128i*>(to_), _mm256_castsi256_si128(stripe.first));
      } else {
        stream32(to_ - 16, _mm256_permute2x128_si256(carried_, stripe.first, 0x21));
      }
      stream32(to_ + 16, _mm256_permute2x128_si256(stripe.first, stripe.second, 0x21));
      carried_ = stripe.second;
    }
    to_ += kStripe;
  }
  void finish() {
    if constexpr (!kAligned32) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to_ - 16), _mm256_extracti128_si256(carried_, 1));
    }
  }

 private:
  char* to_;
  __m256i carried_ = _mm256_setzero_si256();
};

template <bool kAligned32>
inline uint64_t stream_leaf(char* to, const char* from) {
  const unsigned char* const secret = XXH3_kSecret;
  __m256i acc0 = lanes(kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3);
  __m256i acc1 = lanes(kPrime64_4, kPrime32_2, kPrime64_5, kPrime32_1);
  Stripe ahead1 = load_stripe(from), ahead2 = load_stripe(from + kStripe);
  StripeWriter<kAligned32> writer(to);
  _mm_prefetch(to + kNextPage, _MM_HINT_NTA);
  for (int round = 0; round < kRounds; ++round) {
    const bool last_round = round == kRounds - 1;
    // In the middle of a leaf, where it is in nobody's way: at its start it costs what it saves.
    if (round == kRounds / 2) _mm_prefetch(from + kPageAfterNext - kLeaf / 2, _MM_HINT_NTA);
#pragma GCC unroll 16
    for (int i = 0; i < kStripesARound; ++i, from += kStripe) {
      const Stripe now = ahead1;
      ahead1 = ahead2;
      if (i < kStripesARound - 2 || !last_round) ahead2 = load_stripe(from + 2 * kStripe);
      _mm_prefetch(from + kPrefetchLeaf, _MM_HINT_NTA);
      writer.write(now, round == 0 && i == 0);
      const unsigned char* const key = secret + (last_round && i == kStripesARound - 1 ? 121 : 8 * i);
      acc0 = accumulate(acc0, now.first, key);
      acc1 = accumulate(acc1, now.second, key + 32);
    }
    if (!last_round) {
      acc0 = scramble(acc0, secret + 128);
      acc1 = scramble(acc1, secret + 160);
    }
  }
  writer.finish();
  return merge(acc0, acc1);
}

}  // namespace

uint64_t stream_leaf_avx2(void* dst, const void* src) noexcept {
  auto* to = static_cast<char*>(dst);
  const auto* from = static_cast<const char*>(src);
  return (reinterpret_cast<uintptr_t>(dst) & 31) == 0 ? stream_leaf<true>(to, from) : stream_leaf<false>(to, from);
}

void stream_avx2(void* dst, const void* src, size_t bytes) noexcept {
  auto* to = static_cast<char*>(dst);
  const auto* from = static_cast<const char*>(src);
  size_t left = bytes / kStripe;
  if (left >= 2) {
    Stripe ahead1 = load_stripe(from), ahead2 = load_stripe(from + kStripe);
    for (; left > 3; left -= 2, from += 2 * kStripe, to += 2 * kStripe) {
      _mm_prefetch(from + kPrefetchStream, _MM_HINT_NTA);
      _mm_prefetch(from + kPrefetchStream + kStripe, _MM_HINT_NTA);
      const Stripe now1 = ahead1, now2 = ahead2;
      ahead1 = load_stripe(from + 2 * kStripe);
      ahead2 = load_stripe(from + 3 * kStripe);
      stream_stripe(to, now1);
      stream_stripe(to + kStripe, now2);
    }
    stream_stripe(to, ahead1);
    stream_stripe(to + kStripe, ahead2);
    left -= 2, from += 2 * kStripe, to += 2 * kStripe;
  }
  for (; left > 0; --left, from += kStripe, to += kStripe) stream_stripe(to, load_stripe(from));
}

}  // namespace kvstore::kernels
#endif
