// s Q (K^T V) of one head and its gradients on tensor cores; no operand passes through shared memory but the D x D
// matrices. A block is one head of one sample and step, with a warp for every 16 channels. Compiled by NVRTC without
// any header; defined in front of this text: D, the width of a head; TYPE, "bf16" or "f16"; ONE, the bits of 1.0.
//
// A warp of mma.m16n8k16 is 8 rows of 4 lanes: lane = 4 slot + part. Which row, column or k an index of the instruction
// stands for is free, as long as both operands agree on k, and is chosen so that lanes read and write whole words:
//   - sums over tokens, a^T b: k is a token, 4 per lane; a lane has the same channels of its 4 tokens, two in a word,
//     and __byte_perm makes pairs of tokens of them. Rows: channels 16 warp + 2 slot + {0, 1} of a; columns: all of b.
//   - rows times a square: k is a channel, 2 PIECE neighbours per lane; the square holds its columns as lines.
#define INLINE static __device__ __forceinline__
#define WARPS (D / 16)
#define WORDS (D % 64 == 0 ? 4 : D % 32 == 0 ? 2 : 1)  // a lane's words of a token, of each SPAN channels
#define SPAN (16 * WORDS)
#define PIECE (D % 32 == 0 ? 4 : 2)                    // a lane's words of a row or column, of each 8 PIECE channels
#define PIECES (D / (8 * PIECE))
#define LINE (D % 64 == 0 ? D + 32 : D)                // of the square in shared memory; neighbours differ in banks
#define RESIDENT (D <= 64 ? 16 / WARPS : 1)             // blocks per multiprocessor: with more, registers spill

typedef unsigned short Half;
template <int n> struct __align__(4 * n) Words { unsigned w[n]; };
struct Arguments {
    const Half* x;        // Q, K, V side by side [samples, N, 3 C]; backward: the product's gradient [samples, N, C]
    Half* y;              // the product; backward: the gradient of x
    unsigned char* bits;  // [samples heads, 3, N, D / 8]
    Half* middle;         // s K^T V [samples heads, D, D]
    int tokens, heads;
    float scale;
};
struct Lane { int warp, slot, part; };
struct Rows { const Half* first; long long stride; };  // of numbers, D per token

