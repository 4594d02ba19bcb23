// Residual sum, layer normalisation and token shift of [T, B, C]. A block walks over `length` tokens of one text, a
// thread has four neighbouring channels. In front of this text: `real` (float), `index_t`, the prelude, `io` (what goes
// out), `added_t`, MIXES (0 to 3; 0: the normalised x itself), THREADS (a multiple of 32, at least C / 4), RESIDENT
// (blocks of the gradient's kernel that a multiprocessor holds).
enum { MADE = MIXES ? MIXES : 1 };
struct Arguments {
    const real* x;               // [T, B, C]
    const added_t* added;        // likewise; null: none
    const unsigned char* kept;   // likewise, 0 or 1; null: all kept
    real* sum;                   // (x + added) kept scale
    io* made[MADE];              // what goes out, [T, B, C]
    real* stats;                 // [T, B, 2]: mean and 1 / deviation
    const real *weight, *bias;   // [C]
    const real* mix[MADE];       // [C]
    const real* grad_sum;        // gradients that arrive; null: 0
    const io* grad[MADE];
    real* grad_x;
    added_t* grad_added;         // null: not wanted
    real* parts;                 // [blocks, 2 + MIXES, C]: of weight, bias and mixes
    int T, B, C, length;
    real eps, scale;
};
enum { V = 4 };
struct Four { real e[V]; };

LOOM_INLINE Four zeros() {
    const Four f = {{0, 0, 0, 0}};
    return f;
}
template <class E> LOOM_INLINE Four read(const E* from) {
    const Pack<E, V> p = loom_read<E, V>(from);
    Four f;
#pragma unroll
    for (int v = 0; v < V; ++v) f.e[v] = loom_load(p.e[v]);
    return f;
}
// Parameters, anew for every token: from the cache, to have the registers for loads that come from far.
LOOM_INLINE Four reread(const real* from) {
    union { uint4 word; Four f; } u;
    u.word = *reinterpret_cast<const uint4*>(from);
    return u.f;
}
template <class E> LOOM_INLINE void write(E* to, const Four& f) {
    Pack<E, V> p;
#pragma unroll
    for (int v = 0; v < V; ++v) loom_store(p.e[v], f.e[v]);
    loom_write<E, V>(to, p);
}

// Sums of two numbers over the block, in a fixed order. Two places take turns, so that one barrier is enough.
struct Pair { real a, b; };
LOOM_INLINE Pair total(real a, real b, int& turn) {
    __shared__ Pair parts[2][THREADS / 32];
#pragma unroll
    for (int other = 16; other; other /= 2) {
        a += __uint_as_float(__shfl_xor_sync(0xffffffffu, __float_as_uint(a), other));
        b += __uint_as_float(__shfl_xor_sync(0xffffffffu, __float_as_uint(b), other));
    }
    Pair* const place = parts[turn];
    turn ^= 1;
    if (threadIdx.x % 32 == 0) place[threadIdx.x / 32].a = a, place[threadIdx.x / 32].b = b;
    __syncthreads();
    Pair sum = place[0];
#pragma unroll
    for (int w = 1; w < THREADS / 32; ++w) sum.a += place[w].a, sum.b += place[w].b;
    return sum;
}

struct Walk { int b, begin, end, channel; bool active; };
LOOM_INLINE Walk find(const Arguments& a) {
    Walk w;
    const int run = (int)blockIdx.x / a.B;
    w.b = (int)blockIdx.x - run * a.B, w.begin = run * a.length;
    w.end = a.T - w.begin < a.length ? a.T : w.begin + a.length;
    w.channel = (int)threadIdx.x * V, w.active = w.channel < a.C;
    return w;
}
LOOM_INLINE long long row_of(const Arguments& a, const Walk& w, int t) { return (long long)t * a.B + w.b; }

// What is kept of a token, times the scale.
LOOM_INLINE Four factors(const Arguments& a, long long at) {
    Four f;
    if (!a.kept) {
#pragma unroll
        for (int v = 0; v < V; ++v) f.e[v] = real(1);
        return f;
    }
    const Pack<unsigned char, V> k = loom_read<unsigned char, V>(a.kept + at);
#pragma unroll
    for (int v = 0; v < V; ++v) f.e[v] = k.e[v] ? a.scale : real(0);
    return f;
}
LOOM_INLINE Four summed(const Arguments& a, const Walk& w, int t) {
    if (!w.active) return zeros();
    const long long at = row_of(a, w, t) * a.C + w.channel;
    Four x = read(a.x + at);
    if (a.added) {
        const Four s = read(a.added + at);
#pragma unroll
        for (int v = 0; v < V; ++v) x.e[v] += s.e[v];
    }
    const Four f = factors(a, at);
#pragma unroll
    for (int v = 0; v < V; ++v) x.e[v] *= f.e[v];
    return x;
}

