// Scalar helpers of the CPU kernels. `real` (float or double) and `io` (storage type) are defined before inclusion.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#define LOOM_INLINE static inline __attribute__((always_inline))

template <class To, class From> LOOM_INLINE To loom_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bit casts keep the size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// e^x in float to about one ulp, branch-free so that loops over lanes vectorise: x = n ln 2 + r with |r| <= ln 2 / 2, a
// polynomial in r, and 2^n applied in two factors so that subnormal results and overflow come out right.
LOOM_INLINE float loom_exp_fraction(float r) {
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * (r * r) + r) + 1.0f;
}
LOOM_INLINE float loom_exp(float x) {
    const float c = x > 89.0f ? 89.0f : (x < -104.0f ? -104.0f : x);
    const float n = (c * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
    const float r = (c - n * 0.693359375f) - n * -2.12194440e-4f;
    const float y = loom_exp_fraction(r);
    const int32_t e = (int32_t)n, half = e >> 1;
    return (y * loom_bits<float>((half + 127) << 23)) * loom_bits<float>((e - half + 127) << 23);
}
LOOM_INLINE double loom_exp(double x) { return std::exp(x); }
LOOM_INLINE real loom_log(real x) { return std::log(x); }
LOOM_INLINE real loom_sqrt(real x) { return std::sqrt(x); }
LOOM_INLINE real loom_tanh(real x) { return std::tanh(x); }
LOOM_INLINE real loom_sigmoid(real x) { return real(1) / (real(1) + loom_exp(-x)); }
LOOM_INLINE real loom_abs(real x) { return std::fabs(x); }
LOOM_INLINE real loom_max(real a, real b) { return (a > b || a != a) ? a : b; }
LOOM_INLINE real loom_min(real a, real b) { return (a < b || a != a) ? a : b; }
LOOM_INLINE real loom_clamp(real x, real low, real high) { return loom_min(loom_max(x, low), high); }
LOOM_INLINE real loom_floor(real x) { return std::floor(x); }
LOOM_INLINE real loom_round(real x) { return std::nearbyint(x); }  // to even, the default rounding mode

// Division by a value that stays the same over all steps, correctly rounded where it counts: see cuda/prelude.cuh. Four
// times as fast as a vector division where the processor has fused multiply-add.
struct Divisor { real b, y; };
LOOM_INLINE Divisor loom_divisor(real b) { return {b, real(1) / b}; }
LOOM_INLINE float loom_div(float a, const Divisor& d) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    const float q = a * (float)d.y;
    const float exact = __builtin_fmaf(__builtin_fmaf(-(float)d.b, q, a), (float)d.y, q);
    return exact == exact ? exact : q;
#else
    return a / (float)d.b;
#endif
}
LOOM_INLINE double loom_div(double a, const Divisor& d) { return a / (double)d.b; }

// For derived gradients, where the last bit does not decide a spike.
LOOM_INLINE real loom_quick_div(real a, real b) { return a / b; }
LOOM_INLINE float loom_quick_div(float a, const Divisor& d) { return a * (float)d.y; }
LOOM_INLINE double loom_quick_div(double a, const Divisor& d) { return a / (double)d.b; }
LOOM_INLINE float loom_quick_exp(float x) {  // without subnormal results and overflow: e^-87 ... e^88
    const float c = x > 88.0f ? 88.0f : (x < -87.0f ? -87.0f : x);
    const float z = c * 1.44269504088896341f + 12582912.0f, n = z - 12582912.0f, r = c - n * 0.693147180559945f;
    return loom_exp_fraction(r) * loom_bits<float>((loom_bits<int32_t>(z) << 23) + 0x3f800000);
}
LOOM_INLINE double loom_quick_exp(double x) { return std::exp(x); }
LOOM_INLINE real loom_quick_sigmoid(real x) { return real(1) / (real(1) + loom_quick_exp(-x)); }

