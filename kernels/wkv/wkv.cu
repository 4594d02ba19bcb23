// WKV over T tokens in chunks: every thread walks over one chunk of one lane (b, c). In front of this text: `real`
// (float), `index_t`, the prelude, `io`, STEPS (tokens of a batch), THREADS and RESIDENT.
struct Arguments {
    const io *k, *v, *grad;                // [T, B, C]
    io *y, *grad_k, *grad_v;
    const real *time_decay, *time_first;   // [C]
    const real *p, *q, *o;                 // state that comes in, [B, C]; null: the empty one
    real *end_p, *end_q, *end_o;           // state that goes out, [B, C]
    const real *grad_end_p, *grad_end_q;   // gradients of the state that goes out; null: 0
    real *grad_p, *grad_q;                 // gradients of the state that comes in; null: not wanted
    real* borders;                         // [chunks, 3, B, C]: p, q, o in front of a chunk
    real* kept;                            // [ceil(T / STEPS), 3, B, C]: p, q, o in front of a batch
    real* slopes;                          // [chunks, 3, B, C]: how a chunk's adjoint maps; then the adjoint behind it
    real* sums;                            // [2, chunks, B, C]: parts of the gradients of time_decay and time_first
    long long b_stride;                    // of k, v, grad, y, grad_k and grad_v, in elements
    index_t t_stride, lanes, channels;     // t_stride: STEPS of it fit too
    int steps, length, chunks;             // T, tokens of a chunk (a multiple of STEPS), number of chunks
};
struct State { real p, q, o; };
struct Weights { real past, present, o; };

// e^(past - o) and e^(present - o) for o = max(past, present): one of them is 1. exp is the GPU's own: as exponents are
// <= 0, its error is about 1e-7 of the larger weight.
LOOM_INLINE Weights weigh(real past, real present) {
    const real gap = past - present, less = loom_quick_exp(-loom_abs(gap));
    const bool older = gap >= 0;
    const Weights w = {older ? real(1) : less, older ? less : real(1), older ? past : present};
    return w;
}
LOOM_INLINE void advance(State& s, const Weights& by, real v) {
    s.p = __fmaf_rn(by.past, s.p, by.present * v);
    s.q = __fmaf_rn(by.past, s.q, by.present);
    s.o = by.o;
}
struct Mean { real past, present, y; };  // weights of the past and of this token divided by their sum, and the mean

LOOM_INLINE Mean mean(const State& s, real k, real v, real u) {
    const Weights w = weigh(s.o, u + k);
    const real one = loom_reciprocal(__fmaf_rn(w.past, s.q, w.present));
    const Mean m = {w.past * one, w.present * one, __fmaf_rn(w.past, s.p, w.present * v) * one};
    return m;
}

// Where a thread works. Threads of neighbouring lanes are neighbours, so that their accesses are.
struct Walk {
    index_t chunk, lane;
    int begin, count;   // first token, tokens
    long long at;       // of the first token, in elements
    real w, u;
};
// Finite also where exp overflows (time_decay > 88.7), as 0 times infinity were NaN; of such a past nothing is left.
LOOM_INLINE real decay_of(const Arguments& a, index_t channel) {
    return -loom_min(loom_exp(a.time_decay[channel]), real(1e30));
}
LOOM_INLINE bool find(const Arguments& a, int chunks, Walk& here) {
    const index_t i = blockIdx.x * blockDim.x + threadIdx.x;
    here.chunk = i / a.lanes, here.lane = i - here.chunk * a.lanes;
    if (here.chunk >= (index_t)chunks) return false;
    const index_t b = here.lane / a.channels, c = here.lane - b * a.channels;
    here.begin = (int)here.chunk * a.length;
    here.count = a.steps - here.begin < a.length ? a.steps - here.begin : a.length;
    here.at = here.begin * (long long)a.t_stride + b * a.b_stride + c;
    here.w = decay_of(a, c), here.u = a.time_first[c];
    return true;
}
LOOM_INLINE real* slot(const Arguments& a, real* of, long long row, index_t lane) {
    return of + row * 3 * a.lanes + lane;
}
LOOM_INLINE State read_state(const Arguments& a, const real* at) {
    const State s = {at[0], at[a.lanes], at[2 * (long long)a.lanes]};
    return s;
}
LOOM_INLINE void write_state(const Arguments& a, real* at, const State& s) {
    at[0] = s.p, at[a.lanes] = s.q, at[2 * (long long)a.lanes] = s.o;
}

