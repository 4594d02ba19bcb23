// Gradients of the selective scan; comes after scan.cu and adjoints.cu. A channel has WAYS threads, HELD states each.
// Eight, not four as in forward, so that each has registers for what it keeps of a batch of tokens. A warp has the
// channels ROWS warp ... in the recurrence, and in everything else these rows, of which a thread takes one token.
enum { WAYS = S > 1 ? 8 : 4, HELD = N / WAYS, ROWS = CHANNELS / WAYS, MANY = CHANNELS * WAYS, PIECE = ROWS / 2 };
enum { SPAN = WAYS > 4 ? TILE / 2 : TILE };           // tokens whose gradients of B and C are added up at once
enum { PACE = TILE + 4, TWICE = 2 * TILE + 4 };       // in shared memory, of what is read four numbers at a time
typedef Pack<real, HELD> Held;
typedef Pack<real, 2> Two;
typedef Pack<real, 4> Four;

// The thread's part of a tile: a token of the warp's rows. Instead of what does not exist, a neighbour.
struct Tokens { io e[ROWS]; };
struct Lines { long long first; int row, rows; };  // where the first row begins; its number; rows that exist
LOOM_INLINE Lines lines(const Arguments& a, const Work& w) {
    Lines l;
    l.row = ROWS * w.warp, l.rows = w.count - l.row < ROWS ? w.count - l.row : ROWS;
    const int row = l.row < w.count ? l.row : w.count - 1;
    l.first = (w.sequence + row) * a.length;
    return l;
}
LOOM_INLINE long long spot(const Arguments& a, const Work& w, const Lines& l, int t) {
    const int token = t + w.lane < w.end ? t + w.lane : w.end - 1;
    return l.first + place(a, w, token);
}
template <int R>
LOOM_INLINE void fetch(const Arguments& a, const Lines& l, io* to, const io* from, long long spot, int i0) {
    const io* at = from + spot;
#pragma unroll
    for (int i = 0; i < R; ++i) to[i] = at[i0 + i < l.rows ? (long long)(i0 + i) * a.length : 0];
}
LOOM_INLINE void fetch(const Arguments& a, const Lines& l, Tokens& to, const io* from, long long spot) {
    fetch<ROWS>(a, l, to.e, from, spot, 0);
}
LOOM_INLINE void store(const Arguments& a, const Lines& l, io* to, const real* from, long long spot, int i0) {
#pragma unroll
    for (int i = 0; i < PIECE; ++i)
        if (i0 + i < l.rows) loom_store(to[spot + (long long)(i0 + i) * a.length], from[i]);
}
struct Stripe { mat e[HELD]; };  // of B or C: states warp, warp + WAYS, ...
LOOM_INLINE void fetch(const Arguments& a, const Work& w, Stripe& to, const mat* from, int t) {
    const mat* at = from + place(a, w, t + w.lane < w.end ? t + w.lane : w.end - 1);
#pragma unroll
    for (int k = 0; k < HELD; ++k)
        to.e[k] = w.warp + WAYS * k < a.states ? at[(long long)(w.warp + WAYS * k) * a.length] : mat();
}
LOOM_INLINE void spread(const Work& w, real* to, const Stripe& from) {
#pragma unroll
    for (int k = 0; k < HELD; ++k) to[w.lane * COLUMN + w.warp + WAYS * k] = loom_load(from.e[k]);
}
LOOM_INLINE Held held(const real* shared) { return *reinterpret_cast<const Held*>(shared); }
LOOM_INLINE Held take_padded(const Arguments& a, const Work& w, const real* of, long long first, int row) {
    const long long sequence = (long long)row * a.batch * a.channels + first + w.own;
    return w.valid ? held(of + sequence * N + w.q * HELD) : Held();
}

// What a thread adds up over its chunk: gradients of A and of a B and a C that do not move; of its rows' D and bias.
struct Sums { Held A, B, C; real D[ROWS], bias[ROWS]; };
// What is the same for all threads of a block, and read too rarely to be held in registers.
struct Block { long long sequence, sums; const mat *B, *C; int first; };  // sums: where grad_B and grad_C are added up
// What the threads of a block share. pairs: steps and inputs side by side.
struct Shared { real *pairs, *slopes, *rates, *of_B, *of_C, *parts, *bias, *D; Held* starts; Block* block; };

