// Selective scan on a CPU: states are the lanes of vectors, a task is a few channels of one sample. In front of this
// text: `real`, the prelude, `io`, N (states per channel). Tokens count in the order in which a channel reads them.
struct Arguments {
    const io *u, *delta, *z, *grad;                 // [b, d, L]; z null: no gate
    const real *A, *B, *C, *D, *bias, *start;       // [d, N]; rows of N; [d]; [d]; [b, d, N]; null where absent
    const real* grad_last;                          // [b, d, N]; null: 0
    io *y, *grad_u, *grad_delta, *grad_z;           // [b, d, L]
    real *last, *grad_start, *grad_A;               // [b, d, N]
    real *grad_B, *grad_C;                          // parts [blocks, ...], each laid out as B and C
    real *grad_D, *grad_bias;                       // [b, d]
    int64_t b, d, L, groups, blocks, block;         // blocks: tasks per sample and group; block: channels of one
    int64_t B_moves, C_moves;                       // 1: [b, groups, L, N]; 0: [d, N]
    int64_t softplus, reversed, threads;
};
enum { TILE = N <= 256 ? 64 : N <= 4096 ? 16384 / N : 4, WIDE = N >= 8 ? 8 : 1 };  // tiles of N lie on the stack

LOOM_INLINE real fused(real a, real b, real c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return sizeof(real) == 4 ? (real)__builtin_fmaf((float)a, (float)b, (float)c) : (real)__builtin_fma(a, b, c);
#else
    return a * b + c;
#endif
}
LOOM_INLINE double log_1p(double x) { return std::log1p(x); }
LOOM_INLINE float log_1p(float x) {  // of 0 <= x <= 1: twice the area tangent of x / (2 + x)
    const float s = x / (2.0f + x), q = s * s;
    float p = 0.0666666667f;
    p = p * q + 0.0769230769f;
    p = p * q + 0.0909090909f;
    p = p * q + 0.1111111111f;
    p = p * q + 0.1428571429f;
    p = p * q + 0.2f;
    p = p * q + 0.3333333333f;
    return 2.0f * (s + s * (p * q));
}
LOOM_INLINE real softplus(real r) {
    const real soft = (r > 0 ? r : real(0)) + log_1p(loom_exp(-loom_abs(r)));
    return r > 20 || r != r ? r : soft;
}
LOOM_INLINE real sum(const real* q) {
    real part[WIDE], total = 0;
    for (int s = 0; s < WIDE; ++s) part[s] = q[s];
    for (int s = WIDE; s + WIDE <= N; s += WIDE)
        for (int k = 0; k < WIDE; ++k) part[k] += q[s + k];
    if (WIDE == 8) {
        for (int k = 0; k < 4; ++k) part[k] += part[k + 4];
        for (int k = 0; k < 2; ++k) part[k] += part[k + 2];
        total = part[0] + part[1];
    } else {
        total = part[0];
    }
    for (int s = N / WIDE * WIDE; s < N; ++s) total += q[s];
    return total;
}

// One channel of one sample.
struct Channel {
    const Arguments& a;
    int64_t sample, channel, group, part, row;  // part: which block of channels adds to grad_B and grad_C
    bool back;
    real A[N], D, bias;

    Channel(const Arguments& a, int64_t sample, int64_t group, int64_t part, int64_t channel)
        : a(a), sample(sample), channel(channel), group(group), part(part), row((sample * a.d + channel) * a.L),
          back(channel >= a.d - a.reversed), D(a.D ? a.D[channel] : 0), bias(a.bias ? a.bias[channel] : 0) {
        for (int s = 0; s < N; ++s) A[s] = a.A[channel * N + s];
    }
    int64_t place(int64_t t) const { return back ? a.L - 1 - t : t; }
    int64_t of(bool moves, int64_t t) const {
        return moves ? ((sample * a.groups + group) * a.L + place(t)) * N : channel * N;
    }
    int64_t part_of(bool moves, int64_t t) const {  // grad_B of a fixed B: [b, d, N]
        if (!moves) return (sample * a.d + channel) * N;
        return part * a.b * a.groups * a.L * N + of(true, t);
    }
    // dt, dt u and their logarithmic decay rates' exponentials for `count` tokens from t on.
    void steps(int64_t t, int count, real* dt, real* x, real* decay) const {
        real r[TILE], u[TILE];
        for (int j = 0; j < count; ++j) r[j] = loom_load(a.delta[row + place(t + j)]) + bias;
        for (int j = 0; j < count; ++j) u[j] = loom_load(a.u[row + place(t + j)]);
        if (a.softplus)
            for (int j = 0; j < count; ++j) dt[j] = softplus(r[j]);
        else
            for (int j = 0; j < count; ++j) dt[j] = r[j];
        for (int j = 0; j < count; ++j) x[j] = dt[j] * u[j];
        for (int j = 0; j < count; ++j)
            for (int s = 0; s < N; ++s) decay[j * N + s] = loom_exp(dt[j] * A[s]);
    }
    void begin(real* h) const {
        for (int s = 0; s < N; ++s) h[s] = a.start ? a.start[(sample * a.d + channel) * N + s] : real(0);
    }
};
LOOM_INLINE real gate(real z) { return z * loom_sigmoid(z); }

