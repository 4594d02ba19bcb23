// Causal depthwise convolution. A block has TOKENS tokens of one channel of one sample, and all of that channel's rows:
// row i of the weights convolves channel i mod d. In front of this text: `real` (float), `index_t`, the prelude, `io`, W,
// SILU (0 or 1).
enum { THREADS = 128, EACH = 4, TOKENS = THREADS * EACH, HALO = W - 1, WARPS = THREADS / 32 };

struct Arguments {
    const io *x, *grad;          // [b, d, L], [b, k d, L]
    const real *weight, *bias;   // [k d, W], [k d] or null
    io *y, *grad_x;              // as grad, as x; null: not wanted
    real* parts;                 // [tiles b, k d, W + 1]: parts of the gradients of weight and bias
    int batch, channels, rows, length, tiles, reversed;
};
struct Work { int tile, sample, channel, begin; };

LOOM_INLINE Work find(const Arguments& a) {
    Work w;
    index_t i = blockIdx.x;
    w.tile = (int)(i % a.tiles), i /= a.tiles;
    w.channel = (int)(i % a.channels), w.sample = (int)(i / a.channels);
    w.begin = w.tile * TOKENS;
    return w;
}
// Tokens begin - halo ... begin + TOKENS + halo of the channel; 0 where there is none.
LOOM_INLINE void fetch(const Arguments& a, const Work& w, real* to, int halo) {
    const io* from = a.x + ((long long)w.sample * a.channels + w.channel) * a.length;
    for (int i = threadIdx.x; i < TOKENS + 2 * halo; i += THREADS) {
        const int t = w.begin - halo + i;
        to[i] = t >= 0 && t < a.length ? loom_load(from[t]) : real(0);
    }
}
struct Row { real weight[W], bias; int number, way; long long at; };  // way: 1, or -1 from the last token to the first
LOOM_INLINE Row row_of(const Arguments& a, const Work& w, int number) {
    Row r;
    r.number = number, r.way = number >= a.rows - a.reversed ? -1 : 1;
    r.bias = a.bias ? a.bias[number] : real(0);
    r.at = ((long long)w.sample * a.rows + number) * a.length;
#pragma unroll
    for (int k = 0; k < W; ++k) r.weight[k] = a.weight[number * W + k];
    return r;
}
LOOM_INLINE real sum(const Row& r, const real* x) {  // x: the token's place
    real s = r.bias;
#pragma unroll
    for (int k = 0; k < W; ++k) s += r.weight[k] * x[-r.way * (HALO - k)];
    return s;
}
extern "C" __global__ void __launch_bounds__(128) conv_forward(const Arguments a) {
    __shared__ real x[TOKENS + 2 * HALO];
    const Work w = find(a);
    fetch(a, w, x, HALO);
    __syncthreads();
    for (int number = w.channel; number < a.rows; number += a.channels) {
        const Row r = row_of(a, w, number);
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int place = threadIdx.x + i * THREADS, t = w.begin + place;
            if (t >= a.length) break;
            const real s = sum(r, x + HALO + place);
            loom_store(a.y[r.at + t], SILU ? s * loom_quick_sigmoid(s) : s);
        }
    }
}
// Adds up v over the block and leaves it to thread 0. Two barriers.
LOOM_INLINE real everywhere(real v, real* shared) {
#pragma unroll
    for (int m = 16; m >= 1; m /= 2) v += __shfl_xor_sync(0xffffffffu, v, m);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    real total = 0;
#pragma unroll
    for (int i = 0; i < WARPS; ++i) total += shared[i];
    __syncthreads();
    return total;
}
extern "C" __global__ void __launch_bounds__(128) conv_backward(const Arguments a) {
    __shared__ real x[TOKENS + 4 * HALO], g[TOKENS + 2 * HALO], shared[WARPS];
    const Work w = find(a);
    fetch(a, w, x, 2 * HALO);
    real of_x[EACH] = {};
    __syncthreads();
    for (int number = w.channel; number < a.rows; number += a.channels) {
        const Row r = row_of(a, w, number);
        for (int i = threadIdx.x; i < TOKENS + 2 * HALO; i += THREADS) {
            const int t = w.begin - HALO + i;
            real of_sum = 0;
            if (t >= 0 && t < a.length) {
                of_sum = loom_load(a.grad[r.at + t]);
                if (SILU) {
                    const real s = sum(r, x + HALO + i), soft = loom_quick_sigmoid(s);
                    of_sum *= soft * (real(1) + s * (real(1) - soft));
                }
            }
            g[i] = of_sum;
        }
        __syncthreads();
        real of_weight[W + 1] = {};
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const real *here = g + HALO + threadIdx.x + i * THREADS, *value = x + 2 * HALO + threadIdx.x + i * THREADS;
#pragma unroll
            for (int k = 0; k < W; ++k) {
                of_x[i] += r.weight[k] * here[r.way * (HALO - k)];
                of_weight[k] += here[0] * value[-r.way * (HALO - k)];
            }
            of_weight[W] += here[0];
        }
        const long long part = ((long long)(w.tile * a.batch + w.sample) * a.rows + r.number) * (W + 1);
#pragma unroll
        for (int k = 0; k <= W; ++k) {
            const real total = everywhere(of_weight[k], shared);
            if (a.parts && threadIdx.x == 0) a.parts[part + k] = total;
        }
    }
    io* to = a.grad_x + ((long long)w.sample * a.channels + w.channel) * a.length;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int t = w.begin + threadIdx.x + i * THREADS;
        if (a.grad_x && t < a.length) loom_store(to[t], of_x[i]);
    }
}