INLINE Lane this_lane() {
    const int t = (int)threadIdx.x;
    return {t / 32, t / 4 % 8, t % 4};
}
INLINE void get(Words<1>& to, const Half* from) { to = {{__ldg((const unsigned*)from)}}; }
INLINE void get(Words<2>& to, const Half* from) {
    const uint2 v = __ldg((const uint2*)from);
    to = {{v.x, v.y}};
}
INLINE void get(Words<4>& to, const Half* from) {
    const uint4 v = __ldg((const uint4*)from);
    to = {{v.x, v.y, v.z, v.w}};
}
template <int n> INLINE Words<n> read(const Half* from) {
    Words<n> to;
    get(to, from);
    return to;
}
INLINE unsigned spikes_of(unsigned word) {  // -0 is no spike
    return (unsigned)((word & 0x7fffu) != 0) | (unsigned)((word & 0x7fff0000u) != 0) << 1;
}
INLINE unsigned word_of(unsigned spikes) { return ((spikes | spikes << 15) & 0x10001u) * ONE; }  // of its last 2 bits
INLINE unsigned firsts(unsigned a, unsigned b) { return __byte_perm(a, b, 0x5410); }
INLINE unsigned seconds(unsigned a, unsigned b) { return __byte_perm(a, b, 0x7632); }
INLINE unsigned rounded(float first, float second) {
    unsigned word;
    asm("cvt.rn." TYPE "x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
}
// c [16, 8] += a [16, 16] b [16, 8]
INLINE void multiply(float* c, const unsigned* a, unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- sums over tokens: [16 channels of this warp, D] of a^T b ----
struct Sums { float at[D / 8][4]; };
struct Step { unsigned own[4]; Words<WORDS> all[4][D / SPAN]; };  // of 16 tokens, this lane's 4: first + 4 y + part

// a is rows of numbers (K) or, with BITS, bits (Q); b is rows of numbers (V, the gradient).
template <bool BITS>
INLINE Step load(const Rows& a, const unsigned char* bits, const Rows& b, int first, int tokens, const Lane& lane) {
    Step step;
#pragma unroll
    for (int y = 0; y < 4; ++y) {
        const int token = first + 4 * y + lane.part;
        const bool there = token < tokens;
        if (BITS) {
            const unsigned short* from = (const unsigned short*)bits + token * WARPS + lane.warp;
            step.own[y] = there ? word_of((unsigned)__ldg(from) >> 2 * lane.slot) : 0u;
        } else {
            const Half* from = a.first + token * a.stride + 16 * lane.warp + 2 * lane.slot;
            step.own[y] = there ? read<1>(from).w[0] : 0u;
        }
#pragma unroll
        for (int m = 0; m < D / SPAN; ++m) {
            step.all[y][m] = Words<WORDS>{};
            if (there) step.all[y][m] = read<WORDS>(b.first + token * b.stride + m * SPAN + 2 * WORDS * lane.slot);
        }
    }
    return step;
}
INLINE void add(Sums& sums, const Step& step) {
    const unsigned* k = step.own;
    const unsigned a[4] = {firsts(k[0], k[1]), seconds(k[0], k[1]), firsts(k[2], k[3]), seconds(k[2], k[3])};
#pragma unroll
    for (int m = 0; m < D / SPAN; ++m)
#pragma unroll
        for (int w = 0; w < WORDS; ++w) {
            unsigned v[4];
#pragma unroll
            for (int y = 0; y < 4; ++y) v[y] = step.all[y][m].w[w];
            float(*c)[4] = sums.at + 2 * (m * WORDS + w);
            multiply(c[0], a, firsts(v[0], v[1]), firsts(v[2], v[3]));
            multiply(c[1], a, seconds(v[0], v[1]), seconds(v[2], v[3]));
        }
}

// Bits of a step's K, this warp's channels, and in every WARPS-th step of V, all channels.
INLINE void record(unsigned char* k_bits, unsigned char* v_bits, const Step& step, int first, int tokens,
                   const Lane& lane) {
    unsigned low = 0, high = 0;  // 16 channels of 2 tokens each
#pragma unroll
    for (int y = 0; y < 2; ++y) {
        low |= spikes_of(step.own[y]) << (16 * y + 2 * lane.slot);
        high |= spikes_of(step.own[y + 2]) << (16 * y + 2 * lane.slot);
    }
#pragma unroll
    for (int m = 4; m < 32; m *= 2) {
        low |= __shfl_xor_sync(~0u, low, m);
        high |= __shfl_xor_sync(~0u, high, m);
    }
    const int token = first + 4 * lane.slot + lane.part;
    if (lane.slot < 4 && token < tokens)
        ((unsigned short*)k_bits)[token * WARPS + lane.warp] =
            (unsigned short)((lane.slot & 2 ? high : low) >> 16 * (lane.slot & 1));
    if (first / 16 % WARPS != lane.warp) return;
    const int share = 4 / WORDS;  // lanes that make a byte
#pragma unroll
    for (int m = 0; m < D / SPAN; ++m) {
        unsigned bytes = 0;  // one per token
#pragma unroll
        for (int y = 0; y < 4; ++y)
#pragma unroll
            for (int w = 0; w < WORDS; ++w)
                bytes |= spikes_of(step.all[y][m].w[w]) << (8 * y + 2 * WORDS * (lane.slot % share) + 2 * w);
#pragma unroll
        for (int n = 4; n < 4 * share; n *= 2) bytes |= __shfl_xor_sync(~0u, bytes, n);
#pragma unroll
        for (int y = 0; y < 4; ++y) {
            const int at = first + 4 * y + lane.part;
            if (lane.slot % share == 0 && at < tokens)
                v_bits[at * (D / 8) + (m * SPAN + 2 * WORDS * lane.slot) / 8] = (unsigned char)(bytes >> 8 * y);
        }
    }
}

template <bool BITS, bool RECORD>
INLINE void sum_over_tokens(Sums& sums, const Rows& a, const unsigned char* bits, const Rows& b, unsigned char* k_bits,
                            unsigned char* v_bits, float scale, int tokens, const Lane& lane) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums.at[n][e] = 0.0f;
    Step step = load<BITS>(a, bits, b, 0, tokens, lane);
    for (int first = 0; first < tokens; first += 16) {
        Step next;
        if (D <= 64) next = load<BITS>(a, bits, b, first + 16, tokens, lane);  // in flight during the products
        if (RECORD) record(k_bits, v_bits, step, first, tokens, lane);
        add(sums, step);
        if (D > 64) next = load<BITS>(a, bits, b, first + 16, tokens, lane);
        step = next;
    }
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums.at[n][e] *= scale;
}

// The sums as lines of this warp's channels.
INLINE void store(Half* square, int line, const Sums& sums, const Lane& lane) {
#pragma unroll
    for (int m = 0; m < D / SPAN; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            Words<WORDS> out;
#pragma unroll
            for (int w = 0; w < WORDS; ++w) {
                const float(*c)[4] = sums.at + 2 * (m * WORDS + w);
                out.w[w] = rounded(c[0][e], c[1][e]);
            }
            const int row = 16 * lane.warp + 2 * lane.slot + e / 2;
            *(Words<WORDS>*)(square + row * line + m * SPAN + 2 * WORDS * (2 * lane.part + e % 2)) = out;
        }
}
// The same, transposed.
INLINE void store_transposed(Half* square, const Sums& sums, const Lane& lane) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int row = n / (2 * WORDS) * SPAN + 2 * WORDS * (2 * lane.part + e) + n % (2 * WORDS);
            const float* c = sums.at[n];
            *(unsigned*)(square + row * LINE + 16 * lane.warp + 2 * lane.slot) = rounded(c[e], c[2 + e]);
        }
}

