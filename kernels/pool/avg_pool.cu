// Average pooling of channels-last maps [M, H, W, C]. A thread makes VECTOR channels of a tile of the result; with
// TILES what it reads once serves every pixel of the tile. Sums begin with zero and go row by row, as torch's do. In
// front: `real` (float), `io`, `index_t` (counts lanes and threads), the prelude, VECTOR, blocks.cuh (Lane), KERNEL,
// STRIDE, PADDING, COUNT_PADDING, TILES.
struct Arguments {
    const io* from; io* to;  // backward: grad_y, grad_x
    int height, width, out_height, out_width, lanes;  // lanes: C / VECTOR
    long long count;  // threads
};

// Where a thread works: the tile (i, j) of a map. There are tall x wide tiles.
struct Spot { index_t map, lane; int i, j; };
LOOM_INLINE Spot spot_of(index_t thread, int tall, int wide, int lanes) {
    const index_t tile = thread / (index_t)lanes, line = tile / (index_t)wide, map = line / (index_t)tall;
    const int i = (int)(line - map * (index_t)tall), j = (int)(tile - line * (index_t)wide);
    Spot at = {map, thread - tile * (index_t)lanes, i, j};
    return at;
}

// How many rows or columns of window o count, of a map with `side` of them.
LOOM_INLINE int counted(int o, int side) {
    const int from = o * STRIDE - PADDING, to = from + KERNEL;
    return COUNT_PADDING ? KERNEL : (to < side ? to : side) - (from > 0 ? from : 0);
}
// Division by how many pixels window (oh, ow) counts. 1 / n is correctly rounded for n <= 256, as `Divisor` needs: a
// quotient off by 2 units in the last place, and one step of Newton's; a division proper would branch.
LOOM_INLINE Divisor divisor(const Arguments& a, int oh, int ow) {
    const real n = (real)(counted(oh, a.height) * counted(ow, a.width));
    const float quick = __fdividef(1.0f, (float)n);
    Divisor by = {n, __fmaf_rn(quick, __fmaf_rn(-(float)n, quick, 1.0f), quick)};
    return by;
}

// Lane `at` of the maps, zeros where there is none. Chosen by words: by elements of 16 bits it takes 80 registers more.
LOOM_INLINE Lane lane_if(bool exists, const io* from, index_t at) {
    typedef Word<sizeof(Lane)>::type word;
    union U { word w; Lane lane; __device__ U() : w() {} } u;
    if (exists) u.w = __ldg((const word*)from + at);
    return u.lane;
}
LOOM_INLINE void put(io* to, index_t at, const real (&sum)[VECTOR]) {
    Lane lane;
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) loom_store(lane.e[e], sum[e]);
    loom_write<io, VECTOR>((io*)((Lane*)to + at), lane);
}

// Forward: tiles of 2 x 2 where windows follow pixel by pixel, else single windows.
constexpr int OUT = TILES && STRIDE == 1 ? 2 : 1, REACH = (OUT - 1) * STRIDE + KERNEL, ROWS = KERNEL <= 4 ? REACH : 1;
extern "C" __global__ void average(const Arguments a) {
    const index_t thread = (index_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= (index_t)a.count) return;
    const Spot t = spot_of(thread, (a.out_height + OUT - 1) / OUT, (a.out_width + OUT - 1) / OUT, a.lanes);
    const int oh = t.i * OUT, ow = t.j * OUT;
    const index_t rows = t.map * (index_t)a.height;
    real sum[OUT][OUT][VECTOR] = {};
#pragma unroll ROWS
    for (int r = 0; r < REACH; ++r) {
        const int h = oh * STRIDE - PADDING + r;
        const bool row = h >= 0 && h < a.height;
        const index_t line = (rows + (index_t)h) * (index_t)a.width;
#pragma unroll
        for (int c = 0; c < REACH; ++c) {
            const int w = ow * STRIDE - PADDING + c;
            const bool exists = row && w >= 0 && w < a.width;
            const Lane got = lane_if(exists, a.from, (line + (index_t)w) * (index_t)a.lanes + t.lane);
#pragma unroll
            for (int pq = 0; pq < OUT * OUT; ++pq) {
                const int p = pq / OUT, q = pq % OUT;
                if (r < p * STRIDE || r >= p * STRIDE + KERNEL || c < q * STRIDE || c >= q * STRIDE + KERNEL) continue;
#pragma unroll
                for (int e = 0; e < VECTOR; ++e) sum[p][q][e] += loom_load(got.e[e]);
            }
        }
    }
#pragma unroll
    for (int pq = 0; pq < OUT * OUT; ++pq) {
        const int p = pq / OUT, q = pq % OUT, h = oh + p, w = ow + q;
        if (h >= a.out_height || w >= a.out_width) continue;
        const Divisor by = divisor(a, h, w);
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) sum[p][q][e] = loom_div(sum[p][q][e], by);
        const index_t line = (t.map * (index_t)a.out_height + (index_t)h) * (index_t)a.out_width;
        put(a.to, (line + (index_t)w) * (index_t)a.lanes + t.lane, sum[p][q]);
    }
}