// STEPS tokens as they lie in memory; `count` of them exist, none if it is negative. All loads are under way at once.
struct Batch { io e[STEPS]; };
LOOM_INLINE void fetch(Batch& to, const io* from, index_t stride, int count) {
#pragma unroll
    for (int j = 0; j < STEPS; ++j)
        if (j < count) to.e[j] = from[(index_t)j * stride];
}

// Forward, first: what the tokens of every chunk but the last add to a state behind it. From the last token to the
// first, so that `wkv_replay` begins with what was read last and is still in the cache.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) wkv_summaries(const Arguments a) {
    Walk here;
    if (!find(a, a.chunks - 1, here)) return;
    const long long batch = STEPS * a.t_stride;
    long long at = here.at + (here.count - STEPS) * (long long)a.t_stride;
    Batch k, v, next_k, next_v;
    fetch(k, a.k + at, a.t_stride, STEPS), fetch(v, a.v + at, a.t_stride, STEPS);
    State s = {0, 0, real(NOTHING)};
    real age = 0;  // tokens between this one and the chunk's end
    for (int left = here.count; left > 0; left -= STEPS) {
        at -= batch;
        fetch(next_k, a.k + at, a.t_stride, left - STEPS), fetch(next_v, a.v + at, a.t_stride, left - STEPS);
#pragma unroll
        for (int j = STEPS - 1; j >= 0; --j, age += 1)
            advance(s, weigh(s.o, __fmaf_rn(age, here.w, loom_load(k.e[j]))), loom_load(v.e[j]));
        k = next_k, v = next_v;
    }
    write_state(a, slot(a, a.borders, here.chunk + 1, here.lane), s);
}

// Forward, second: from these and the state that comes in, the state in front of every chunk. A thread per lane.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) wkv_scan(const Arguments a) {
    const index_t lane = blockIdx.x * blockDim.x + threadIdx.x;
    if (lane >= a.lanes) return;
    const real decay = decay_of(a, lane % a.channels) * (real)a.length;
    State s = {0, 0, real(NOTHING)};
    if (a.p) s.p = a.p[lane], s.q = a.q[lane], s.o = a.o[lane];
    write_state(a, slot(a, a.borders, 0, lane), s);
    for (int chunk = 1; chunk < a.chunks; chunk += STEPS) {
        State added[STEPS];
#pragma unroll
        for (int j = 0; j < STEPS; ++j)
            if (chunk + j < a.chunks) added[j] = read_state(a, slot(a, a.borders, chunk + j, lane));
#pragma unroll
        for (int j = 0; j < STEPS; ++j) {
            if (chunk + j >= a.chunks) break;
            const Weights by = weigh(s.o + decay, added[j].o);
            s.p = __fmaf_rn(by.past, s.p, by.present * added[j].p);
            s.q = __fmaf_rn(by.past, s.q, by.present * added[j].q);
            s.o = by.o;
            write_state(a, slot(a, a.borders, chunk + j, lane), s);
        }
    }
}

// Forward, third: every chunk from its true state.
template <bool WHOLE>
LOOM_INLINE void replay(
    const Arguments& a, const Walk& here, State& s, const Batch& k, const Batch& v, long long at, int left
) {
#pragma unroll
    for (int j = 0; j < STEPS; ++j) {
        if (!WHOLE && j >= left) break;
        const real key = loom_load(k.e[j]), value = loom_load(v.e[j]);
        loom_store((a.y + at)[(index_t)j * a.t_stride], mean(s, key, value, here.u).y);
        advance(s, weigh(s.o + here.w, key), value);
    }
}
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) wkv_replay(const Arguments a) {
    Walk here;
    if (!find(a, a.chunks, here)) return;
    const long long batch = STEPS * a.t_stride;
    long long at = here.at;
    Batch k, v, next_k, next_v;
    fetch(k, a.k + at, a.t_stride, here.count), fetch(v, a.v + at, a.t_stride, here.count);
    State s = read_state(a, slot(a, a.borders, here.chunk, here.lane));
    for (int left = here.count; left > 0; left -= STEPS, at += batch) {
        fetch(next_k, a.k + at + batch, a.t_stride, left - STEPS);
        fetch(next_v, a.v + at + batch, a.t_stride, left - STEPS);
        if (left >= STEPS) replay<true>(a, here, s, k, v, at, left);
        else replay<false>(a, here, s, k, v, at, left);
        k = next_k, v = next_v;
    }
    if (here.chunk + 1 == (index_t)a.chunks)
        a.end_p[here.lane] = s.p, a.end_q[here.lane] = s.q, a.end_o[here.lane] = s.o;
}

