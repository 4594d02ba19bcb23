// Depth-wise convolution of channels-last maps [M, H, W, C], stride 1, as large as its input. A block handles 32
// channels of a tile of DOWN x ACROSS strips; it copies the tile and the edge around it, zero outside the map, to
// shared memory. A lane is a channel. A warp computes a strip of ROWS x COLUMNS places at a time: a lane reads each
// input of its strip once, for up to KERNEL * KERNEL products, and has the weights of its channel (or their
// gradients) in registers.
//
// In front of this text: `real`, `io`, `index_t` (unused), the prelude, KERNEL, ROWS, COLUMNS, DOWN, ACROSS, WARPS,
// RESIDENT (blocks per multiprocessor that registers are to allow), UNIT (channels per access of the copy, a divisor
// of C, at most 8 and 16 bytes), AHEAD (such accesses of a thread that are under way together), and either FLIP (1:
// weights turned round, for the gradient of the input) or BITS (the gradient of the weights; 1: the input is bits).
enum {
    LANES = 32,
    TAPS = KERNEL * KERNEL,
    SPAN = COLUMNS + KERNEL - 1,
    TALL = ROWS * DOWN + KERNEL - 1,
    WIDE = COLUMNS * ACROSS + KERNEL - 1,
    THREADS = LANES * WARPS,
    UNITS = LANES / UNIT,
    STRIPS = DOWN * ACROSS / WARPS
};
typedef Word<sizeof(io) * UNIT>::type Unit;
struct Arguments {
    const void* x;             // the map: io, or bits in memory order
    const io* grad;            // of the output, for the gradient of the weights
    const io *weight, *bias;   // [C, TAPS], [C] or null
    io *out, *out_bias;        // the output; or gradients, of weight and of bias
    float* partial;            // [slots, C, TAPS + 1], the last entry for the bias
    int height, width, channels;
    int down, across, chunks;  // tiles of a map, 32s of channels
    int tiles, slots;          // tiles of all maps; how many blocks share them
};
struct Tile { long long map; int top, left; };  // the map's first element, the tile's first place

LOOM_INLINE Tile locate(const Arguments& a, int index) {
    const int row = index / a.across, m = row / a.down;
    Tile t;
    t.left = (index - row * a.across) * (COLUMNS * ACROSS);
    t.top = (row - m * a.down) * (ROWS * DOWN);
    t.map = (long long)m * a.height * a.width * a.channels;
    return t;
}
template <bool PACKED> LOOM_INLINE Unit fetch(const void* x, long long at) {
    if (!PACKED) return __ldg((const Unit*)((const io*)x + at));
    const unsigned byte = (unsigned)__ldg((const unsigned char*)x + (at >> 3)) >> (at & 7);
    union { Unit unit; Pack<io, UNIT> pack; } u;
    io one;
    loom_store(one, (real)1);
#pragma unroll
    for (int e = 0; e < UNIT; ++e) u.pack.e[e] = (byte >> e) & 1 ? one : io();
    return u.unit;
}

// 32 channels of a tile and its edge to shared memory, [TALL, WIDE, 32].
template <bool PACKED> LOOM_INLINE void stage(const Arguments& a, const Tile& t, int first, io* tile) {
    const int step = THREADS / UNITS, rounds = (TALL * WIDE + step - 1) / step;
    const int lane = (int)threadIdx.x % UNITS * UNIT, start = (int)threadIdx.x / UNITS;
    const int height = first + lane < a.channels ? a.height : 0;
    const int top = t.top - KERNEL / 2, left = t.left - KERNEL / 2;
    const long long map = t.map + first + lane;
    int row = start / WIDE, column = start % WIDE;
    io* to = tile + start * LANES + lane;
#pragma unroll
    for (int begin = 0; begin < rounds; begin += AHEAD) {
        Unit got[AHEAD];
#pragma unroll
        for (int n = 0; n < AHEAD; ++n) {
            const int h = top + row, w = left + column;
            got[n] = Unit();
            if (begin + n < rounds && row < TALL && (unsigned)h < (unsigned)height && (unsigned)w < (unsigned)a.width)
                got[n] = fetch<PACKED>(a.x, map + (h * a.width + w) * a.channels);
            row += step / WIDE, column += step % WIDE;
            if (column >= WIDE) column -= WIDE, ++row;
        }
#pragma unroll
        for (int n = 0; n < AHEAD; ++n)
            if ((begin + n + 1) * step <= TALL * WIDE || start + (begin + n) * step < TALL * WIDE)
                *(Unit*)(to + (begin + n) * step * LANES) = got[n];
    }
}