// ---- rows times a square: y [tokens, D], with y[token][j] = sum over k of x[token][k] square[j][k] ----
struct Band { Words<PIECE> got[2][PIECES]; };  // of 16 tokens: first + slot and first + 8 + slot

INLINE Band load_numbers(const Rows& x, int first, int tokens, const Lane& lane) {
    Band band;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int token = first + 8 * h + lane.slot;
#pragma unroll
        for (int p = 0; p < PIECES; ++p) {
            band.got[h][p] = Words<PIECE>{};
            const Half* from = x.first + token * x.stride + 2 * PIECE * (4 * p + lane.part);
            if (token < tokens) band.got[h][p] = read<PIECE>(from);
        }
    }
    return band;
}
INLINE Band load_bits(const unsigned char* bits, int first, int tokens, const Lane& lane) {
    Band band;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int token = first + 8 * h + lane.slot;
#pragma unroll
        for (int p = 0; p < PIECES; ++p) {
            const int channel = 2 * PIECE * (4 * p + lane.part);
            unsigned got = 0;
            if (token < tokens) got = (unsigned)__ldg(bits + token * (D / 8) + channel / 8) >> channel % 8;
#pragma unroll
            for (int w = 0; w < PIECE; ++w) band.got[h][p].w[w] = word_of(got >> 2 * w);
        }
    }
    return band;
}
INLINE void record(unsigned char* bits, const Band& band, int first, int tokens, const Lane& lane) {
    const int share = 4 / PIECE;  // lanes that make a byte
#pragma unroll
    for (int p = 0; p < PIECES; ++p) {
        unsigned bytes = 0;  // one per token
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int w = 0; w < PIECE; ++w)
                bytes |= spikes_of(band.got[h][p].w[w]) << (8 * h + 2 * PIECE * (lane.part % share) + 2 * w);
        if (share == 2) bytes |= __shfl_xor_sync(~0u, bytes, 1);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int token = first + 8 * h + lane.slot;
            if (lane.part % share == 0 && token < tokens)
                bits[token * (D / 8) + 2 * PIECE * (4 * p + lane.part) / 8] = (unsigned char)(bytes >> 8 * h);
        }
    }
}
INLINE void times_square(const Band& band, const Half* square, Half* y, long long stride, int first, int tokens,
                         const Lane& lane) {
#pragma unroll
    for (int m = 0; m < PIECES; ++m) {
        float sum[PIECE][4];
#pragma unroll
        for (int t = 0; t < PIECE; ++t) {
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[t][e] = 0.0f;
            // columns 2 part + {0, 1} of products t = 0, 1, ... are neighbours
            const int column = 8 * PIECE * m + 2 * PIECE * (lane.slot / 2) + 2 * t + lane.slot % 2;
#pragma unroll
            for (int p = 0; p < PIECES; ++p) {
                const Words<PIECE> b = *(const Words<PIECE>*)(square + column * LINE + 2 * PIECE * (4 * p + lane.part));
#pragma unroll
                for (int w = 0; w < PIECE; w += 2) {
                    const unsigned *low = band.got[0][p].w + w, *high = band.got[1][p].w + w;
                    const unsigned a[4] = {low[0], high[0], low[1], high[1]};
                    multiply(sum[t], a, b.w[w], b.w[w + 1]);
                }
            }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int token = first + 8 * h + lane.slot;
            Words<PIECE> out;
#pragma unroll
            for (int t = 0; t < PIECE; ++t) out.w[t] = rounded(sum[t][2 * h], sum[t][2 * h + 1]);
            if (token < tokens) *(Words<PIECE>*)(y + token * stride + 2 * PIECE * (4 * m + lane.part)) = out;
        }
    }
}

