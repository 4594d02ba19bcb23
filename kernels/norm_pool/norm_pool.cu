// Max pooling of scale y + shift for channels-last maps y [M, H, W, C], and the way back. A thread handles VECTOR channels
// (its lane) of one pixel after another: lane i % lanes, pixels i / lanes, i / lanes + slots, ... so that it reads the
// values of its channels once. In front of this text: `real`, `io`, `index_t` (counts pixels and lanes), the prelude,
// VECTOR, pool/blocks.cuh, KERNEL, STRIDE, PADDING, BLOCKS (whether `_grad` handles 2 x 2 pixels for one).
//
// A place outside the map is read as the nearest one inside, which lies in the same window, because windows begin inside
// the padded map and padding is at most half of a window. Such a repetition never changes the largest value, nor which
// place holds it first: clamping keeps the order of places.
struct Arguments {
    const io *y, *grad;
    unsigned char* code;
    io* out;
    const float* channel[4];  // norm_pool: scale, shift; _eval: weight, bias, mean, variance; _grad: scale, a, b
    float* sums[2];           // of grad y and of grad, [slots, C] each
    int height, width, out_height, out_width, lanes;  // lanes: C / VECTOR
    float eps;
    long long pixels, slots;
};

LOOM_INLINE int inside(int at, int size) { return at < 0 ? 0 : at < size ? at : size - 1; }
LOOM_INLINE const io* lane_of(const io* map, index_t pixel, const Arguments& a, int lane) {
    return map + ((long long)pixel * a.lanes + lane) * VECTOR;
}
LOOM_INLINE bool take_place(const Arguments& a, index_t& slot, int& lane) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.slots * a.lanes) return false;
    slot = (index_t)((index_t)i / (index_t)a.lanes);
    lane = (int)((index_t)i - slot * (index_t)a.lanes);
    return true;
}
// The map of a pixel of maps height x width, and its place in it.
LOOM_INLINE index_t locate(index_t pixel, int height, int width, int& h, int& w) {
    const index_t row = pixel / (index_t)width, map = row / (index_t)height;
    w = (int)(pixel - row * (index_t)width);
    h = (int)(row - map * (index_t)height);
    return map;
}
// v rounded to the storage type.
LOOM_INLINE void round_all(float*, real*) {}
template <class E> LOOM_INLINE void round_all(E*, real* v) {
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) {
        E kept;
        loom_store(kept, v[e]);
        v[e] = loom_load(kept);
    }
}
#if __CUDA_ARCH__ >= 800 && VECTOR > 1  // one conversion for two, on a faster unit than that for one
LOOM_INLINE void round_all(bf16*, real* v) {
#pragma unroll
    for (int e = 0; e < VECTOR; e += 2) {
        unsigned two;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(v[e + 1]), "f"(v[e]));
        v[e] = __uint_as_float(two << 16), v[e + 1] = __uint_as_float(two & 0xffff0000u);
    }
}
#endif

// Values are compared as they are stored, as if normalisation had been a layer of its own.
template <bool RECORD>
LOOM_INLINE void pool_pixels(const Arguments& a, index_t slot, int lane, const real* scale, const real* shift) {
    const long long line = (long long)a.width * a.lanes * VECTOR, step = (long long)a.lanes * VECTOR;
    for (index_t pixel = slot; pixel < (index_t)a.pixels; pixel += (index_t)a.slots) {
        int oh, ow;
        const index_t map = locate(pixel, a.out_height, a.out_width, oh, ow);
        const io* y = lane_of(a.y, map * (index_t)a.height * (index_t)a.width, a, lane);
        const int top = oh * STRIDE - PADDING, left = ow * STRIDE - PADDING;
        real most[VECTOR];
        int code[VECTOR];
#pragma unroll
        for (int r = 0; r < KERNEL; ++r) {
            const int h = inside(top + r, a.height);
            Lane got[KERNEL];
#pragma unroll
            for (int c = 0; c < KERNEL; ++c)
                got[c] = loom_read<io, VECTOR>(y + h * line + inside(left + c, a.width) * step);
#pragma unroll
            for (int c = 0; c < KERNEL; ++c) {
                const int at = (h - top) * KERNEL + inside(left + c, a.width) - left;
                real v[VECTOR];
#pragma unroll
                for (int e = 0; e < VECTOR; ++e) v[e] = loom_load(got[c].e[e]) * scale[e] + shift[e];
                round_all((io*)0, v);
#pragma unroll
                for (int e = 0; e < VECTOR; ++e)
                    if ((r == 0 && c == 0) || v[e] > most[e] || v[e] != v[e]) most[e] = v[e], code[e] = at;
            }
        }
        Lane out;
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) loom_store(out.e[e], most[e]);
        loom_write<io, VECTOR>(a.out + ((long long)pixel * a.lanes + lane) * VECTOR, out);
        if (RECORD) {
            Codes codes;
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) codes.e[e] = (unsigned char)code[e];
            ((Codes*)a.code)[(long long)pixel * a.lanes + lane] = codes;
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) norm_pool(const Arguments a) {
    index_t slot;
    int lane;
    if (!take_place(a, slot, lane)) return;
    real scale[VECTOR], shift[VECTOR];
    loom_read_real<VECTOR>(a.channel[0] + lane * VECTOR, scale);
    loom_read_real<VECTOR>(a.channel[1] + lane * VECTOR, shift);
    pool_pixels<true>(a, slot, lane, scale, shift);
}