// The value of a lane in shared memory. Two lanes read the same word of bfloat16, from its even channel, and each takes
// its half, which is one instruction; widening 16 bits in a register would be two.
LOOM_INLINE int even(const bf16*, int lane) { return lane & ~1; }
LOOM_INLINE real value(const bf16* from, unsigned half) {
    return __uint_as_float(__byte_perm(*(const unsigned*)from, 0u, half));
}
template <class E> LOOM_INLINE int even(const E*, int lane) { return lane; }
template <class E> LOOM_INLINE real value(const E* from, unsigned) { return loom_load(*from); }
LOOM_INLINE unsigned half_of(int lane) { return lane % 2 ? 0x3244u : 0x1044u; }

#ifdef FLIP
LOOM_INLINE void read_weights(const Arguments& a, int first, io* kernel) {
    const int rounds = (LANES * TAPS + THREADS - 1) / THREADS, most = (a.channels - first) * TAPS;
    const io* from = a.weight + (long long)first * TAPS;
    io got[rounds];
#pragma unroll
    for (int n = 0; n < rounds; ++n) {
        const int i = (int)threadIdx.x + n * THREADS;
        got[n] = io();
        if (i < most) got[n] = loom_read<io, 1>(from + i).e[0];
    }
#pragma unroll
    for (int n = 0; n < rounds; ++n)
        if ((int)threadIdx.x + n * THREADS < LANES * TAPS) kernel[threadIdx.x + n * THREADS] = got[n];
}

template <bool WHOLE>
LOOM_INLINE void write_strip(const Arguments& a, io* to, const real (&sum)[ROWS][COLUMNS], int rows, int columns) {
#pragma unroll
    for (int o = 0; o < ROWS; ++o) {
        io* place = to + (long long)o * a.width * a.channels;
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j, place += a.channels)
            if (WHOLE || (o < rows && j < columns)) loom_store(*place, sum[o][j]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) depthwise(const Arguments a) {
    __align__(16) __shared__ io tile[TALL * WIDE * LANES];
    __shared__ io kernel[LANES * TAPS];
    const int index = (int)blockIdx.x / a.chunks, first = ((int)blockIdx.x - index * a.chunks) * LANES;
    const int lane = (int)threadIdx.x % LANES, c = first + lane;
    const Tile t = locate(a, index);
    read_weights(a, first, kernel);
    stage<false>(a, t, first, tile);
    __syncthreads();
    if (c >= a.channels) return;
    real weight[TAPS];
#pragma unroll
    for (int i = 0; i < TAPS; ++i) weight[i] = loom_load(kernel[lane * TAPS + (FLIP ? TAPS - 1 - i : i)]);
    const unsigned half = half_of(lane);
    const real bias = a.bias ? loom_load(a.bias[c]) : (real)0;
#pragma unroll 1
    for (int n = 0; n < STRIPS; ++n) {
        const int strip = (int)threadIdx.x / LANES + n * WARPS;
        const int row = strip / ACROSS * ROWS, column = strip % ACROSS * COLUMNS;
        const io* from = tile + (row * WIDE + column) * LANES + even(tile, lane);
        real sum[ROWS][COLUMNS];
#pragma unroll
        for (int o = 0; o < ROWS; ++o)
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) sum[o][j] = bias;
#pragma unroll
        for (int i = 0; i < ROWS + KERNEL - 1; ++i) {
            real x[SPAN];
#pragma unroll
            for (int j = 0; j < SPAN; ++j) x[j] = value(from + (i * WIDE + j) * LANES, half);
#pragma unroll
            for (int o = 0; o < ROWS; ++o) {
                if (i - o < 0 || i - o >= KERNEL) continue;
#pragma unroll
                for (int s = 0; s < KERNEL; ++s)
#pragma unroll
                    for (int j = 0; j < COLUMNS; ++j)
                        sum[o][j] = __fmaf_rn(x[j + s], weight[(i - o) * KERNEL + s], sum[o][j]);
            }
        }
        const int rows = a.height - t.top - row, columns = a.width - t.left - column;
        io* to = a.out + t.map + ((long long)(t.top + row) * a.width + t.left + column) * a.channels + c;
        if (rows >= ROWS && columns >= COLUMNS) write_strip<true>(a, to, sum, ROWS, COLUMNS);
        else write_strip<false>(a, to, sum, rows, columns);
    }
}
#endif