// Backward, first: the gradients gp and gq of p and q in front of a chunk are affine in those behind it,
// fade * gp + add_p and fade * gq + add_q. Forward in time; keeps the state in front of every batch for the third pass.
struct Slope { real fade, add_p, add_q; };
template <bool WHOLE>
LOOM_INLINE void gather(
    const Walk& here, State& s, Slope& to, const Batch& k, const Batch& v, const Batch& grad, int left
) {
#pragma unroll
    for (int j = 0; j < STEPS; ++j) {
        if (!WHOLE && j >= left) break;
        const real key = loom_load(k.e[j]), value = loom_load(v.e[j]);
        const Mean m = mean(s, key, value, here.u);
        const real add = to.fade * m.past * loom_load(grad.e[j]);
        to.add_p += add;
        to.add_q = __fmaf_rn(-add, m.y, to.add_q);
        const Weights by = weigh(s.o + here.w, key);
        to.fade *= by.past;
        advance(s, by, value);
    }
}
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) wkv_adjoints(const Arguments a) {
    Walk here;
    if (!find(a, a.chunks, here)) return;
    const long long batch = STEPS * a.t_stride;
    long long at = here.at;
    Batch k, v, grad, next_k, next_v, next_grad;
    fetch(k, a.k + at, a.t_stride, here.count), fetch(v, a.v + at, a.t_stride, here.count);
    fetch(grad, a.grad + at, a.t_stride, here.count);
    State s = read_state(a, slot(a, a.borders, here.chunk, here.lane));
    Slope found = {1, 0, 0};
    real* kept = slot(a, a.kept, here.begin / STEPS, here.lane);
    for (int left = here.count; left > 0; left -= STEPS, kept += 3 * (long long)a.lanes) {
        at += batch;
        fetch(next_k, a.k + at, a.t_stride, left - STEPS), fetch(next_v, a.v + at, a.t_stride, left - STEPS);
        fetch(next_grad, a.grad + at, a.t_stride, left - STEPS);
        write_state(a, kept, s);
        if (left >= STEPS) gather<true>(here, s, found, k, v, grad, left);
        else gather<false>(here, s, found, k, v, grad, left);
        k = next_k, v = next_v, grad = next_grad;
    }
    const State as_written = {found.fade, found.add_p, found.add_q};
    write_state(a, slot(a, a.slopes, here.chunk, here.lane), as_written);
}

// Backward, second: gp and gq behind every chunk, in the places of add_p and add_q. A thread per lane.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) wkv_scan_back(const Arguments a) {
    const index_t lane = blockIdx.x * blockDim.x + threadIdx.x;
    if (lane >= a.lanes) return;
    real gp = a.grad_end_p ? a.grad_end_p[lane] : real(0), gq = a.grad_end_q ? a.grad_end_q[lane] : real(0);
    for (int chunk = a.chunks - 1; chunk >= 0; chunk -= STEPS) {
        State slope[STEPS];
#pragma unroll
        for (int j = 0; j < STEPS; ++j)
            if (chunk >= j) slope[j] = read_state(a, slot(a, a.slopes, chunk - j, lane));
#pragma unroll
        for (int j = 0; j < STEPS; ++j) {
            if (chunk < j) break;
            real* at = slot(a, a.slopes, chunk - j, lane);
            at[a.lanes] = gp, at[2 * (long long)a.lanes] = gq;
            gp = __fmaf_rn(slope[j].p, gp, slope[j].q);
            gq = __fmaf_rn(slope[j].p, gq, slope[j].o);
        }
    }
    if (a.grad_p) a.grad_p[lane] = gp;
    if (a.grad_q) a.grad_q[lane] = gq;
}