static void forward(const Channel& c) {
    const Arguments& a = c.a;
    real dt[TILE], x[TILE], decay[TILE * N], q[TILE * N], h[N];
    c.begin(h);
    for (int64_t t = 0; t < a.L; t += TILE) {
        const int count = (int)(a.L - t < TILE ? a.L - t : TILE);
        c.steps(t, count, dt, x, decay);
        for (int j = 0; j < count; ++j) {
            const real *B = a.B + c.of(a.B_moves, t + j), *C = a.C + c.of(a.C_moves, t + j);
            for (int s = 0; s < N; ++s) h[s] = fused(decay[j * N + s], h[s], x[j] * B[s]);
            for (int s = 0; s < N; ++s) q[j * N + s] = C[s] * h[s];
        }
        for (int j = 0; j < count; ++j) {
            const int64_t at = c.row + c.place(t + j);
            const real y = sum(q + j * N) + (a.D ? c.D * loom_load(a.u[at]) : real(0));
            loom_store(a.y[at], a.z ? y * gate(loom_load(a.z[at])) : y);
        }
    }
    for (int s = 0; s < N; ++s) a.last[(c.sample * a.d + c.channel) * N + s] = h[s];
}

// What backward keeps of a channel: decays [L, N], states [L + 1, N] from the one in front of the first token on.
struct Kept { std::vector<real> decay, h, dt, x; };

