// Adjoints between chunks, the first part of the selective scan's backward; comes after scan.cu. An adjoint G is that
// of the state behind the tokens seen so far.
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
