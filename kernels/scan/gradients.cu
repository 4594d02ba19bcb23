// Backward of the selective scan; comes after scan.cu. An adjoint G is that of the state behind the tokens seen so far.
LOOM_INLINE real ungated(real grad, real z) { return GATED ? grad * z * loom_quick_sigmoid(z) : grad; }

// What the tokens of every chunk but the first add to the adjoint in front of it, and the sum of its steps.
extern "C" __global__ void __launch_bounds__(128, RESIDENT) scan_adjoints(const Arguments a) {
    __shared__ real steps[CHANNELS * ROW], slopes[CHANNELS * ROW];
    __align__(32) __shared__ real of_C[TILE * COLUMN];
    const Work w = find(a, 1);
    const States A = rates(a, w), fixed_C = read(a, w, a.fixed_C, w.first);
    States G = States();
    const int row = 8 * w.warp, last = w.begin + (w.end - w.begin - 1) / TILE * TILE;
    real total = 0;
    Rows delta, grad, z;
    Column C;
    fetch(a, w, delta, a.delta, last);
    if (a.grad) fetch(a, w, grad, a.grad, last);
    if (GATED) fetch(a, w, z, a.z, last);
    if (C_MOVES) fetch(a, w, C, a.C, a.C_sample, a.C_group, last);
#pragma unroll 1
    for (int t = last; t >= w.begin; t -= TILE) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const bool there = row + i < w.count && t + w.lane < w.end;
            const real bias = a.bias && there ? a.bias[w.first + row + i] : real(0);
            steps[(row + i) * ROW + w.lane] = there ? step_of(loom_load(delta.e[i]) + bias) : real(0);
            const real arrived = a.grad ? loom_load(grad.e[i]) : real(0);
            slopes[(row + i) * ROW + w.lane] = ungated(arrived, GATED ? loom_load(z.e[i]) : real(0));
        }
        if (C_MOVES) spread(w, of_C, C);
        __syncthreads();
        fetch(a, w, delta, a.delta, t - TILE);
        if (a.grad) fetch(a, w, grad, a.grad, t - TILE);
        if (GATED) fetch(a, w, z, a.z, t - TILE);
        if (C_MOVES) fetch(a, w, C, a.C, a.C_sample, a.C_group, t - TILE);
#pragma unroll 8
        for (int j = TILE - 1; j >= 0; --j) {
            const real dt = steps[w.own * ROW + j], g = slopes[w.own * ROW + j];
            const States c = C_MOVES ? at(of_C + j * COLUMN + w.q * S) : fixed_C;
            total += dt;
#pragma unroll
            for (int k = 0; k < S; ++k) G.e[k] = power(dt * A.e[k]) * loom_fma(g, c.e[k], G.e[k]);
        }
        __syncthreads();
    }
    write_padded(a, w, a.borders, w.chunk, G);
    if (w.valid && w.q == 0) a.totals[(long long)w.chunk * a.batch * a.channels + w.sequence + w.own] = total;
}
// From these, the adjoint behind every chunk. A thread per state.
extern "C" __global__ void __launch_bounds__(128) scan_join_back(const Arguments a) {
    Lane l;
    if (!find_lane(a, l)) return;
    const long long rows = (long long)a.batch * a.channels;
    real G = edge(a, l, a.grad_last);
    for (int chunk = a.chunks - 1; chunk >= 0; --chunk) {
        real* border = a.borders + (chunk * rows + l.row) * N + l.state;
        const real added = chunk ? *border : real(0), total = chunk ? a.totals[chunk * rows + l.row] : real(0);
        *border = G;
        G = loom_fma(power(l.A * total), G, added);
    }
}

// What a thread adds up over its chunk: gradients of A and of a B and a C that do not move; of its rows' D and bias.
struct Sums { States A, B, C; real D[8], bias[8]; };
// What the threads of a block share.
struct Shared { real *steps, *inputs, *slopes, *of_B, *of_C, *parts; States* starts; };

