// WKV as a loop over the tokens, one thread per sequence and channel. All tensors are float [B, T, C]; decay (the
// exponent added per token, < 0) and first are [C]; of_decay and of_first are [B, C], to be summed over B. TOKENS, the
// most tokens there may be, is defined in front: backward keeps three numbers per token in the thread's local memory.

struct Lane {
    float w, u;
    long at;
};

__device__ inline Lane lane_of(int lane, int T, int C, const float* decay, const float* first) {
    const int c = lane % C;
    return {decay[c], first[c], (long)(lane / C) * T * C + c};
}

extern "C" __global__ void wkv_forward(int lanes, int T, int C, const float* decay, const float* first, const float* k,
                                       const float* v, float* y) {
    const int lane = blockIdx.x * blockDim.x + threadIdx.x;
    if (lane >= lanes) return;
    const Lane l = lane_of(lane, T, C, decay, first);
    float p = 0, q = 0, o = -1e38f;
    for (int t = 0; t < T; ++t) {
        const long i = l.at + (long)t * C;
        const float key = k[i], value = v[i], bonus = l.u + key;
        float m = fmaxf(o, bonus);
        float past = expf(o - m), now = expf(bonus - m);
        y[i] = (past * p + now * value) / (past * q + now);
        m = fmaxf(l.w + o, key);
        past = expf(l.w + o - m);
        now = expf(key - m);
        p = past * p + now * value;
        q = past * q + now;
        o = m;
    }
}

extern "C" __global__ void wkv_backward(int lanes, int T, int C, const float* decay, const float* first, const float* k,
                                        const float* v, const float* grad, float* of_decay, float* of_first,
                                        float* of_k, float* of_v) {
    const int lane = blockIdx.x * blockDim.x + threadIdx.x;
    if (lane >= lanes) return;
    const Lane l = lane_of(lane, T, C, decay, first);
    float mean[TOKENS], inverse[TOKENS], share[TOKENS];

    // Ascending: the means, the inverse denominators and the present token's exponents; dp and dq are the derivatives
    // of p and q with respect to w.
    float p = 0, q = 0, dp = 0, dq = 0, o = -1e38f, sum_w = 0, sum_u = 0;
    for (int t = 0; t < T; ++t) {
        const long i = l.at + (long)t * C;
        const float key = k[i], value = v[i], bonus = l.u + key;
        float m = fmaxf(o, bonus);
        float past = expf(o - m), now = expf(bonus - m);
        inverse[t] = 1 / (past * q + now);
        mean[t] = (past * p + now * value) * inverse[t];
        share[t] = bonus - m;
        const float scaled = grad[i] * inverse[t];
        sum_w += scaled * past * (dp - dq * mean[t]);
        sum_u += scaled * now * (value - mean[t]);
        m = fmaxf(l.w + o, key);
        past = expf(l.w + o - m);
        now = expf(key - m);
        dp = past * (p + dp);
        dq = past * (q + dq);
        p = past * p + now * value;
        q = past * q + now;
        o = m;
    }
    of_decay[lane] = sum_w;
    of_first[lane] = sum_u;

    // Descending: gp and gq are the gradients of p and q behind a token, divided by exp(o).
    float gp = 0, gq = 0;
    o = -1e38f;
    for (int t = T - 1; t >= 0; --t) {
        const long i = l.at + (long)t * C;
        const float key = k[i], value = v[i], scaled = grad[i] * inverse[t];
        const float direct = scaled * expf(share[t]), later = expf(key + o);
        of_k[i] = direct * (value - mean[t]) + later * (gp * value + gq);
        of_v[i] = direct + later * gp;
        const float entering = share[t] - key - l.u;
        const float m = fmaxf(l.w + o, entering);
        const float past = expf(l.w + o - m), now = scaled * expf(entering - m);
        gp = past * gp + now;
        gq = past * gq - now * mean[t];
        o = m;
    }
}
