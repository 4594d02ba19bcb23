// Selective scan. A block walks over a chunk of tokens of CHANNELS channels, TILE tokens at a time; four threads hold a
// channel's states, S each. In front of this text: `real` (float), `index_t`, the prelude, `io`, `mat` (of B and C),
// S, B_MOVES, C_MOVES, GATED, SOFTPLUS (0 or 1), RESIDENT. Tokens count in the order in which a channel reads them.
enum { TILE = 32, BATCH = 8, CHANNELS = 32, THREADS = 128, N = 4 * S };
enum { ROW = TILE + 1, COLUMN = N + 4, PARTS = 2 * N + 1 };  // paces in shared memory

struct Arguments {
    const io *u, *delta, *z, *grad;            // [b, d, L]; z null: no gate
    const mat *B, *C;                          // [b, G, n, L], the last two axes gapless; where they do not move: null
    const real *A, *fixed_B, *fixed_C;         // [d, n]
    const real *D, *bias;                      // [d] or null
    const real *start, *grad_last;             // [b, d, n]; null: 0
    io *y, *grad_u, *grad_delta, *grad_z;      // [b, d, L]; null: not wanted
    real *last, *grad_start;                   // [b, d, n]
    real* kept;                                // [tiles, b, d, N]: states in front of every tile; null: not wanted
    real* borders;                             // [chunks, b, d, N]: states in front of, adjoints behind a chunk
    real* totals;                              // [chunks, b, d]: sums of the steps dt
    real *grad_B, *grad_C;                     // parts [P, b, G, n, L]; where they do not move [chunks b, d, n]
    real *grad_A, *grad_D, *grad_bias;         // parts [chunks b, d, n], [chunks b, d], [chunks b, d]
    long long B_sample, B_group, C_sample, C_group;  // strides of B and C
    int batch, channels, length, states, groups, segments, blocks, chunk, chunks, reversed;
    // length: L. groups: G. segments: groups, cut where the direction changes. blocks: of a segment. chunk: its tokens
};
LOOM_INLINE float power(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
LOOM_INLINE double power(double x) { return exp2(x); }
LOOM_INLINE float loom_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
LOOM_INLINE double loom_fma(double a, double b, double c) { return fma(a, b, c); }
// Softplus; in float without branches: with t = exp(-|r|) and s = t / (2 + t) <= 1/3, log(1 + t) = 2 atanh(s), an odd
// polynomial within 4e-9.
LOOM_INLINE double step_of(double r) { return SOFTPLUS && r <= 20.0 ? log1p(loom_quick_exp(r)) : r; }
LOOM_INLINE float step_of(float r) {
    if (!SOFTPLUS) return r;
    const float t = loom_quick_exp(-fabsf(r)), s = t * loom_reciprocal(2.0f + t), z = s * s;
    float sum = loom_fma(0.28174657f, z, 0.27961419f);
    sum = loom_fma(sum, z, 0.40024854f), sum = loom_fma(sum, z, 0.66666316f), sum = loom_fma(sum, z, 2.0f);
    return loom_fma(sum, s, fmaxf(r, 0.0f));
}
LOOM_INLINE real slope_of(real r) { return SOFTPLUS ? loom_quick_sigmoid(r) : real(1); }

typedef Pack<real, S> States;

// Where a thread works: on the states q S ... of channel `channel` in the recurrence, and on the token `lane` of the
// rows (channels) 8 warp ... 8 warp + 7 in everything else.
struct Work {
    int lane, warp, q, own, count;  // own: the thread's channel in the block; count: channels of the block that exist
    int chunk, sample, segment, block, begin, end;
    int first;                      // channel of row 0
    bool back, valid;
    long long sequence;             // sample * channels + first channel
};
LOOM_INLINE Work find(const Arguments& a, int skipped) {
    Work w;
    w.lane = threadIdx.x & 31, w.warp = threadIdx.x >> 5, w.q = threadIdx.x & 3, w.own = threadIdx.x >> 2;
    index_t i = blockIdx.x;
    w.block = i % a.blocks, i /= a.blocks;
    w.segment = i % a.segments, i /= a.segments;
    w.sample = i % a.batch, w.chunk = (int)(i / a.batch) + skipped;
    const int size = a.channels / a.segments, done = w.block * CHANNELS;
    w.count = size - done < CHANNELS ? size - done : CHANNELS;
    w.first = w.segment * size + done;
    w.sequence = (long long)w.sample * a.channels + w.first;
    w.back = w.first >= a.channels - a.reversed;
    w.valid = w.own < w.count;
    w.begin = w.chunk * a.chunk;
    w.end = a.length - w.begin < a.chunk ? a.length : w.begin + a.chunk;
    return w;
}
LOOM_INLINE int place(const Arguments& a, const Work& w, int t) { return w.back ? a.length - 1 - t : t; }

// The thread's part of a tile: token t + lane of eight rows. What does not exist is 0.
struct Rows { io e[8]; };
LOOM_INLINE void fetch(const Arguments& a, const Work& w, Rows& to, const io* from, int t) {
    const bool there = t >= w.begin && t + w.lane < w.end;
    const io* at = from + (w.sequence + 8 * w.warp) * a.length + place(a, w, t + w.lane);
#pragma unroll
    for (int i = 0; i < 8; ++i)
        to.e[i] = there && 8 * w.warp + i < w.count ? at[(long long)i * a.length] : io();
}
// Tokens of B or C: the thread's are token t + lane of the states warp, warp + 4, ...
struct Column { mat e[S]; };
LOOM_INLINE void fetch(
    const Arguments& a, const Work& w, Column& to, const mat* from, long long sample, long long group, int t
) {
    const bool there = t >= w.begin && t + w.lane < w.end;
    const int shared = w.segment * a.groups / a.segments;
    const mat* at = from + w.sample * sample + shared * group + place(a, w, t + w.lane);
#pragma unroll
    for (int k = 0; k < S; ++k)
        to.e[k] = there && w.warp + 4 * k < a.states ? at[(long long)(w.warp + 4 * k) * a.length] : mat();
}
LOOM_INLINE void spread(const Work& w, real* to, const Column& from) {
#pragma unroll
    for (int k = 0; k < S; ++k) to[w.lane * COLUMN + w.warp + 4 * k] = loom_load(from.e[k]);
}
LOOM_INLINE States at(const real* shared) { return *reinterpret_cast<const States*>(shared); }

// The thread's states of [.., d, n], K of them (S; in gradients.cu HELD), and of [.., d, N].
template <int K = S>
LOOM_INLINE Pack<real, K> read(const Arguments& a, const Work& w, const real* from, long long sequence) {
    Pack<real, K> s;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const int state = w.q * K + k;
        s.e[k] = from && w.valid && state < a.states ? from[(sequence + w.own) * a.states + state] : real(0);
    }
    return s;
}
template <int K>
LOOM_INLINE void write(const Arguments& a, const Work& w, real* to, long long sequence, const Pack<real, K>& s) {
#pragma unroll
    for (int k = 0; k < K; ++k)
        if (to && w.valid && w.q * K + k < a.states) to[(sequence + w.own) * a.states + w.q * K + k] = s.e[k];
}
LOOM_INLINE States* padded(const Arguments& a, const Work& w, real* of, int row) {
    const long long sequence = (long long)row * a.batch * a.channels + w.sequence + w.own;
    return reinterpret_cast<States*>(of + sequence * N + w.q * S);
}
LOOM_INLINE States read_padded(const Arguments& a, const Work& w, real* of, int row) {
    return w.valid ? *padded(a, w, of, row) : States();
}
LOOM_INLINE void write_padded(const Arguments& a, const Work& w, real* of, int row, const States& s) {
    if (w.valid) *padded(a, w, of, row) = s;
}
template <int K = S>
LOOM_INLINE Pack<real, K> rates(const Arguments& a, const Work& w) {  // of powers of 2
    Pack<real, K> A = read<K>(a, w, a.A, w.first);
#pragma unroll
    for (int k = 0; k < K; ++k) A.e[k] *= real(1.4426950408889634);
    return A;
}