extern "C" __global__ void __launch_bounds__(256) norm_pool_eval(const Arguments a) {
    index_t slot;
    int lane;
    if (!take_place(a, slot, lane)) return;
    real scale[VECTOR], shift[VECTOR], mean[VECTOR], variance[VECTOR];
    loom_read_real<VECTOR>(a.channel[0] + lane * VECTOR, scale);
    loom_read_real<VECTOR>(a.channel[1] + lane * VECTOR, shift);
    loom_read_real<VECTOR>(a.channel[2] + lane * VECTOR, mean);
    loom_read_real<VECTOR>(a.channel[3] + lane * VECTOR, variance);
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) {
        scale[e] = scale[e] * (1.0f / loom_sqrt(variance[e] + a.eps));
        shift[e] = shift[e] - mean[e] * scale[e];
    }
    pool_pixels<false>(a, slot, lane, scale, shift);
}

// Partial sums over windows of grad y and of grad, y where the largest value of the window came from. It is read again
// with the whole window instead of being kept: backward needs y anyway, and so nothing but the code is kept.
extern "C" __global__ void __launch_bounds__(256) norm_pool_sums(const Arguments a) {
    index_t slot;
    int lane;
    if (!take_place(a, slot, lane)) return;
    const long long line = (long long)a.width * a.lanes * VECTOR, step = (long long)a.lanes * VECTOR;
    real weighted[VECTOR], plain[VECTOR];
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) weighted[e] = plain[e] = 0;
    for (index_t pixel = slot; pixel < (index_t)a.pixels; pixel += (index_t)a.slots) {
        int oh, ow;
        const index_t map = locate(pixel, a.out_height, a.out_width, oh, ow);
        const io* y = lane_of(a.y, map * (index_t)a.height * (index_t)a.width, a, lane);
        const int top = oh * STRIDE - PADDING, left = ow * STRIDE - PADDING;
        const Codes code = ((const Codes*)a.code)[(long long)pixel * a.lanes + lane];
        const Lane grad = loom_read<io, VECTOR>(lane_of(a.grad, pixel, a, lane));
        Lane chosen = Lane();
#pragma unroll
        for (int r = 0; r < KERNEL; ++r) {
            const io* row = y + inside(top + r, a.height) * line;
#pragma unroll
            for (int c = 0; c < KERNEL; ++c) {
                const Lane got = loom_read<io, VECTOR>(row + inside(left + c, a.width) * step);
#pragma unroll
                for (int e = 0; e < VECTOR; ++e)
                    if (code.e[e] == r * KERNEL + c) chosen.e[e] = got.e[e];
            }
        }
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) {
            const real g = loom_load(grad.e[e]);
            weighted[e] += g * loom_load(chosen.e[e]);
            plain[e] += g;
        }
    }
    const long long to = ((long long)slot * a.lanes + lane) * VECTOR;
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) a.sums[0][to + e] = weighted[e], a.sums[1][to + e] = plain[e];
}

// grad_y = scale G + a y + b with G the sum of grad over the windows whose largest value came from this pixel.
#if BLOCKS
// The rows of `channel` begin at multiples of 16 bytes.
LOOM_INLINE void read_row(const float* row, int lane, real* to) {
    const int wide = VECTOR < 4 ? VECTOR : 4;
#pragma unroll
    for (int e = 0; e < VECTOR; e += wide) {
        const Pack<float, wide> got = loom_read<float, wide>(row + lane * VECTOR + e);
#pragma unroll
        for (int k = 0; k < wide; ++k) to[e + k] = got.e[k];
    }
}