// One batch, from its last token to its first. Leaves sums over states in the places of steps, inputs and slopes.
LOOM_INLINE void retrace(
    const Arguments& a, const Work& w, const Shared& m, const States& A, const States& fixed_B, const States& fixed_C,
    States& G, Sums& sums, int batch
) {
    const int j0 = batch * BATCH, own = w.own * ROW + j0;
    States h[BATCH + 1], decay[BATCH];
    h[0] = m.starts[batch * THREADS + threadIdx.x];
#pragma unroll
    for (int j = 0; j < BATCH; ++j) {
        const States b = B_MOVES ? at(m.of_B + (j0 + j) * COLUMN + w.q * S) : fixed_B;
        const real dt = m.steps[own + j], x = m.inputs[own + j];
#pragma unroll
        for (int k = 0; k < S; ++k) {
            decay[j].e[k] = power(dt * A.e[k]);
            h[j + 1].e[k] = loom_fma(decay[j].e[k], h[j].e[k], x * b.e[k]);
        }
    }
    real through[BATCH], rate[BATCH], y[BATCH];
#pragma unroll
    for (int j = BATCH - 1; j >= 0; --j) {
        const States b = B_MOVES ? at(m.of_B + (j0 + j) * COLUMN + w.q * S) : fixed_B;
        const States c = C_MOVES ? at(m.of_C + (j0 + j) * COLUMN + w.q * S) : fixed_C;
        const real dt = m.steps[own + j], x = m.inputs[own + j], g = m.slopes[own + j];
        real v[2 * S];
        through[j] = rate[j] = y[j] = 0;
#pragma unroll
        for (int k = 0; k < S; ++k) {
            G.e[k] = loom_fma(g, c.e[k], G.e[k]);
            v[k] = G.e[k] * x, v[S + k] = g * h[j + 1].e[k];
            through[j] = loom_fma(G.e[k], b.e[k], through[j]);
            if (GATED) y[j] = loom_fma(c.e[k], h[j + 1].e[k], y[j]);
            G.e[k] *= decay[j].e[k];
            const real of_rate = G.e[k] * h[j].e[k];
            rate[j] = loom_fma(of_rate, A.e[k], rate[j]);
            sums.A.e[k] = loom_fma(of_rate, dt, sums.A.e[k]);
            if (!B_MOVES) sums.B.e[k] += v[k];
            if (!C_MOVES) sums.C.e[k] += v[S + k];
        }
        if ((B_MOVES && a.grad_B) || (C_MOVES && a.grad_C)) {
            const int number = w.lane >> 2, first = fold<2 * S, 8, 4>(v, number);
            const int column = first < S ? w.q * S + first : N + w.q * S + first - S;
            if (number % (4 / S) == 0) m.parts[(w.warp * TILE + j0 + j) * PARTS + column] = v[0];
        }
    }
    int first = fold<BATCH, 4, 1>(through, w.q);
    fold<BATCH, 4, 1>(rate, w.q);
    if (GATED) fold<BATCH, 4, 1>(y, w.q);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < BATCH / 4; ++i) {
        m.inputs[own + first + i] = through[i];
        m.steps[own + first + i] = rate[i] * real(0.6931471805599453);  // the rates are those of powers of 2
        if (GATED) m.slopes[own + first + i] = y[i];
    }
}
// The gradients of a tile that are not of B and C; `m` holds the sums over states.
LOOM_INLINE void finish(const Arguments& a, const Work& w, const Shared& m, Sums& sums, int t) {
    Rows u, delta, z, grad;
    fetch(a, w, u, a.u, t), fetch(a, w, delta, a.delta, t);
    if (GATED) fetch(a, w, z, a.z, t);
    if (a.grad) fetch(a, w, grad, a.grad, t);
    const int row = 8 * w.warp;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (row + i >= w.count || t + w.lane >= w.end) continue;
        const int channel = w.first + row + i, from = (row + i) * ROW + w.lane;
        const long long to = (w.sequence + row + i) * a.length + place(a, w, t + w.lane);
        const real D = a.D ? a.D[channel] : real(0), r = loom_load(delta.e[i]) + (a.bias ? a.bias[channel] : real(0));
        const real input = loom_load(u.e[i]), through = m.inputs[from];
        const real arrived = a.grad ? loom_load(grad.e[i]) : real(0);
        const real gate = GATED ? loom_load(z.e[i]) : real(0), g = ungated(arrived, gate);
        const real of_r = loom_fma(input, through, m.steps[from]) * slope_of(r);
        if (a.grad_u) loom_store(a.grad_u[to], loom_fma(D, g, step_of(r) * through));
        if (a.grad_delta) loom_store(a.grad_delta[to], of_r);
        if (GATED && a.grad_z) {
            const real soft = loom_quick_sigmoid(gate), y = loom_fma(D, input, m.slopes[from]);
            loom_store(a.grad_z[to], arrived * y * soft * loom_fma(gate, real(1) - soft, real(1)));
        }
        sums.D[i] = loom_fma(g, input, sums.D[i]), sums.bias[i] += of_r;
    }
}
// Sums over the channels of the block of the gradients of B and C.
LOOM_INLINE void add_up(const Arguments& a, const Work& w, const Shared& m, int t) {
    if (t + w.lane >= w.end) return;
    const int ways = a.segments / a.groups, part = w.segment % ways * a.blocks + w.block;
    const long long group = ((long long)part * a.batch + w.sample) * a.groups + w.segment / ways;
#pragma unroll
    for (int k = 0; k < 2 * S; ++k) {
        const int column = w.warp + 4 * k, state = column % N;
        real* to = column < N ? a.grad_B : a.grad_C;
        if (!(column < N ? B_MOVES : C_MOVES) || !to || state >= a.states) continue;
        real sum = 0;
#pragma unroll
        for (int warp = 0; warp < 4; ++warp) sum += m.parts[(warp * TILE + w.lane) * PARTS + column];
        to[(group * a.states + state) * a.length + place(a, w, t + w.lane)] = sum;
    }
}
LOOM_INLINE void close(const Arguments& a, const Work& w, Sums& sums, const States& G) {
    const long long sequence = ((long long)w.chunk * a.batch) * a.channels + w.sequence;
    write(a, w, a.grad_A, sequence, sums.A);
    if (!B_MOVES) write(a, w, a.grad_B, sequence, sums.B);
    if (!C_MOVES) write(a, w, a.grad_C, sequence, sums.C);
    if (w.chunk == 0) write(a, w, a.grad_start, w.sequence, G);
    const int row = 8 * w.warp + fold<8, 32, 1>(sums.D, w.lane);
    fold<8, 32, 1>(sums.bias, w.lane);
    if (w.lane % 4 || row >= w.count) return;
    if (a.grad_D) a.grad_D[sequence + row] = sums.D[0];
    if (a.grad_bias) a.grad_bias[sequence + row] = sums.bias[0];
}
extern "C" __global__ void __launch_bounds__(128, 2) scan_gradients(const Arguments a) {
    __shared__ real steps[CHANNELS * ROW], inputs[CHANNELS * ROW], slopes[CHANNELS * ROW];
    __align__(32) __shared__ real of_B[TILE * COLUMN], of_C[TILE * COLUMN];
    __shared__ real parts[4 * TILE * PARTS];
    __align__(32) __shared__ real first_states[TILE / BATCH * THREADS * S];
    const Shared m = {steps, inputs, slopes, of_B, of_C, parts, reinterpret_cast<States*>(first_states)};
    const Work w = find(a, 0);
    const States A = rates(a, w), fixed_B = read(a, w, a.fixed_B, w.first), fixed_C = read(a, w, a.fixed_C, w.first);
    States G = a.chunks > 1 ? read_padded(a, w, a.borders, w.chunk) : read(a, w, a.grad_last, w.sequence);
    Sums sums = {};
    const int row = 8 * w.warp, last = w.begin + (w.end - w.begin - 1) / TILE * TILE;
    Rows u, delta, z, grad;
    Column B, C;
    States kept = read_padded(a, w, a.kept, last / TILE);
    fetch(a, w, u, a.u, last), fetch(a, w, delta, a.delta, last);
    if (GATED) fetch(a, w, z, a.z, last);
    if (a.grad) fetch(a, w, grad, a.grad, last);
    if (B_MOVES) fetch(a, w, B, a.B, a.B_sample, a.B_group, last);
    if (C_MOVES) fetch(a, w, C, a.C, a.C_sample, a.C_group, last);
#pragma unroll 1
    for (int t = last; t >= w.begin; t -= TILE) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int to = (row + i) * ROW + w.lane;
            const bool there = row + i < w.count && t + w.lane < w.end;
            const real bias = a.bias && there ? a.bias[w.first + row + i] : real(0);
            const real arrived = a.grad && there ? loom_load(grad.e[i]) : real(0);
            const real dt = there ? step_of(loom_load(delta.e[i]) + bias) : real(0);  // past the end: the identity
            steps[to] = dt, inputs[to] = there ? dt * loom_load(u.e[i]) : real(0);
            slopes[to] = there ? ungated(arrived, GATED ? loom_load(z.e[i]) : real(0)) : real(0);
        }
        if (B_MOVES) spread(w, of_B, B);
        if (C_MOVES) spread(w, of_C, C);
        __syncthreads();
        States h = kept;
        const int before = t - TILE;
        if (before >= w.begin) kept = read_padded(a, w, a.kept, before / TILE);
        fetch(a, w, u, a.u, before), fetch(a, w, delta, a.delta, before);
        if (GATED) fetch(a, w, z, a.z, before);
        if (a.grad) fetch(a, w, grad, a.grad, before);
        if (B_MOVES) fetch(a, w, B, a.B, a.B_sample, a.B_group, before);
        if (C_MOVES) fetch(a, w, C, a.C, a.C_sample, a.C_group, before);
        const int count = batches(w, t);
        m.starts[threadIdx.x] = h;
#pragma unroll 1
        for (int batch = 1; batch < count; ++batch) {
#pragma unroll
            for (int j = (batch - 1) * BATCH, i = 0; i < BATCH; ++i, ++j) {
                const States b = B_MOVES ? at(of_B + j * COLUMN + w.q * S) : fixed_B;
                advance(h, A, b, steps[w.own * ROW + j], inputs[w.own * ROW + j]);
            }
            m.starts[batch * THREADS + threadIdx.x] = h;
        }
#pragma unroll 1
        for (int batch = count - 1; batch >= 0; --batch)
            retrace(a, w, m, A, fixed_B, fixed_C, G, sums, batch);
        __syncthreads();
        finish(a, w, m, sums, t);
        add_up(a, w, m, t);
    }
    close(a, w, sums, G);
}
