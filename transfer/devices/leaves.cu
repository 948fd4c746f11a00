// XXH3-64 (no seed, default secret) of leaves of device memory: eight threads a leaf, one of the eight accumulators each.
//
// Rules
// - A leaf is 1 to 4,096 bytes at any address; nothing outside it is read.
// - All threads of a block reach the barrier, also those without a leaf.
// - Source of the formulas: the XXH3 specification, doc/xxhash_spec.md of the xxHash project. The same file is compiled
//   as C++ by a test and compared with the xxhash package.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define THREADS 64
#define LANES 8
#define PRIME32_1 0x9E3779B1ULL
#define PRIME32_2 0x85EBCA77ULL
#define PRIME32_3 0xC2B2AE3DULL
#define PRIME64_1 0x9E3779B185EBCA87ULL
#define PRIME64_2 0xC2B2AE3D27D4EB4FULL
#define PRIME64_3 0x165667B19E3779F9ULL
#define PRIME64_4 0x85EBCA77C2B2AE63ULL
#define PRIME64_5 0x27D4EB2F165667C5ULL
#define PRIME_MX1 0x165667919E3779F9ULL
#define PRIME_MX2 0x9FB21C651E98DF25ULL

__device__ const u8 SECRET[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

// A device reads words at their own alignment only.
__device__ u64 read64(const u8* at) {
    if (((u64)at & 7) == 0) return *(const u64*)at;
    u64 word = 0;
    for (int i = 0; i < 8; ++i) word |= (u64)at[i] << (8 * i);
    return word;
}

__device__ u64 read32(const u8* at) {
    return (u64)at[0] | (u64)at[1] << 8 | (u64)at[2] << 16 | (u64)at[3] << 24;
}

__device__ u64 fold(u64 a, u64 b) { return (a * b) ^ __umul64hi(a, b); }

__device__ u64 rotated(u64 word, int by) { return word << by | word >> (64 - by); }

__device__ u64 swapped(u64 word) {
    u64 result = 0;
    for (int i = 0; i < 8; ++i) result |= (word >> (8 * i) & 0xFF) << (56 - 8 * i);
    return result;
}

__device__ u64 avalanche(u64 hash) {
    hash = (hash ^ hash >> 37) * PRIME_MX1;
    return hash ^ hash >> 32;
}

__device__ u64 avalanche64(u64 hash) {
    hash = (hash ^ hash >> 33) * PRIME64_2;
    hash = (hash ^ hash >> 29) * PRIME64_3;
    return hash ^ hash >> 32;
}

__device__ u64 mixed(const u8* in, int secret) {
    return fold(read64(in) ^ read64(SECRET + secret), read64(in + 8) ^ read64(SECRET + secret + 8));
}

// -- up to 240 bytes: one thread

__device__ u64 up_to_16(const u8* in, u32 bytes) {
    if (bytes > 8) {
        const u64 low = read64(in) ^ read64(SECRET + 24) ^ read64(SECRET + 32);
        const u64 high = read64(in + bytes - 8) ^ read64(SECRET + 40) ^ read64(SECRET + 48);
        return avalanche(bytes + swapped(low) + high + fold(low, high));
    }
    if (bytes >= 4) {
        u64 hash = (read32(in + bytes - 4) + (read32(in) << 32)) ^ read64(SECRET + 8) ^ read64(SECRET + 16);
        hash = (hash ^ rotated(hash, 49) ^ rotated(hash, 24)) * PRIME_MX2;
        hash = (hash ^ ((hash >> 35) + bytes)) * PRIME_MX2;
        return hash ^ hash >> 28;
    }
    const u64 joined = (u64)in[0] << 16 | (u64)in[bytes >> 1] << 24 | (u64)in[bytes - 1] | (u64)bytes << 8;
    return avalanche64(joined ^ read32(SECRET) ^ read32(SECRET + 4));
}

__device__ u64 up_to_240(const u8* in, u32 bytes) {
    u64 hash = bytes * PRIME64_1;
    if (bytes <= 128) {
        for (int i = (int)((bytes - 1) / 32); i >= 0; --i) {
            hash += mixed(in + 16 * i, 32 * i) + mixed(in + bytes - 16 * (i + 1), 32 * i + 16);
        }
        return avalanche(hash);
    }
    const int rounds = (int)(bytes / 16);
    for (int i = 0; i < 8; ++i) hash += mixed(in + 16 * i, 16 * i);
    hash = avalanche(hash);
    for (int i = 8; i < rounds; ++i) hash += mixed(in + 16 * i, 16 * (i - 8) + 3);
    return avalanche(hash + mixed(in + bytes - 16, 136 - 17));
}

// -- longer: blocks of 16 stripes of 64 bytes, a lane each 8 of them

__device__ u64 lane_start(int lane) {
    const u64 starts[LANES] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    return starts[lane];
}

__device__ u64 with_stripe(u64 sum, const u8* stripe, int secret, int lane) {
    const u64 keyed = read64(stripe + 8 * lane) ^ read64(SECRET + secret + 8 * lane);
    return sum + read64(stripe + 8 * (lane ^ 1)) + (keyed & 0xFFFFFFFF) * (keyed >> 32);
}

__device__ u64 lane_of(const u8* in, u32 bytes, int lane) {
    const u32 stripes = (bytes - 1) / 64;
    u64 sum = lane_start(lane);
    for (u32 i = 0; i < stripes; ++i) {
        sum = with_stripe(sum, in + 64 * i, (int)(8 * (i % 16)), lane);
        if (i % 16 == 15) sum = (sum ^ sum >> 47 ^ read64(SECRET + 128 + 8 * lane)) * PRIME32_1;
    }
    return with_stripe(sum, in + bytes - 64, 192 - 64 - 7, lane);
}

__device__ u64 merged(const u64* lanes, u32 bytes) {
    u64 hash = bytes * PRIME64_1;
    for (int i = 0; i < 4; ++i) {
        hash += fold(lanes[2 * i] ^ read64(SECRET + 11 + 16 * i), lanes[2 * i + 1] ^ read64(SECRET + 19 + 16 * i));
    }
    return avalanche(hash);
}

// digests[i] is the XXH3-64 of bytes[i] bytes at starts[i]. Blocks of THREADS threads, THREADS / LANES leaves each.
extern "C" __global__ void leaf_digests(const u64* starts, const u32* bytes, u64* digests, u64 count) {
    __shared__ u64 lanes[THREADS];
    const u64 leaf = (u64)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    const int lane = (int)(threadIdx.x % LANES);
    const bool there = leaf < count;
    const u8* in = there ? (const u8*)starts[leaf] : 0;
    const u32 length = there ? bytes[leaf] : 0;
    if (length > 240) lanes[threadIdx.x] = lane_of(in, length, lane);
    __syncthreads();
    if (there && lane == 0) {
        if (length > 240) {
            digests[leaf] = merged(lanes + threadIdx.x, length);
        } else {
            digests[leaf] = length > 16 ? up_to_240(in, length) : up_to_16(in, length);
        }
    }
}