static void retrace(const Channel& c, Kept& kept) {
    const Arguments& a = c.a;
    c.begin(kept.h.data());
    for (int64_t t = 0; t < a.L; t += TILE) {
        const int count = (int)(a.L - t < TILE ? a.L - t : TILE);
        real* decay = kept.decay.data() + t * N;
        c.steps(t, count, kept.dt.data() + t, kept.x.data() + t, decay);
        real h[N];
        for (int s = 0; s < N; ++s) h[s] = kept.h[t * N + s];
        for (int j = 0; j < count; ++j) {
            const real* B = a.B + c.of(a.B_moves, t + j);
            real* to = kept.h.data() + (t + j + 1) * N;
            for (int s = 0; s < N; ++s) h[s] = fused(decay[j * N + s], h[s], kept.x[t + j] * B[s]);
            for (int s = 0; s < N; ++s) to[s] = h[s];
        }
    }
}
// g = dLoss / d(y before the gate) of `count` tokens, and the gradient of z.
static void ungate(const Channel& c, const Kept& kept, int64_t t, int count, real* g) {
    const Arguments& a = c.a;
    for (int j = 0; j < count; ++j) g[j] = a.grad ? loom_load(a.grad[c.row + c.place(t + j)]) : real(0);
    if (!a.z) return;
    for (int j = 0; j < count; ++j) {
        const int64_t at = c.row + c.place(t + j);
        const real z = loom_load(a.z[at]), soft = loom_sigmoid(z);
        if (a.grad_z) {
            const real *C = a.C + c.of(a.C_moves, t + j), *h = kept.h.data() + (t + j + 1) * N;
            real q[N];
            for (int s = 0; s < N; ++s) q[s] = C[s] * h[s];
            const real y = sum(q) + (a.D ? c.D * loom_load(a.u[at]) : real(0));
            loom_store(a.grad_z[at], g[j] * y * soft * (1 + z * (1 - soft)));
        }
        g[j] *= z * soft;
    }
}
static void backward(const Channel& c, Kept& kept) {
    const Arguments& a = c.a;
    retrace(c, kept);
    const int64_t states = (c.sample * a.d + c.channel) * N;
    real G[N], of_A[N] = {}, of_D = 0, of_bias = 0, g[TILE], through[TILE * N], slope[TILE * N], unused[2][N] = {};
    for (int s = 0; s < N; ++s) G[s] = a.grad_last ? a.grad_last[states + s] : real(0);
    for (int64_t t = (a.L - 1) / TILE * TILE; t >= 0; t -= TILE) {
        const int count = (int)(a.L - t < TILE ? a.L - t : TILE);
        const real *decay = kept.decay.data() + t * N, *h = kept.h.data() + t * N;
        const real *dt = kept.dt.data() + t, *x = kept.x.data() + t;
        ungate(c, kept, t, count, g);
        for (int j = count - 1; j >= 0; --j) {
            const real *B = a.B + c.of(a.B_moves, t + j), *C = a.C + c.of(a.C_moves, t + j);
            real* of_B = a.grad_B ? a.grad_B + c.part_of(a.B_moves, t + j) : unused[0];
            real* of_C = a.grad_C ? a.grad_C + c.part_of(a.C_moves, t + j) : unused[1];
            real w[N];
            for (int s = 0; s < N; ++s) of_C[s] = fused(g[j], h[(j + 1) * N + s], of_C[s]);
            for (int s = 0; s < N; ++s) G[s] = fused(g[j], C[s], G[s]);
            for (int s = 0; s < N; ++s) of_B[s] = fused(G[s], x[j], of_B[s]);
            for (int s = 0; s < N; ++s) through[j * N + s] = G[s] * B[s];
            for (int s = 0; s < N; ++s) G[s] *= decay[j * N + s];
            for (int s = 0; s < N; ++s) w[s] = G[s] * h[j * N + s];
            for (int s = 0; s < N; ++s) slope[j * N + s] = w[s] * c.A[s];
            for (int s = 0; s < N; ++s) of_A[s] = fused(w[s], dt[j], of_A[s]);
        }
        for (int j = count - 1; j >= 0; --j) {
            const int64_t at = c.row + c.place(t + j);
            const real u = loom_load(a.u[at]), b = sum(through + j * N);
            real r = fused(u, b, sum(slope + j * N));
            if (a.softplus) {
                const real before = loom_load(a.delta[at]) + c.bias;
                r *= before > 20 ? real(1) : loom_sigmoid(before);
            }
            if (a.grad_u) loom_store(a.grad_u[at], fused(dt[j], b, c.D * g[j]));
            if (a.grad_delta) loom_store(a.grad_delta[at], r);
            of_bias += r, of_D = fused(g[j], u, of_D);
        }
    }
    for (int s = 0; s < N && a.grad_A; ++s) a.grad_A[states + s] = of_A[s];
    for (int s = 0; s < N && a.grad_start; ++s) a.grad_start[states + s] = G[s];
    if (a.grad_D) a.grad_D[c.sample * a.d + c.channel] = of_D;
    if (a.grad_bias) a.grad_bias[c.sample * a.d + c.channel] = of_bias;
}
template <class Run> static void every_channel(const Arguments& a, Run run) {
#pragma omp parallel num_threads(a.threads)
    {
        Kept kept;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < a.b * a.groups * a.blocks; ++task) {
            const int64_t part = task % a.blocks, group = task / a.blocks % a.groups;
            const int64_t sample = task / a.blocks / a.groups;
            const int64_t size = a.d / a.groups, first = part * a.block;
            for (int64_t k = first; k < size && k < first + a.block; ++k)
                run(Channel(a, sample, group, part, group * size + k), kept);
        }
    }
}
extern "C" void scan_forward(const Arguments* a) {
    every_channel(*a, [](const Channel& c, Kept&) { forward(c); });
}
extern "C" void scan_backward(const Arguments* a) {
    every_channel(*a, [&](const Channel& c, Kept& kept) {
        kept.decay.resize(a->L * N), kept.h.resize((a->L + 1) * N), kept.dt.resize(a->L), kept.x.resize(a->L);
        backward(c, kept);
    });
}