// States in front of a batch become those behind it.
LOOM_INLINE void cross(const Work& w, const Shared& m, const Held& A, const Held& fixed_B, Held& h, int batch) {
    const int j0 = batch * BATCH;
    const real* pairs = m.pairs + w.own * TWICE + 2 * j0;
    const real* of_B = m.of_B + j0 * COLUMN + w.q * HELD;
#pragma unroll
    for (int j = 0; j < BATCH; ++j) {
        const Four two = *reinterpret_cast<const Four*>(pairs + 4 * (j / 2));
        const real dt = two.e[j % 2 * 2], x = two.e[j % 2 * 2 + 1];
        const Held b = B_MOVES ? held(of_B + j * COLUMN) : fixed_B;
#pragma unroll
        for (int k = 0; k < HELD; ++k) h.e[k] = loom_fma(power(dt * A.e[k]), h.e[k], x * b.e[k]);
    }
}
// One batch, from its last token to its first. Leaves sums over states in place of inputs and slopes, and in rates.
LOOM_INLINE void retrace(
    const Work& w, const Shared& m, const Held& A, const Held& fixed_B, const Held& fixed_C, Held& G, Sums& sums,
    int batch
) {
    const int j0 = batch * BATCH;
    real *pairs = m.pairs + w.own * TWICE + 2 * j0, *slopes = m.slopes + w.own * PACE + j0;
    const real *of_B = m.of_B + j0 * COLUMN + w.q * HELD, *of_C = m.of_C + j0 * COLUMN + w.q * HELD;
    Held h[BATCH + 1], decay[BATCH];
    real dt[BATCH], x[BATCH], g[BATCH];
    h[0] = m.starts[batch * MANY + threadIdx.x];
#pragma unroll
    for (int j = 0; j < BATCH; j += 2) {
        const Four two = *reinterpret_cast<const Four*>(pairs + 2 * j);
        dt[j] = two.e[0], x[j] = two.e[1], dt[j + 1] = two.e[2], x[j + 1] = two.e[3];
    }
#pragma unroll
    for (int j = 0; j < BATCH; j += 4) {
        const Four four = *reinterpret_cast<const Four*>(slopes + j);
        g[j] = four.e[0], g[j + 1] = four.e[1], g[j + 2] = four.e[2], g[j + 3] = four.e[3];
    }
#pragma unroll
    for (int j = 0; j < BATCH; ++j) {
        const Held b = B_MOVES ? held(of_B + j * COLUMN) : fixed_B;
#pragma unroll
        for (int k = 0; k < HELD; ++k) {
            decay[j].e[k] = power(dt[j] * A.e[k]);
            h[j + 1].e[k] = loom_fma(decay[j].e[k], h[j].e[k], x[j] * b.e[k]);
        }
    }
    real through[BATCH], rate[BATCH], y[BATCH];
#pragma unroll
    for (int j = BATCH - 1; j >= 0; --j) {
        const Held b = B_MOVES ? held(of_B + j * COLUMN) : fixed_B;
        const Held c = C_MOVES ? held(of_C + j * COLUMN) : fixed_C;
        real v[2 * HELD];
        through[j] = rate[j] = y[j] = 0;
#pragma unroll
        for (int k = 0; k < HELD; ++k) {
            G.e[k] = loom_fma(g[j], c.e[k], G.e[k]);
            v[k] = G.e[k] * x[j], v[HELD + k] = g[j] * h[j + 1].e[k];
            through[j] = k ? loom_fma(G.e[k], b.e[k], through[j]) : G.e[k] * b.e[k];
            if (GATED) y[j] = k ? loom_fma(c.e[k], h[j + 1].e[k], y[j]) : c.e[k] * h[j + 1].e[k];
            G.e[k] *= decay[j].e[k];
            const real of_rate = G.e[k] * h[j].e[k];
            rate[j] = k ? loom_fma(of_rate, A.e[k], rate[j]) : of_rate * A.e[k];
            sums.A.e[k] = loom_fma(of_rate, dt[j], sums.A.e[k]);
            if (!B_MOVES) sums.B.e[k] += v[k];
            if (!C_MOVES) sums.C.e[k] += v[HELD + k];
        }
        if (B_MOVES || C_MOVES) {
            const int number = w.lane / WAYS, first = fold<2 * HELD, 32 / WAYS, WAYS>(v, number);
            const int column = first < HELD ? w.q * HELD + first : N + w.q * HELD + first - HELD;
            if (number % (4 / S) == 0) m.parts[(w.warp * SPAN + j0 % SPAN + j) * PARTS + column] = v[0];
        }
    }
    const int first = fold<BATCH, WAYS, 1>(through, w.q);
    fold<BATCH, WAYS, 1>(rate, w.q);
    if (GATED) fold<BATCH, WAYS, 1>(y, w.q);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < BATCH / WAYS; ++i) {
        pairs[2 * (first + i) + 1] = through[i];
        m.rates[w.own * ROW + j0 + first + i] = rate[i] * real(0.6931471805599453);  // of powers of 2
        if (GATED) slopes[first + i] = y[i];
    }
}
// The gradients of a tile that are not of B and C; `m` holds the sums over states.
LOOM_INLINE void finish(const Arguments& a, const Work& w, const Lines& l, const Shared& m, Sums& sums, int t) {
    if (t + w.lane >= w.end) return;
    const long long at = spot(a, w, l, t);
#pragma unroll
    for (int i0 = 0; i0 < ROWS; i0 += PIECE) {
        io u[PIECE], delta[PIECE], z[PIECE], grad[PIECE] = {};
        fetch<PIECE>(a, l, u, a.u, at, i0), fetch<PIECE>(a, l, delta, a.delta, at, i0);
        if (GATED) fetch<PIECE>(a, l, z, a.z, at, i0);
        if (a.grad) fetch<PIECE>(a, l, grad, a.grad, at, i0);
        real of_u[PIECE], of_delta[PIECE], of_z[PIECE];
#pragma unroll
        for (int i = 0; i < PIECE; ++i) {
            const int row = l.row + i0 + i;
            const Two pair = *reinterpret_cast<const Two*>(m.pairs + row * TWICE + 2 * w.lane);
            const real dt = pair.e[0], through = pair.e[1], D = m.D[row], r = loom_load(delta[i]) + m.bias[row];
            const real input = loom_load(u[i]), arrived = loom_load(grad[i]);
            real g = arrived;
            if (GATED) {
                const real gate = loom_load(z[i]), soft = loom_quick_sigmoid(gate), silu = gate * soft;
                const real y = loom_fma(D, input, m.slopes[row * PACE + w.lane]);
                of_z[i] = arrived * y * loom_fma(silu, real(1) - soft, soft), g = arrived * silu;
            }
            of_delta[i] = loom_fma(input, through, m.rates[row * ROW + w.lane]) * slope_of(r);
            of_u[i] = loom_fma(D, g, dt * through);
            sums.D[i0 + i] = loom_fma(g, input, sums.D[i0 + i]), sums.bias[i0 + i] += of_delta[i];
        }
        if (a.grad_u) store(a, l, a.grad_u, of_u, at, i0);
        if (a.grad_delta) store(a, l, a.grad_delta, of_delta, at, i0);
        if (GATED && a.grad_z) store(a, l, a.grad_z, of_z, at, i0);
    }
}
LOOM_INLINE Block whole(const Arguments& a, const Work& w) {
    const int ways = a.segments / a.groups, group = w.segment / ways, part = w.segment % ways * a.blocks + w.block;
    Block b = {w.sequence, 0, 0, 0, w.first};
    b.sums = (((long long)part * a.batch + w.sample) * a.groups + group) * a.states * a.length;
    if (B_MOVES) b.B = a.B + w.sample * a.B_sample + group * a.B_group;
    if (C_MOVES) b.C = a.C + w.sample * a.C_sample + group * a.C_group;
    return b;
}
// Sums over the channels of the block of the gradients of B and C, of the SPAN tokens from t on.
LOOM_INLINE void add_up(const Arguments& a, const Work& w, const Shared& m, int t) {
    const int token = threadIdx.x % SPAN;
    if (t + token >= w.end) return;
    const long long at = m.block->sums + place(a, w, t + token);
#pragma unroll
    for (int k = 0; k < 2 * N * SPAN / MANY; ++k) {
        const int column = threadIdx.x / SPAN + MANY / SPAN * k;
        const bool of_B = column < N;
        const int state = of_B ? column : column - N;
        real* to = of_B ? a.grad_B : a.grad_C;
        if (!(of_B ? B_MOVES : C_MOVES) || !to || state >= a.states) continue;
        real sum = 0;
#pragma unroll
        for (int warp = 0; warp < WAYS; ++warp) sum += m.parts[(warp * SPAN + token) * PARTS + column];
        to[at + (long long)state * a.length] = sum;
    }
}
LOOM_INLINE void close(const Arguments& a, Work& w, const Shared& m, Sums& sums, const Held& G) {
    w.sequence = m.block->sequence, w.first = m.block->first, w.chunk = w.begin / a.chunk;
    const long long sequence = ((long long)w.chunk * a.batch) * a.channels + w.sequence;
    write(a, w, a.grad_A, sequence, sums.A);
    if (!B_MOVES) write(a, w, a.grad_B, sequence, sums.B);
    if (!C_MOVES) write(a, w, a.grad_C, sequence, sums.C);
    if (w.chunk == 0) write(a, w, a.grad_start, w.sequence, G);
    const int row = ROWS * w.warp + fold<ROWS, 32, 1>(sums.D, w.lane);
    fold<ROWS, 32, 1>(sums.bias, w.lane);
    if (w.lane % (32 / ROWS) || row >= w.count) return;
    if (a.grad_D) a.grad_D[sequence + row] = sums.D[0];
    if (a.grad_bias) a.grad_bias[sequence + row] = sums.bias[0];
}
extern "C" __global__ void __launch_bounds__(MANY, 2) scan_gradients(const Arguments a) {
    __align__(32) __shared__ real pairs[CHANNELS * TWICE], slopes[CHANNELS * PACE], by_rate[CHANNELS * ROW];
    __align__(32) __shared__ real of_B[TILE * COLUMN], of_C[TILE * COLUMN];
    __shared__ real parts[WAYS * SPAN * PARTS], bias[CHANNELS], D[CHANNELS];
    __align__(32) __shared__ real first_states[TILE / BATCH * MANY * HELD];
    __shared__ Block block;
    Held* starts = reinterpret_cast<Held*>(first_states);
    const Shared m = {pairs, slopes, by_rate, of_B, of_C, parts, bias, D, starts, &block};
    Work w = find(a, 0);
    w.q = threadIdx.x % WAYS, w.own = threadIdx.x / WAYS;
    w.valid = w.own < w.count;
    const Lines l = lines(a, w);
    if (threadIdx.x == 0) block = whole(a, w);
    if (threadIdx.x < CHANNELS) {
        const bool there = (int)threadIdx.x < w.count;
        bias[threadIdx.x] = a.bias && there ? a.bias[w.first + threadIdx.x] : real(0);
        D[threadIdx.x] = a.D && there ? a.D[w.first + threadIdx.x] : real(0);
    }
    const Held A = rates<HELD>(a, w);
    const Held fixed_B = read<HELD>(a, w, a.fixed_B, w.first), fixed_C = read<HELD>(a, w, a.fixed_C, w.first);
    Held G = a.chunks > 1 ? take_padded(a, w, a.borders, w.sequence, w.chunk)
                          : read<HELD>(a, w, a.grad_last, w.sequence);
    Sums sums = {};
    const int last = w.begin + (w.end - w.begin - 1) / TILE * TILE;
    __syncthreads();
    Tokens u, delta, z, grad = {};
    Stripe B, C;
    Held kept = take_padded(a, w, a.kept, w.sequence, last / TILE);
    const long long at = spot(a, w, l, last);
    fetch(a, l, u, a.u, at), fetch(a, l, delta, a.delta, at);
    if (GATED) fetch(a, l, z, a.z, at);
    if (a.grad) fetch(a, l, grad, a.grad, at);
    if (B_MOVES) fetch(a, w, B, block.B, last);
    if (C_MOVES) fetch(a, w, C, block.C, last);
#pragma unroll 1
    for (int t = last; t >= w.begin; t -= TILE) {
        const bool lane_there = t + w.lane < w.end;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const int row = l.row + i;
            const bool there = lane_there && i < l.rows;
            const real dt = step_of(loom_load(delta.e[i]) + bias[row]);
            const Two pair = {there ? dt : real(0), there ? dt * loom_load(u.e[i]) : real(0)};  // else the identity
            *reinterpret_cast<Two*>(pairs + row * TWICE + 2 * w.lane) = pair;
            const real g = ungated(loom_load(grad.e[i]), GATED ? loom_load(z.e[i]) : real(0));
            slopes[row * PACE + w.lane] = there ? g : real(0);
        }
        if (B_MOVES) spread(w, of_B, B);
        if (C_MOVES) spread(w, of_C, C);
        __syncthreads();
        Held h = kept;
        const int before = t - TILE < w.begin ? w.begin : t - TILE;  // the last fetches go unused
        kept = take_padded(a, w, a.kept, block.sequence, before / TILE);
        if (B_MOVES) fetch(a, w, B, block.B, before);
        if (C_MOVES) fetch(a, w, C, block.C, before);
        const int count = batches(w, t);
        m.starts[threadIdx.x] = h;
#pragma unroll 1
        for (int batch = 1; batch < count; ++batch) {
            cross(w, m, A, fixed_B, h, batch - 1);
            m.starts[batch * MANY + threadIdx.x] = h;
        }
#pragma unroll 1
        for (int batch = count - 1; batch >= 0; --batch) {
            retrace(w, m, A, fixed_B, fixed_C, G, sums, batch);
            if (SPAN < TILE && batch * BATCH == SPAN) {
                __syncthreads();
                add_up(a, w, m, t + SPAN);
                __syncthreads();
            }
        }
        __syncthreads();
        const long long next = spot(a, w, l, before);
        fetch(a, l, u, a.u, next), fetch(a, l, delta, a.delta, next);
        if (GATED) fetch(a, l, z, a.z, next);
        grad = Tokens();
        if (a.grad) fetch(a, l, grad, a.grad, next);
        finish(a, w, l, m, sums, t);
        add_up(a, w, m, t);
    }
    close(a, w, m, sums, G);
}