// Sums of V values over LANES threads, whose numbers differ by multiples of STEP: each thread is left with
// max(1, V / LANES) of the sums, in front, and the result is the number of the first. At V < LANES several threads have
// the same one.
template <int V, int LANES, int STEP> LOOM_INLINE int fold(real* v, int number) {
    int first = 0;
#pragma unroll
    for (int m = LANES / 2, width = V; m >= 1; m /= 2) {
        if (width > 1) {
            width /= 2;
            const bool upper = number & m;
#pragma unroll
            for (int i = 0; i < width; ++i) {
                const real kept = upper ? v[i + width] : v[i], sent = upper ? v[i] : v[i + width];
                v[i] = kept + __shfl_xor_sync(0xffffffffu, sent, m * STEP);
            }
            first += upper ? width : 0;
        } else {
            v[0] += __shfl_xor_sync(0xffffffffu, v[0], m * STEP);
        }
    }
    return first;
}
LOOM_INLINE void advance(States& h, const States& A, const States& B, real dt, real x) {
#pragma unroll
    for (int k = 0; k < S; ++k) h.e[k] = loom_fma(power(dt * A.e[k]), h.e[k], x * B.e[k]);
}
LOOM_INLINE int batches(const Work& w, int t) {  // of the tile at t
    const int count = w.end - t < TILE ? w.end - t : TILE;
    return (count + BATCH - 1) / BATCH;
}