#ifdef BITS
template <bool WHOLE>
LOOM_INLINE void read_strip(const Arguments& a, const io* from, io (&g)[ROWS][COLUMNS], int rows, int columns) {
#pragma unroll
    for (int o = 0; o < ROWS; ++o) {
        const io* place = from + (long long)o * a.width * a.channels;
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j, place += a.channels) {
            if (!WHOLE) g[o][j] = io();
            if (WHOLE || (o < rows && j < columns)) g[o][j] = loom_read<io, 1>(place).e[0];
        }
    }
}
LOOM_INLINE void read_grad(const Arguments& a, const Tile& t, int c, int strip, io (&g)[ROWS][COLUMNS]) {
    const int h = t.top + strip / ACROSS * ROWS, w = t.left + strip % ACROSS * COLUMNS;
    const int rows = c < a.channels ? a.height - h : 0, columns = a.width - w;
    const io* from = a.grad + t.map + ((long long)h * a.width + w) * a.channels + c;
    if (rows >= ROWS && columns >= COLUMNS) read_strip<true>(a, from, g, ROWS, COLUMNS);
    else read_strip<false>(a, from, g, rows, columns);
}

LOOM_INLINE void add_strip(const io* from, unsigned half, const io (&g)[ROWS][COLUMNS], real (&sum)[TAPS + 1]) {
    real grad[ROWS][COLUMNS];
#pragma unroll
    for (int o = 0; o < ROWS; ++o)
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
            grad[o][j] = loom_load(g[o][j]);
            sum[TAPS] += grad[o][j];
        }
#pragma unroll
    for (int i = 0; i < ROWS + KERNEL - 1; ++i) {
        real x[SPAN];
#pragma unroll
        for (int j = 0; j < SPAN; ++j) x[j] = value(from + (i * WIDE + j) * LANES, half);
#pragma unroll
        for (int o = 0; o < ROWS; ++o) {
            if (i - o < 0 || i - o >= KERNEL) continue;
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j)
#pragma unroll
                for (int s = 0; s < KERNEL; ++s)
                    sum[(i - o) * KERNEL + s] = __fmaf_rn(x[j + s], grad[o][j], sum[(i - o) * KERNEL + s]);
        }
    }
}

// One block adds up tiles slot, slot + slots, ...; its warps' sums are added in order.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) depthwise_weight(const Arguments a) {
    __align__(16) __shared__ io tile[TALL * WIDE * LANES];
    const int slot = (int)blockIdx.x / a.chunks, first = ((int)blockIdx.x - slot * a.chunks) * LANES;
    const int lane = (int)threadIdx.x % LANES, warp = (int)threadIdx.x / LANES;
    real sum[TAPS + 1];
#pragma unroll
    for (int i = 0; i <= TAPS; ++i) sum[i] = 0;
#pragma unroll 1
    for (int index = slot; index < a.tiles; index += a.slots) {
        const Tile t = locate(a, index);
        __syncthreads();  // the tile before this one has been read
        stage<BITS>(a, t, first, tile);
        io grad[ROWS][COLUMNS];
        read_grad(a, t, first + lane, warp, grad);
        __syncthreads();
#pragma unroll 1
        for (int n = 0; n < STRIPS; ++n) {
            const int strip = warp + n * WARPS;
            const int row = strip / ACROSS * ROWS, column = strip % ACROSS * COLUMNS;
            if (n > 0) read_grad(a, t, first + lane, strip, grad);
            add_strip(tile + (row * WIDE + column) * LANES + even(tile, lane), half_of(lane), grad, sum);
        }
    }
    real* total = (real*)tile;
    for (int turn = 0; turn < WARPS; ++turn) {
        __syncthreads();
        if (warp == turn)
#pragma unroll
            for (int i = 0; i <= TAPS; ++i) {
                real* to = total + lane * (TAPS + 1) + i;
                *to = turn == 0 ? sum[i] : *to + sum[i];
            }
    }
    __syncthreads();
    float* to = a.partial + ((long long)slot * a.channels + first) * (TAPS + 1);
    for (int i = (int)threadIdx.x; i < LANES * (TAPS + 1) && i < (a.channels - first) * (TAPS + 1); i += THREADS)
        to[i] = total[i];
}

extern "C" __global__ void depthwise_finish(const Arguments a) {
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x), count = a.channels * (TAPS + 1);
    if (i >= count) return;
    real sum = 0;
#pragma unroll 16
    for (int slot = 0; slot < a.slots; ++slot) sum += __ldg(a.partial + (long long)slot * count + i);
    const int c = i / (TAPS + 1), tap = i - c * (TAPS + 1);
    if (tap < TAPS) loom_store(a.out[c * TAPS + tap], sum);
    else if (a.out_bias) loom_store(a.out_bias[c], sum);
}
#endif