// Backward: the gradient of a pixel is the sum over the windows that contain it of their gradients, each divided by
// what its window was divided by.
#if TILES
// Tiles of 2 x 2 pixels. STRIDE divides 2, so pixel 2i + p lies in window 2i / STRIDE + d for the same d everywhere:
// where d * STRIDE - PADDING <= p < d * STRIDE - PADDING + KERNEL.
constexpr int FIRST = (PADDING - KERNEL + 1) / STRIDE, LAST = (1 + PADDING) / STRIDE;  // FIRST: at most 0, rounded up
LOOM_INLINE constexpr bool holds(int d, int p) {
    return d * STRIDE - PADDING <= p && p < d * STRIDE - PADDING + KERNEL;
}
extern "C" __global__ void spread(const Arguments a) {
    const index_t thread = (index_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= (index_t)a.count) return;
    const Spot t = spot_of(thread, (a.height + 1) / 2, (a.width + 1) / 2, a.lanes);
    const index_t rows = t.map * (index_t)a.out_height;
    real sum[2][2][VECTOR] = {};
#pragma unroll
    for (int d = FIRST; d <= LAST; ++d) {
        const int oh = t.i * (2 / STRIDE) + d;
        const bool row = oh >= 0 && oh < a.out_height;
        const index_t line = (rows + (index_t)oh) * (index_t)a.out_width;
#pragma unroll
        for (int f = FIRST; f <= LAST; ++f) {
            const int ow = t.j * (2 / STRIDE) + f;
            const bool exists = row && ow >= 0 && ow < a.out_width;
            const Lane grad = lane_if(exists, a.from, (line + (index_t)ow) * (index_t)a.lanes + t.lane);
            const Divisor by = divisor(a, exists ? oh : 0, exists ? ow : 0);  // window 0 is never empty
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) {
                const real part = loom_div(loom_load(grad.e[e]), by);
#pragma unroll
                for (int pq = 0; pq < 4; ++pq)
                    if (holds(d, pq / 2) && holds(f, pq % 2)) sum[pq / 2][pq % 2][e] += part;
            }
        }
    }
#pragma unroll
    for (int pq = 0; pq < 4; ++pq) {
        const int h = 2 * t.i + pq / 2, w = 2 * t.j + pq % 2;
        if (h >= a.height || w >= a.width) continue;
        const index_t line = (t.map * (index_t)a.height + (index_t)h) * (index_t)a.width;
        put(a.to, (line + (index_t)w) * (index_t)a.lanes + t.lane, sum[pq / 2][pq % 2]);
    }
}
#else
// The first and the last of `many` windows along a side that contain pixel p.
LOOM_INLINE int first_of(int p) { return p + PADDING < KERNEL ? 0 : (p + PADDING - KERNEL) / STRIDE + 1; }
LOOM_INLINE int last_of(int p, int many) { return (p + PADDING) / STRIDE < many ? (p + PADDING) / STRIDE : many - 1; }

extern "C" __global__ void spread(const Arguments a) {
    const index_t thread = (index_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= (index_t)a.count) return;
    const Spot t = spot_of(thread, a.height, a.width, a.lanes);
    const int left = first_of(t.j), right = last_of(t.j, a.out_width), bottom = last_of(t.i, a.out_height);
    const index_t rows = t.map * (index_t)a.out_height;
    real sum[VECTOR] = {};
    for (int oh = first_of(t.i); oh <= bottom; ++oh)
        for (int ow = left; ow <= right; ++ow) {
            const index_t at = (rows + (index_t)oh) * (index_t)a.out_width + (index_t)ow;
            const Lane grad = lane_if(true, a.from, at * (index_t)a.lanes + t.lane);
            const Divisor by = divisor(a, oh, ow);
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) sum[e] += loom_div(loom_load(grad.e[e]), by);
        }
    put(a.to, thread, sum);
}
#endif