// Forward. SUMMARY: what the chunk's tokens add to a state behind it, from the state 0, and the sum of its steps.
template <bool SUMMARY> LOOM_INLINE void walk(const Arguments& a) {
    __shared__ real steps[CHANNELS * ROW], inputs[CHANNELS * ROW], results[CHANNELS * ROW];
    __align__(32) __shared__ real of_B[TILE * COLUMN], of_C[TILE * COLUMN];
    const Work w = find(a, 0);
    const States A = rates(a, w), fixed_B = read(a, w, a.fixed_B, w.first), fixed_C = read(a, w, a.fixed_C, w.first);
    States h = States();
    if (!SUMMARY) h = a.chunks > 1 ? read_padded(a, w, a.borders, w.chunk) : read(a, w, a.start, w.sequence);
    const int row = 8 * w.warp;
    real total = 0;
    Rows u, delta, z, next_u, next_delta, next_z;
    Column B, C;
    fetch(a, w, next_u, a.u, w.begin), fetch(a, w, next_delta, a.delta, w.begin);
    if (GATED && !SUMMARY) fetch(a, w, next_z, a.z, w.begin);
    if (B_MOVES) fetch(a, w, B, a.B, a.B_sample, a.B_group, w.begin);
    if (C_MOVES && !SUMMARY) fetch(a, w, C, a.C, a.C_sample, a.C_group, w.begin);
#pragma unroll 1
    for (int t = w.begin; t < w.end; t += TILE) {
        u = next_u, delta = next_delta;
        if (GATED && !SUMMARY) z = next_z;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const bool there = row + i < w.count && t + w.lane < w.end;
            const real bias = a.bias && there ? a.bias[w.first + row + i] : real(0);
            const real dt = there ? step_of(loom_load(delta.e[i]) + bias) : real(0);  // past the end: the identity
            steps[(row + i) * ROW + w.lane] = dt;
            inputs[(row + i) * ROW + w.lane] = there ? dt * loom_load(u.e[i]) : real(0);
        }
        if (B_MOVES) spread(w, of_B, B);
        if (C_MOVES && !SUMMARY) spread(w, of_C, C);
        __syncthreads();
        fetch(a, w, next_u, a.u, t + TILE), fetch(a, w, next_delta, a.delta, t + TILE);
        if (GATED && !SUMMARY) fetch(a, w, next_z, a.z, t + TILE);
        if (B_MOVES) fetch(a, w, B, a.B, a.B_sample, a.B_group, t + TILE);
        if (C_MOVES && !SUMMARY) fetch(a, w, C, a.C, a.C_sample, a.C_group, t + TILE);
        if (!SUMMARY && a.kept) write_padded(a, w, a.kept, t / TILE, h);
#pragma unroll 1
        for (int batch = 0, j0 = 0; batch < batches(w, t); ++batch, j0 += BATCH) {
            real y[BATCH];
#pragma unroll
            for (int j = 0; j < BATCH; ++j) {
                const real dt = steps[w.own * ROW + j0 + j], x = inputs[w.own * ROW + j0 + j];
                advance(h, A, B_MOVES ? at(of_B + (j0 + j) * COLUMN + w.q * S) : fixed_B, dt, x);
                total += dt, y[j] = 0;
                const States c = C_MOVES && !SUMMARY ? at(of_C + (j0 + j) * COLUMN + w.q * S) : fixed_C;
#pragma unroll
                for (int k = 0; k < S; ++k) y[j] = loom_fma(c.e[k], h.e[k], y[j]);
            }
            if (SUMMARY) continue;
            const int first = fold<BATCH, 4, 1>(y, w.q);
#pragma unroll
            for (int i = 0; i < BATCH / 4; ++i) results[w.own * ROW + j0 + first + i] = y[i];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 8 && !SUMMARY; ++i) {
            if (row + i >= w.count || t + w.lane >= w.end) continue;
            const real skip = a.D ? a.D[w.first + row + i] * loom_load(u.e[i]) : real(0);
            const real y = results[(row + i) * ROW + w.lane] + skip, gate = GATED ? loom_load(z.e[i]) : real(0);
            const long long to = (w.sequence + row + i) * a.length + place(a, w, t + w.lane);
            loom_store(a.y[to], GATED ? y * gate * loom_quick_sigmoid(gate) : y);
        }
    }
    if (SUMMARY) {
        write_padded(a, w, a.borders, w.chunk + 1, h);
        if (w.valid && w.q == 0) a.totals[(long long)w.chunk * a.batch * a.channels + w.sequence + w.own] = total;
    } else if (w.chunk + 1 == a.chunks) {
        write(a, w, a.last, w.sequence, h);
    }
}
extern "C" __global__ void __launch_bounds__(128, RESIDENT) scan_summaries(const Arguments a) { walk<true>(a); }
extern "C" __global__ void __launch_bounds__(128, RESIDENT) scan_forward(const Arguments a) { walk<false>(a); }

