// Max pooling of channels-last maps [M, H, W, C] that remembers one byte per output: which element of its window (row by
// row) was the first maximum. A thread handles VECTOR channels of one pixel; backward, with BLOCKS, of 2 x 2 pixels. In
// front of this text: `real`, `io`, `index_t` (counts lanes and threads), the prelude, VECTOR, blocks.cuh, KERNEL,
// STRIDE, PADDING, BLOCKS.
struct Arguments {
    const io* x; unsigned char* code; io* y;  // backward: grad_y, code, grad_x
    int height, width, out_height, out_width, lanes;  // lanes: C / VECTOR
    long long count;  // threads
};

extern "C" __global__ void pool(const Arguments a) {
    const index_t i = (index_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (index_t)a.count) return;
    const int lane = (int)(i % (index_t)a.lanes);
    const index_t pixel = i / a.lanes;
    const int ow = (int)(pixel % (index_t)a.out_width);
    const index_t row = pixel / a.out_width;
    const int oh = (int)(row % (index_t)a.out_height);
    const Lane* map = (const Lane*)a.x + (long long)(row / a.out_height) * a.height * a.width * a.lanes + lane;
    Lane best;
    Codes code;
    real most[VECTOR];
    bool first = true;
#pragma unroll
    for (int r = 0; r < KERNEL; ++r) {
        const int h = oh * STRIDE - PADDING + r;
        if (h < 0 || h >= a.height) continue;
#pragma unroll
        for (int c = 0; c < KERNEL; ++c) {
            const int w = ow * STRIDE - PADDING + c;
            if (w < 0 || w >= a.width) continue;
            const Lane got = map[((long long)h * a.width + w) * a.lanes];
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) {
                const real v = loom_load(got.e[e]);
                if (first || v > most[e] || v != v) {
                    most[e] = v, best.e[e] = got.e[e];
                    code.e[e] = (unsigned char)(r * KERNEL + c);
                }
            }
            first = false;
        }
    }
    ((Lane*)a.y)[i] = best;
    ((Codes*)a.code)[i] = code;
}

// The gradient of an input is the sum over the windows whose first maximum it was.
#if BLOCKS
extern "C" __global__ void unpool(const Arguments a) {
    const index_t i = (index_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (index_t)a.count) return;
    const index_t window = i / (index_t)a.lanes;
    const Block block = read_block(a, a.x, a.code, window, (int)(i - window * (index_t)a.lanes));
    Lane out[2][2];
#pragma unroll
    for (int e = 0; e < VECTOR; ++e)
#pragma unroll
        for (int p = 0; p < 2; ++p)
#pragma unroll
            for (int q = 0; q < 2; ++q) loom_store(out[p][q].e[e], gathered(block, p, q, e));
    write_block(block, a.y, out);
}
#else
extern "C" __global__ void unpool(const Arguments a) {
    const index_t i = (index_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (index_t)a.count) return;
    const int lane = (int)(i % (index_t)a.lanes);
    const index_t pixel = i / a.lanes;
    const int w = (int)(pixel % (index_t)a.width);
    const index_t row = pixel / a.width;
    const int h = (int)(row % (index_t)a.height);
    const long long map = (long long)(row / a.height) * a.out_height * a.out_width * a.lanes + lane;
    real sum[VECTOR];
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) sum[e] = 0;
#pragma unroll
    for (int r = 0; r < KERNEL; ++r) {
        const int top = h + PADDING - r;
        if (top < 0 || top % STRIDE || top / STRIDE >= a.out_height) continue;
#pragma unroll
        for (int c = 0; c < KERNEL; ++c) {
            const int left = w + PADDING - c;
            if (left < 0 || left % STRIDE || left / STRIDE >= a.out_width) continue;
            const long long at = map + ((long long)(top / STRIDE) * a.out_width + left / STRIDE) * a.lanes;
            const Codes code = ((const Codes*)a.code)[at];
            const Lane grad = ((const Lane*)a.x)[at];
#pragma unroll
            for (int e = 0; e < VECTOR; ++e)
                if (code.e[e] == r * KERNEL + c) sum[e] += loom_load(grad.e[e]);
        }
    }
    Lane out;
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) loom_store(out.e[e], sum[e]);
    ((Lane*)a.y)[i] = out;
}
#endif
