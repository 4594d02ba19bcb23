// DCLS kernels along one axis: [O, K, I] from weights and positions [O, I, COUNT], and the derivatives. See reference.py
// for the formulas. In front of this text: `real`, `index_t`, the prelude, `io` (of the kernel and of its gradient),
// VERSION (0: v0, 1: v1, 2: max, 3: gauss), COUNT (c).
//
// Neighbouring threads have neighbouring input channels, so that accesses of the kernel are coalesced. A profile is
// computed anew wherever it is needed: that costs less than memory for it.
struct Arguments {
    const real *weight, *position, *width;              // [O, I, COUNT]; width: null in v0 and v1
    io* kernel;                                         // [O, K, I]
    const io* grad;                                     // of the kernel
    real *grad_weight, *grad_position, *grad_width;     // [O, I, COUNT]; null: not wanted
    long long pairs;                                    // O I
    int inputs, taps;                                   // I, K
};
struct Element { real p, s; };

LOOM_INLINE Element element(const Arguments& a, long long at) {
    Element e;
    e.p = a.position[at] + (real)(a.taps / 2);
    e.s = (real)1;
#if VERSION == 2
    e.s = loom_abs(a.width[at]) + (real)1;
#elif VERSION == 3
    e.s = loom_abs(a.width[at]) + (real)0.27;
#endif
    return e;
}
// Y of tap k; in v0, whose profile is not normalised, X.
LOOM_INLINE real profile(const Element& e, int k) {
#if VERSION == 0
    const real below = loom_floor(e.p), r = e.p - below;
    return (real)k == below ? (real)1 - r : (real)k == below + (real)1 ? r : (real)0;
#elif VERSION == 3
    const real z = ((real)k - e.p) / e.s;
    return loom_exp((real)-0.5 * (z * z));
#else
    const real y = e.s - loom_abs((real)k - e.p);
    return y > (real)0 ? y : (real)0;
#endif
}
LOOM_INLINE long long first_tap(const Arguments& a, long long pair) {
    const long long o = pair / a.inputs;
    return o * a.taps * a.inputs + (pair - o * a.inputs);
}

// What the profile is divided by.
LOOM_INLINE real whole(const Element& e, int taps) {
#if VERSION == 0
    return (real)1;
#else
    real sum = (real)0;
#pragma unroll 4
    for (int k = 0; k < taps; ++k) sum += profile(e, k);
    return sum + (real)1e-7;
#endif
}

// One thread per pair (o, i).
extern "C" __global__ void dcls_construct(const Arguments a) {
    const long long pair = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= a.pairs) return;
    Element e[COUNT];
    real weight[COUNT], sum[COUNT];
#pragma unroll
    for (int c = 0; c < COUNT; ++c) {
        e[c] = element(a, pair * COUNT + c);
        weight[c] = a.weight[pair * COUNT + c];
        sum[c] = whole(e[c], a.taps);
    }
    io* to = a.kernel + first_tap(a, pair);
#pragma unroll 2
    for (int k = 0; k < a.taps; ++k, to += a.inputs) {
        real total = (real)0;
#pragma unroll
        for (int c = 0; c < COUNT; ++c) total += profile(e[c], k) / sum[c] * weight[c];
        loom_store(*to, total);
    }
}

// One thread per element (o, i, c).
extern "C" __global__ void dcls_gradients(const Arguments a) {
    const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= a.pairs * COUNT) return;
    const io* grad = a.grad + first_tap(a, at / COUNT);
    const Element e = element(a, at);
    const real weight = a.weight[at];
#if VERSION == 0
    const real below = loom_floor(e.p), r = e.p - below;
    // compared as numbers: a position far outside fits no integer
    const bool has_at = below >= (real)0 && below < (real)a.taps;
    const bool has_behind = below >= (real)-1 && below < (real)(a.taps - 1);
    const real g_at = has_at ? loom_load(grad[(long long)below * a.inputs]) : (real)0;
    const real g_behind = has_behind ? loom_load(grad[((long long)below + 1) * a.inputs]) : (real)0;
    if (a.grad_weight) a.grad_weight[at] = ((real)1 - r) * g_at + r * g_behind;
    if (a.grad_position) a.grad_position[at] = weight * (g_behind - g_at);
#else
    real y_sum = (real)0, gy = (real)0, p_sum = (real)0, gp = (real)0, s_sum = (real)0, gs = (real)0;
#pragma unroll 4
    for (int k = 0; k < a.taps; ++k, grad += a.inputs) {
        const real g = loom_load(*grad), y = profile(e, k), away = (real)k - e.p;
#if VERSION == 3
        const real by_p = y * away, by_s = by_p * away;  // times 1 / s^2 and 1 / s^3
#else
        const real by_s = y > (real)0 ? (real)1 : (real)0;
        const real by_p = away > (real)0 ? by_s : away < (real)0 ? -by_s : (real)0;
#endif
        y_sum += y, gy += g * y;
        p_sum += by_p, gp += g * by_p;
        s_sum += by_s, gs += g * by_s;
    }
    const real sum = y_sum + (real)1e-7, of_weight = gy / sum, scale = weight / sum;
    real of_p = scale * (gp - of_weight * p_sum), of_s = scale * (gs - of_weight * s_sum);
#if VERSION == 3
    of_p = of_p / (e.s * e.s), of_s = of_s / (e.s * e.s * e.s);
#endif
    if (a.grad_weight) a.grad_weight[at] = of_weight;
    if (a.grad_position) a.grad_position[at] = of_p;
    if (a.grad_width) {
        const real width = a.width[at];
        a.grad_width[at] = width > (real)0 ? of_s : width < (real)0 ? -of_s : (real)0;
    }
#endif
}