// From the summaries, the state in front of every chunk. A thread per state.
struct Lane { long long row; int state; real A; };
LOOM_INLINE bool find_lane(const Arguments& a, Lane& to) {
    const index_t i = blockIdx.x * blockDim.x + threadIdx.x;
    to.row = i / N, to.state = (int)(i % N);
    if (to.row >= (long long)a.batch * a.channels) return false;
    const bool there = to.state < a.states;
    to.A = there ? a.A[to.row % a.channels * a.states + to.state] * real(1.4426950408889634) : real(0);
    return true;
}
LOOM_INLINE real edge(const Arguments& a, const Lane& l, const real* from) {
    return from && l.state < a.states ? from[l.row * a.states + l.state] : real(0);
}
extern "C" __global__ void __launch_bounds__(128) scan_join(const Arguments a) {
    Lane l;
    if (!find_lane(a, l)) return;
    const long long rows = (long long)a.batch * a.channels;
    real h = edge(a, l, a.start);
    a.borders[l.row * N + l.state] = h;
    for (int chunk = 1; chunk < a.chunks; ++chunk) {
        real* border = a.borders + (chunk * rows + l.row) * N + l.state;
        h = loom_fma(power(l.A * a.totals[(chunk - 1) * rows + l.row]), h, *border);
        *border = h;
    }
}