// ---- the kernels ----
template <bool RECORD> INLINE void product(const Arguments& a) {
    __shared__ Words<4> lines[D * LINE / 8];
    Half* square = (Half*)lines;
    const Lane lane = this_lane();
    const int head = (int)blockIdx.x % a.heads, N = a.tokens, part = N * (D / 8);
    const long long block = blockIdx.x, sample = (int)blockIdx.x / a.heads, C = (long long)a.heads * D;
    const Half* q = a.x + sample * N * 3 * C + head * D;
    unsigned char* bits = RECORD ? a.bits + block * 3 * part : nullptr;
    Sums sums;
    sum_over_tokens<false, RECORD>(sums, {q + C, 3 * C}, nullptr, {q + 2 * C, 3 * C}, bits + part, bits + 2 * part,
                                   a.scale, N, lane);
    if (RECORD) store(a.middle + block * D * D, D, sums, lane);
    store_transposed(square, sums, lane);
    __syncthreads();
    Half* y = a.y + sample * N * C + head * D;
    for (int first = 16 * lane.warp; first < N; first += 16 * WARPS) {
        const Band band = load_numbers({q, 3 * C}, first, N, lane);
        if (RECORD) record(bits, band, first, N, lane);
        times_square(band, square, y, C, first, N, lane);
    }
}
extern "C" __global__ void __launch_bounds__(32 * WARPS, RESIDENT) mix(const Arguments a) { product<false>(a); }
extern "C" __global__ void __launch_bounds__(32 * WARPS, RESIDENT) mix_recorded(const Arguments a) { product<true>(a); }

// With M = s K^T V and the gradient G: of Q, G M^T; of M, s Q^T G = P; of K, V P^T; of V, K P.
extern "C" __global__ void __launch_bounds__(32 * WARPS, RESIDENT) mix_backward(const Arguments a) {
    __shared__ Words<4> lines[D * LINE / 8];
    Half* square = (Half*)lines;
    const Lane lane = this_lane();
    const int head = (int)blockIdx.x % a.heads, N = a.tokens, part = N * (D / 8);
    const long long block = blockIdx.x, sample = (int)blockIdx.x / a.heads, C = (long long)a.heads * D;
    const Rows grad = {a.x + sample * N * C + head * D, C};
    const unsigned char* bits = a.bits + block * 3 * part;
    const Half* middle = a.middle + block * D * D;
    Half* of_q = a.y + sample * N * 3 * C + head * D;
    for (int i = (int)threadIdx.x; i < D * D / 8; i += 32 * WARPS)
        *(Words<4>*)(square + i / (D / 8) * LINE + i % (D / 8) * 8) = read<4>(middle + i * 8);
    __syncthreads();
    for (int first = 16 * lane.warp; first < N; first += 16 * WARPS)
        times_square(load_numbers(grad, first, N, lane), square, of_q, 3 * C, first, N, lane);
    Sums sums;
    sum_over_tokens<true, false>(sums, grad, bits, grad, nullptr, nullptr, a.scale, N, lane);
    __syncthreads();
    store(square, LINE, sums, lane);
    __syncthreads();
    for (int first = 16 * lane.warp; first < N; first += 16 * WARPS)
        times_square(load_bits(bits + 2 * part, first, N, lane), square, of_q + C, 3 * C, first, N, lane);
    __syncthreads();
    store_transposed(square, sums, lane);
    __syncthreads();
    for (int first = 16 * lane.warp; first < N; first += 16 * WARPS)
        times_square(load_bits(bits + part, first, N, lane), square, of_q + 2 * C, 3 * C, first, N, lane);
}
