// What a CUDA kernel of the loom needs, in plain C++: its threads share nothing, so a loop over them does what a GPU does.
#include <cmath>
#include <cstdint>
#include <cstring>
#pragma GCC optimize("no-strict-aliasing")  // lanes are read in words of up to 16 bytes

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __align__(bytes) alignas(bytes)
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct Place { unsigned x; };
static Place blockIdx, threadIdx, blockDim;

template <class To, class From> static inline To bits(From from) { To to; std::memcpy(&to, &from, sizeof to); return to; }
template <class E> static inline E __ldg(const E* from) { return *from; }
static inline float __int_as_float(int v) { return bits<float>(v); }
static inline float __uint_as_float(unsigned v) { return bits<float>(v); }
static inline unsigned __float_as_uint(float v) { return bits<unsigned>(v); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fdividef(float a, float b) { return a / b; }
#define __expf expf

template <class Arguments>
static void every_thread(void (*kernel)(const Arguments), const void* arguments, unsigned blocks, unsigned threads) {
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel(*static_cast<const Arguments*>(arguments));
}