extern "C" __global__ void __launch_bounds__(THREADS) shift_norm(const Arguments a) {
    const Walk w = find(a);
    const Four weight = w.active ? read(a.weight + w.channel) : zeros();
    const Four bias = w.active ? read(a.bias + w.channel) : zeros();
    Four mix[MADE];
#pragma unroll
    for (int j = 0; j < MIXES; ++j) mix[j] = w.active ? read(a.mix[j] + w.channel) : zeros();
    int turn = 0;
    Four before = zeros();
    const int first = MIXES && w.begin ? w.begin - 1 : w.begin;  // the token before the first is normalised again
    Four next = summed(a, w, first);
    for (int t = first; t < w.end; ++t) {
        const Four x = next;
        if (t + 1 < w.end) next = summed(a, w, t + 1);  // under way while the block waits
        const real mean = total((x.e[0] + x.e[1]) + (x.e[2] + x.e[3]), 0, turn).a / (real)a.C;
        real square = 0;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const real d = x.e[v] - mean;
            if (w.active) square += d * d;
        }
        const real one = real(1) / loom_sqrt(total(square, 0, turn).a / (real)a.C + a.eps);
        Four y;
#pragma unroll
        for (int v = 0; v < V; ++v) y.e[v] = (x.e[v] - mean) * one * weight.e[v] + bias.e[v];
        if (w.active && t >= w.begin) {
            const long long row = row_of(a, w, t), at = row * a.C + w.channel;
            write(a.sum + at, x);
            if (MIXES == 0) write(a.made[0] + at, y);
#pragma unroll
            for (int j = 0; j < MIXES; ++j) {
                Four made;
#pragma unroll
                for (int v = 0; v < V; ++v)
                    made.e[v] = y.e[v] * mix[j].e[v] + before.e[v] * (real(1) - mix[j].e[v]);
                write(a.made[j] + at, made);
            }
            if (threadIdx.x == 0) a.stats[2 * row] = mean, a.stats[2 * row + 1] = one;
        }
        before = y;
    }
}

// What a token's gradient is made of, as it lies in memory: the next token's is on its way meanwhile.
struct Token {
    Four sum, grad_sum;
    Pack<io, V> grad[MADE];
    Pack<unsigned char, V> kept;
    real mean, one;
};
LOOM_INLINE void fetch_grads(const Arguments& a, const Walk& w, int t, Pack<io, V>* grads) {
#pragma unroll
    for (int j = 0; j < MADE; ++j) {
        if (w.active && t < a.T && a.grad[j]) {
            grads[j] = loom_read<io, V>(a.grad[j] + row_of(a, w, t) * a.C + w.channel);
        } else {
#pragma unroll
            for (int v = 0; v < V; ++v) loom_store(grads[j].e[v], real(0));
        }
    }
}
LOOM_INLINE Token fetch(const Arguments& a, const Walk& w, int t) {
    Token token;
    const long long row = row_of(a, w, t), at = row * a.C + w.channel;
    fetch_grads(a, w, t, token.grad);
    token.sum = w.active ? read((const real*)a.sum + at) : zeros();
    token.grad_sum = w.active && a.grad_sum ? read(a.grad_sum + at) : zeros();
    if (w.active && a.kept) token.kept = loom_read<unsigned char, V>(a.kept + at);
    token.mean = a.stats[2 * row], token.one = a.stats[2 * row + 1];
    return token;
}

// From the last token to the first: a mixture's gradient reaches a token and the one before.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) shift_norm_gradient(const Arguments a) {
    const Walk w = find(a);
    Four of_mix[MADE], of_weight = zeros(), of_bias = zeros();
    Pack<io, V> after[MADE];
    fetch_grads(a, w, w.end, after);
#pragma unroll
    for (int j = 0; j < MADE; ++j) of_mix[j] = zeros();
    int turn = 0;
    Token next = fetch(a, w, w.end - 1);
    for (int t = w.end - 1; t >= w.begin; --t) {
        const Token now = next;
        if (t > w.begin) next = fetch(a, w, t - 1);
        const Four weight = w.active ? reread(a.weight + w.channel) : zeros();
        const Four bias = w.active ? reread(a.bias + w.channel) : zeros();
        Four normal, p, mix[MADE];
#pragma unroll
        for (int j = 0; j < MIXES; ++j) mix[j] = w.active ? reread(a.mix[j] + w.channel) : zeros();
        real first = 0, second = 0;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            normal.e[v] = w.active ? (now.sum.e[v] - now.mean) * now.one : real(0);
            const real y = normal.e[v] * weight.e[v] + bias.e[v];
            real g = MIXES ? real(0) : loom_load(now.grad[0].e[v]);
#pragma unroll
            for (int j = 0; j < MIXES; ++j) {
                const real here = loom_load(now.grad[j].e[v]), later = loom_load(after[j].e[v]);
                g += here * mix[j].e[v] + later * (real(1) - mix[j].e[v]);
                of_mix[j].e[v] += y * (here - later);
            }
            of_weight.e[v] += g * normal.e[v];
            of_bias.e[v] += g;
            p.e[v] = g * weight.e[v];
            first += p.e[v], second += p.e[v] * normal.e[v];
        }
        const Pair sums = total(first, second, turn);
        if (w.active) {
            const long long at = row_of(a, w, t) * a.C + w.channel;
            Four made;
#pragma unroll
            for (int v = 0; v < V; ++v) {
                const real inner = p.e[v] - (sums.a + normal.e[v] * sums.b) / (real)a.C;
                made.e[v] = now.one * inner + now.grad_sum.e[v];
                if (a.kept) made.e[v] = now.kept.e[v] ? made.e[v] * a.scale : real(0);
            }
            write(a.grad_x + at, made);
            if (a.grad_added) write(a.grad_added + at, made);
        }
#pragma unroll
        for (int j = 0; j < MADE; ++j) after[j] = now.grad[j];
    }
    if (!w.active) return;
    real* const parts = a.parts + (long long)blockIdx.x * (2 + MIXES) * a.C + w.channel;
    write(parts, of_weight);
    write(parts + a.C, of_bias);
#pragma unroll
    for (int j = 0; j < MIXES; ++j) write(parts + (2 + j) * (long long)a.C, of_mix[j]);
}
