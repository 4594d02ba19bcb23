// Cross-entropy of rows of logits and its gradient; a block of THREADS threads per row. In front of this text: `real`
// (float), `index_t`, the prelude, `io`, THREADS (a multiple of 32), VECTOR (logits of one access), IGNORED.
struct Arguments {
    const io* logits;           // rows of `count` logits, `stride` apart
    const long long* targets;   // [rows]
    real* losses;               // [rows]: -log softmax at the target, 0 where there is none
    real* logs;                 // [rows]: log of the sum of e^logit
    int* places;                // [rows]: of the first largest logit
    const real* scale;          // gradient of a row's loss, one number
    io* grad;                   // rows as the logits'; zeros between them
    long long stride;
    int count;
    real penalty;               // times the largest logit: what its gradient has more
};
struct Best { real top, sum; int place; };  // largest, sum of e^(logit - top), place

#define LOWEST (-3.402823466e38f)  // finite, so that logits of minus infinity count nothing

LOOM_INLINE real share_of(const Best& b, real top) { return b.sum * loom_quick_exp(b.top - top); }
LOOM_INLINE Best merge(const Best& a, const Best& b) {
    const bool first = a.top > b.top || (a.top == b.top && a.place < b.place);
    const real top = first ? a.top : b.top;
    const Best both = {top, share_of(a, top) + share_of(b, top), first ? a.place : b.place};
    return both;
}
LOOM_INLINE Best from_lane(const Best& b, int other) {
    const Best o = {__uint_as_float(__shfl_xor_sync(0xffffffffu, __float_as_uint(b.top), other)),
                    __uint_as_float(__shfl_xor_sync(0xffffffffu, __float_as_uint(b.sum), other)),
                    (int)__shfl_xor_sync(0xffffffffu, (unsigned)b.place, other)};
    return o;
}
LOOM_INLINE void take(Best& b, real x, int place) {
    if (x > b.top) {
        b.sum = b.sum * loom_quick_exp(b.top - x) + real(1);
        b.top = x, b.place = place;
    } else {
        b.sum += loom_quick_exp(x - b.top);  // NaN of NaN
    }
}
// A vector at once: one comparison with the largest so far, and its sum is rescaled at most once.
LOOM_INLINE void take(Best& b, const Pack<io, VECTOR>& x, int place) {
    real top = loom_load(x.e[0]);
    int at = 0;
#pragma unroll
    for (int e = 1; e < VECTOR; ++e) {
        const real v = loom_load(x.e[e]);
        if (v > top) top = v, at = e;
    }
    if (top > b.top) {
        b.sum *= loom_quick_exp(b.top - top);
        b.top = top, b.place = place + at;
    }
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) b.sum += loom_quick_exp(loom_load(x.e[e]) - b.top);
}

extern "C" __global__ void __launch_bounds__(THREADS) token_loss(const Arguments a) {
    const long long row = blockIdx.x;
    const io* from = a.logits + row * a.stride;
    const int whole = a.count / VECTOR * VECTOR;
    Best best = {LOWEST, 0, 0x7fffffff};
#pragma unroll 4
    for (int i = (int)threadIdx.x * VECTOR; i < whole; i += THREADS * VECTOR)
        take(best, loom_read<io, VECTOR>(from + i), i);
    if (whole + (int)threadIdx.x < a.count) take(best, loom_load(from[whole + threadIdx.x]), whole + (int)threadIdx.x);
#pragma unroll
    for (int other = 16; other; other /= 2) best = merge(best, from_lane(best, other));
    __shared__ Best parts[THREADS / 32];
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x) return;
    for (int w = 1; w < THREADS / 32; ++w) best = merge(best, parts[w]);
    const long long target = a.targets[row];
    const bool ignored = target == IGNORED, wrong = !ignored && (target < 0 || target >= a.count);
    const real log_sum = loom_log(best.sum), at = ignored || wrong ? real(0) : loom_load(from[target]);
    a.losses[row] = ignored ? real(0) : wrong ? real(NAN) : (best.top - at) + log_sum;
    a.logs[row] = wrong ? real(NAN) : best.top + log_sum;
    a.places[row] = best.place < a.count ? best.place : 0;
}

struct Row { real log_sum, scale, penalty; int target, place; };
LOOM_INLINE real slope(const Row& r, real x, int place) {
    real g = loom_quick_exp(x - r.log_sum) * r.scale;
    if (place == r.target) g -= r.scale;
    if (place == r.place) g += r.penalty * x;
    return g;
}

extern "C" __global__ void __launch_bounds__(THREADS) token_loss_gradient(const Arguments a) {
    const long long row = blockIdx.x, target = a.targets[row];
    const io* from = a.logits + row * a.stride;
    io* to = a.grad + row * a.stride;
    const bool counts = target != IGNORED;
    // of a row without target the largest logit alone has a gradient
    const Row r = {a.logs[row], counts ? a.scale[0] : real(0), a.penalty, counts ? (int)target : -1, a.places[row]};
    const int whole = a.count / VECTOR * VECTOR;
#pragma unroll 4
    for (int i = (int)threadIdx.x * VECTOR; i < whole; i += THREADS * VECTOR) {
        const Pack<io, VECTOR> x = loom_read<io, VECTOR>(from + i);
        Pack<io, VECTOR> g;
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) loom_store(g.e[e], slope(r, loom_load(x.e[e]), i + e));
        loom_write<io, VECTOR>(to + i, g);
    }
    for (long long i = whole + (long long)threadIdx.x; i < a.stride; i += THREADS)
        loom_store(to[i], i < a.count ? slope(r, loom_load(from[i]), (int)i) : real(0));
}