// Backward, third: every chunk from its true adjoint, batch by batch from the last to the first. A batch's states come
// from the one kept in front of it.
struct Adjoint { real gp, gq, decay, first; };  // decay and first: sums of the gradients of w and u
LOOM_INLINE void retrace(
    const Arguments& a, const Walk& here, Adjoint& to, const State& before,
    long long at, index_t t, real k, real v, real g
) {
    const Mean m = mean(before, k, v, here.u);
    const Weights by = weigh(before.o + here.w, k);
    const real through = g * m.present, of_first = through * (v - m.y), past = g * m.past;
    loom_store((a.grad_k + at)[t], __fmaf_rn(by.present, __fmaf_rn(to.gp, v, to.gq), of_first));
    loom_store((a.grad_v + at)[t], __fmaf_rn(by.present, to.gp, through));
    to.first += of_first;
    to.decay = __fmaf_rn(by.past, __fmaf_rn(to.gp, before.p, to.gq * before.q), to.decay);
    to.gp = __fmaf_rn(by.past, to.gp, past);
    to.gq = __fmaf_rn(by.past, to.gq, -past * m.y);
}
LOOM_INLINE void retrace_batch(const Arguments& a, const Walk& here, Adjoint& to, State s, long long at) {
    Batch k, v, grad;
    fetch(k, a.k + at, a.t_stride, STEPS), fetch(v, a.v + at, a.t_stride, STEPS);
    fetch(grad, a.grad + at, a.t_stride, STEPS);
    State before[STEPS];
#pragma unroll
    for (int j = 0; j < STEPS; ++j) {
        before[j] = s;
        advance(s, weigh(s.o + here.w, loom_load(k.e[j])), loom_load(v.e[j]));
    }
#pragma unroll
    for (int j = STEPS - 1; j >= 0; --j) {
        const index_t t = (index_t)j * a.t_stride;
        retrace(a, here, to, before[j], at, t, loom_load(k.e[j]), loom_load(v.e[j]), loom_load(grad.e[j]));
    }
}
// The batch that T cuts short, once per lane: with few registers, the states found anew for every token.
LOOM_INLINE void retrace_rest(
    const Arguments& a, const Walk& here, Adjoint& to, const State& first, long long at, int count
) {
#pragma unroll 1
    for (int j = count - 1; j >= 0; --j) {
        State s = first;
        index_t t = 0;
#pragma unroll 1
        for (int i = 0; i < j; ++i, t += a.t_stride)
            advance(s, weigh(s.o + here.w, loom_load((a.k + at)[t])), loom_load((a.v + at)[t]));
        retrace(a, here, to, s, at, t, loom_load((a.k + at)[t]), loom_load((a.v + at)[t]), loom_load((a.grad + at)[t]));
    }
}
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) wkv_gradients(const Arguments a) {
    Walk here;
    if (!find(a, a.chunks, here)) return;
    const real* behind = slot(a, a.slopes, here.chunk, here.lane);
    Adjoint to = {behind[a.lanes], behind[2 * (long long)a.lanes], 0, 0};
    int first = here.count / STEPS * STEPS;
    long long at = here.at + first * (long long)a.t_stride;
    real* kept = slot(a, a.kept, (here.begin + first) / STEPS, here.lane);
    if (first < here.count) retrace_rest(a, here, to, read_state(a, kept), at, here.count - first);
    for (; first > 0; first -= STEPS) {
        at -= STEPS * (long long)a.t_stride, kept -= 3 * (long long)a.lanes;
        retrace_batch(a, here, to, read_state(a, kept), at);
    }
    real* sum = a.sums + (long long)here.chunk * a.lanes + here.lane;
    sum[0] = to.decay * here.w;  // w = -exp(time_decay) is its own derivative
    sum[(long long)a.chunks * a.lanes] = to.first;
}
