// Scalar helpers of the CUDA kernels; compiled by NVRTC without any header. `real`, `io` and LOOM_IO_* come first.
#define LOOM_INLINE static __device__ __forceinline__
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fffffff)
#endif

LOOM_INLINE float loom_exp(float x) { return expf(x); }
LOOM_INLINE double loom_exp(double x) { return exp(x); }
LOOM_INLINE float loom_log(float x) { return logf(x); }
LOOM_INLINE double loom_log(double x) { return log(x); }
LOOM_INLINE float loom_sqrt(float x) { return sqrtf(x); }
LOOM_INLINE double loom_sqrt(double x) { return sqrt(x); }
LOOM_INLINE float loom_tanh(float x) { return tanhf(x); }
LOOM_INLINE double loom_tanh(double x) { return tanh(x); }
LOOM_INLINE float loom_abs(float x) { return fabsf(x); }
LOOM_INLINE double loom_abs(double x) { return fabs(x); }
LOOM_INLINE float loom_floor(float x) { return floorf(x); }
LOOM_INLINE double loom_floor(double x) { return floor(x); }
LOOM_INLINE float loom_round(float x) { return rintf(x); }
LOOM_INLINE double loom_round(double x) { return rint(x); }
LOOM_INLINE real loom_sigmoid(real x) { return real(1) / (real(1) + loom_exp(-x)); }

// Division by a value that stays the same over all steps, correctly rounded: with y = RN(1 / b), q = RN(a y) and the
// exact residual r = a - b q, RN(q + r y) is RN(a / b) (Markstein; Brisebarre, Muller, Raina 2004). Below 2^-102, where r
// may underflow, the last bit can differ unless b is a power of two; overflow and NaN come out as in division.
struct Divisor {
    real b, y;
    static __device__ __forceinline__ Divisor of(real b) { Divisor d = {b, real(1) / b}; return d; }
};
LOOM_INLINE float loom_div(float a, const Divisor& d) {
    const float q = a * (float)d.y;
    const float exact = __fmaf_rn(__fmaf_rn(-(float)d.b, q, a), (float)d.y, q);
    return exact == exact ? exact : q;  // exact is NaN where q overflows and where b is infinite
}
LOOM_INLINE double loom_div(double a, const Divisor& d) { return a / (double)d.b; }

// Division by a power of two, whose reciprocal is exact.
struct Halving {
    real y;
    static __device__ __forceinline__ Halving of(real b) { Halving d = {real(1) / b}; return d; }
};
LOOM_INLINE real loom_div(real a, const Halving& d) { return a * d.y; }
LOOM_INLINE real loom_quick_div(real a, const Halving& d) { return a * d.y; }

// For derived gradients, where the last bits do not decide a spike.
LOOM_INLINE float loom_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
LOOM_INLINE float loom_quick_exp(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
    return y;
}
LOOM_INLINE float loom_quick_div(float a, float b) { return __fdividef(a, b); }
LOOM_INLINE double loom_quick_div(double a, double b) { return a / b; }
LOOM_INLINE float loom_quick_div(float a, const Divisor& d) { return a * (float)d.y; }
LOOM_INLINE double loom_quick_div(double a, const Divisor& d) { return a / (double)d.b; }
LOOM_INLINE double loom_quick_exp(double x) { return exp(x); }
LOOM_INLINE float loom_quick_sigmoid(float x) { return loom_reciprocal(1.0f + loom_quick_exp(-x)); }
LOOM_INLINE double loom_quick_sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

LOOM_INLINE real loom_max(real a, real b) { return (a > b || a != a) ? a : b; }
LOOM_INLINE real loom_min(real a, real b) { return (a < b || a != a) ? a : b; }
LOOM_INLINE real loom_clamp(real x, real low, real high) { return loom_min(loom_max(x, low), high); }

// Storage types: float and double as they are, bfloat16 and float16 as their bits, rounded to nearest even.
struct bf16 { unsigned short bits; };
struct fp16 { unsigned short bits; };
LOOM_INLINE real loom_load(float v) { return v; }
LOOM_INLINE real loom_load(double v) { return (real)v; }
LOOM_INLINE real loom_load(bf16 v) { return __uint_as_float((unsigned)v.bits << 16); }
LOOM_INLINE real loom_load(fp16 v) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
    return f;
}
LOOM_INLINE void loom_store(float& to, real v) { to = (float)v; }
LOOM_INLINE void loom_store(double& to, real v) { to = v; }
LOOM_INLINE void loom_store(fp16& to, real v) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"((float)v)); }
LOOM_INLINE void loom_store(bf16& to, real v) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"((float)v));
#else
    const unsigned b = __float_as_uint((float)v);
    to.bits = (b & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (unsigned short)((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
#endif
}

// V neighbouring lanes of a tensor, read and written in one access.
template <int bytes> struct Word;
template <> struct Word<2> { typedef unsigned short type; };
template <> struct Word<4> { typedef unsigned type; };
template <> struct Word<8> { typedef uint2 type; };
template <> struct Word<16> { typedef uint4 type; };
template <class E, int V> struct __align__(sizeof(E) * V) Pack { E e[V]; };

template <class E, int V> LOOM_INLINE Pack<E, V> loom_read(const E* from) {
    typedef typename Word<sizeof(E) * V>::type word;
    union { word w; Pack<E, V> p; } u;
    u.w = __ldg(reinterpret_cast<const word*>(from));
    return u.p;
}
template <class E, int V> LOOM_INLINE void loom_write(E* to, const Pack<E, V>& pack) {
    typedef typename Word<sizeof(E) * V>::type word;
    union U { word w; Pack<E, V> p; __device__ U() {} } u;
    u.p = pack;
    *reinterpret_cast<word*>(to) = u.w;
}
template <int V> LOOM_INLINE void loom_read_real(const real* from, real* to) {
    #pragma unroll
    for (int v = 0; v < V; ++v) to[v] = __ldg(from + v);
}

// The parameter of lane l is entry (l / repeat) % count.
struct LaneParam { const real* values; long long count, repeat; };
template <int V> LOOM_INLINE void loom_gather(const LaneParam& p, index_t lane, real* to) {
    const index_t repeat = (index_t)p.repeat, count = (index_t)p.count;
    index_t entry = lane / repeat, left = repeat - (lane - entry * repeat);
    entry %= count;
    #pragma unroll
    for (int v = 0; v < V; ++v) {
        to[v] = __ldg(p.values + entry);
        if (--left == 0) { left = repeat; entry = entry + 1 == count ? 0 : entry + 1; }
    }
}