// Storage types: float and double as they are, bfloat16 and float16 as their bits, rounded to nearest even.
struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };

LOOM_INLINE real loom_load(const float& v) { return v; }
LOOM_INLINE real loom_load(const double& v) { return (real)v; }
LOOM_INLINE real loom_load(const bf16& v) { return loom_bits<float>((uint32_t)v.bits << 16); }
LOOM_INLINE real loom_load(const fp16& v) {
    const uint32_t magnitude = (uint32_t)(v.bits & 0x7fff) << 13, sign = (uint32_t)(v.bits & 0x8000) << 16;
    const float scaled = loom_bits<float>(magnitude) * 5.192296858534828e33f;  // 2^112 moves the exponent bias
    const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;      // infinity and NaN
    return loom_bits<float>(loom_bits<uint32_t>(scaled) | special | sign);
}
LOOM_INLINE void loom_store(float& to, real v) { to = (float)v; }
LOOM_INLINE void loom_store(double& to, real v) { to = v; }
LOOM_INLINE void loom_store(bf16& to, real v) {
    const uint32_t b = loom_bits<uint32_t>((float)v);
    const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
    to.bits = (uint16_t)((b & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
LOOM_INLINE void loom_store(fp16& to, real v) {
    const uint32_t b = loom_bits<uint32_t>((float)v), sign = b & 0x80000000u, m = b ^ sign;
    const uint32_t normal = (m + 0xc8000fffu + ((m >> 13) & 1u)) >> 13;                    // rebias, round to even
    const uint32_t tiny = loom_bits<uint32_t>(loom_bits<float>(m) + 0.5f) - 0x3f000000u;   // subnormal half
    const uint32_t large = m > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t h = m >= 0x47800000u ? large : (m < 0x38800000u ? tiny : normal);
    to.bits = (uint16_t)(h | (sign >> 16));
}

// The parameter of lane l is entry (l / repeat) % count. Neighbouring lanes use neighbouring entries (repeat 1) or share
// one for a while, so a block is a few runs.
struct LaneParam { const real* values; int64_t count, repeat; };

// Calls `run(entry, first, n)` for every run of a block: lanes first ... first + n - 1 use entries entry ... (repeat 1) or
// all use `entry`.
template <class Run> LOOM_INLINE void loom_runs(const LaneParam& p, int64_t lane, int n, Run run) {
    int64_t entry = (lane / p.repeat) % p.count, left = p.repeat == 1 ? p.count - entry : p.repeat - lane % p.repeat;
    for (int first = 0; first < n;) {
        const int length = (int)(left < n - first ? left : n - first);
        run(entry, first, length);
        first += length;
        entry = p.repeat == 1 || entry + 1 == p.count ? 0 : entry + 1;
        left = p.repeat == 1 ? p.count : p.repeat;
    }
}
LOOM_INLINE void loom_gather(const LaneParam& p, int64_t lane, int n, real* to) {
    loom_runs(p, lane, n, [&](int64_t entry, int first, int length) {
        if (p.repeat == 1) std::memcpy(to + first, p.values + entry, length * sizeof(real));
        else for (int l = first; l < first + length; ++l) to[l] = p.values[entry];
    });
}

// Adds what the lanes of a block give to the sums of a lane parameter, or to the one sum of a uniform parameter.
LOOM_INLINE double loom_total(int n, const real* from) {
    double sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int l = 0; l < n; ++l) sum += (double)from[l];
    return sum;
}
LOOM_INLINE void loom_collect(const LaneParam& p, int64_t lane, int n, const real* from, double* sums) {
    loom_runs(p, lane, n, [&](int64_t entry, int first, int length) {
        if (p.repeat == 1) {
            double* to = sums + entry;
            #pragma omp simd
            for (int l = 0; l < length; ++l) to[l] += (double)from[first + l];
        } else sums[entry] += loom_total(length, from + first);
    });
}