// Bounded as if blocks were larger: with registers for 640 threads of a multiprocessor, enough reads are under way.
extern "C" __global__ void __launch_bounds__(640) norm_pool_grad(const Arguments a) {
    index_t slot;
    int lane;
    if (!take_place(a, slot, lane)) return;
    real scale[VECTOR], slope[VECTOR], offset[VECTOR];
    read_row(a.channel[0], lane, scale);
    read_row(a.channel[1], lane, slope);
    read_row(a.channel[2], lane, offset);
    for (index_t window = slot; window < (index_t)a.pixels; window += (index_t)a.slots) {
        const Block block = read_block(a, a.grad, a.code, window, lane);
        const Lane* from = (const Lane*)a.y + block.first;
        Lane y[2][2], out[2][2];
#pragma unroll
        for (int p = 0; p < 2; ++p)
#pragma unroll
            for (int q = 0; q < 2; ++q)
                y[p][q] = loom_read<io, VECTOR>((const io*)(from + (p ? block.down : 0) + (q ? block.right : 0)));
#pragma unroll
        for (int e = 0; e < VECTOR; ++e)
#pragma unroll
            for (int p = 0; p < 2; ++p)
#pragma unroll
                for (int q = 0; q < 2; ++q) {
                    const real kept = loom_load(y[p][q].e[e]) * slope[e] + offset[e];
                    loom_store(out[p][q].e[e], gathered(block, p, q, e) * scale[e] + kept);
                }
        write_block(block, a.out, out);
    }
}
#else
extern "C" __global__ void __launch_bounds__(256) norm_pool_grad(const Arguments a) {
    index_t slot;
    int lane;
    if (!take_place(a, slot, lane)) return;
    const int reach = (KERNEL + STRIDE - 1) / STRIDE;
    real scale[VECTOR], slope[VECTOR], offset[VECTOR];
    loom_read_real<VECTOR>(a.channel[0] + lane * VECTOR, scale);
    loom_read_real<VECTOR>(a.channel[1] + lane * VECTOR, slope);
    loom_read_real<VECTOR>(a.channel[2] + lane * VECTOR, offset);
    for (index_t pixel = slot; pixel < (index_t)a.pixels; pixel += (index_t)a.slots) {
        int h, w;
        const index_t map = locate(pixel, a.height, a.width, h, w);
        const index_t first = map * (index_t)a.out_height * (index_t)a.out_width;
        const int last_row = (h + PADDING) / STRIDE, last_column = (w + PADDING) / STRIDE;
        const Lane y = loom_read<io, VECTOR>(lane_of(a.y, pixel, a, lane));
        real sum[VECTOR];
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) sum[e] = 0;
#pragma unroll
        for (int i = 0; i < reach; ++i) {
            const int oh = last_row - i, r = h + PADDING - oh * STRIDE;
            Codes code[reach];
            Lane grad[reach];
            int mine[reach];
#pragma unroll
            for (int j = 0; j < reach; ++j) {
                const int ow = last_column - j, c = w + PADDING - ow * STRIDE;
                mine[j] = -1, code[j] = Codes(), grad[j] = Lane();
                if (r < KERNEL && c < KERNEL && oh >= 0 && ow >= 0 && oh < a.out_height && ow < a.out_width) {
                    const index_t from = first + (index_t)oh * (index_t)a.out_width + (index_t)ow;
                    mine[j] = r * KERNEL + c;
                    code[j] = ((const Codes*)a.code)[(long long)from * a.lanes + lane];
                    grad[j] = loom_read<io, VECTOR>(lane_of(a.grad, from, a, lane));
                }
            }
#pragma unroll
            for (int j = 0; j < reach; ++j)
#pragma unroll
                for (int e = 0; e < VECTOR; ++e)
                    if (code[j].e[e] == mine[j]) sum[e] += loom_load(grad[j].e[e]);
        }
        Lane out;
#pragma unroll
        for (int e = 0; e < VECTOR; ++e)
            loom_store(out.e[e], sum[e] * scale[e] + (loom_load(y.e[e]) * slope[e] + offset[e]));
        loom_write<io, VECTOR>(a.out + ((long long)pixel * a.lanes + lane) * VECTOR, out);
    }
}
#endif
