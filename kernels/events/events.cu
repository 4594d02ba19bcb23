// Events ordered by time to counts or voxels. `events_edges` says with which event every bin begins and sets the cells
// to 0; then a thread takes EACH events that follow one another: it searches the bin of its first one and, where a bin
// ends, the next. Sums are of integers: the order of additions does not matter. Compiled by NVRTC without any header;
// defined in front of this text: THREADS, EACH (8), UNIT_BITS, WIDE (columns lie on addresses for loads of 16 bytes),
// and the rules BY_TIME, BY_WINDOW, BY_SHARE, BY_SLICE, BY_NUMBER.
typedef unsigned long long u64;
typedef long long s64;
#define FULL 0xffffffffu
struct __align__(16) Quad { unsigned w[4]; };
struct __align__(16) Times { s64 t[2]; };
struct __align__(8) Pair { unsigned w[2]; };
struct Arguments {
    const s64 *t, *offsets;
    const short *x, *y;
    const unsigned char* p;
    s64* edges;     // [B, T + 1] the first event of every bin, and one behind the last; they rise through the batch
    u64* spans;     // [B] lengths of the ranges in us
    void* cells;    // int [T, B, 2, H, W] counts, or u64 [T, B, H, W] sums of weights
    float* grid;    // [T, B, H, W] voxels
    s64 events, words, start, end, size;  // words: of 4 bytes, in cells. size: us of a window, or events of a frame
    int B, T, H, W, rule, ended, parts;   // ended: is there an `end`? parts: into which a range of time is cut
};

// ceil(k * whole / parts) for k <= parts, without a product that overflows.
static __device__ __forceinline__ u64 share(u64 k, u64 whole, u64 parts) {
    return k * (whole / parts) + (k * (whole % parts) + parts - 1) / parts;
}

// The first event of lo ... hi - 1 at or after a time; 32 lanes look at as many places at once.
static __device__ __forceinline__ s64 first_at(const s64* t, s64 lo, s64 hi, s64 time) {
    const int lane = threadIdx.x % 32;
    while (lo < hi) {
        const s64 step = (hi - lo + 32) / 33, place = lo + (lane + 1) * step - 1;
        const int below = __popc(__ballot_sync(FULL, place < hi && t[place] < time));
        lo += below * step;
        if (lo + step - 1 < hi) hi = lo + step - 1;
    }
    return lo;
}

// Length of a recording's range: up to its own last event where there is no end, and at least 1.
static __device__ __forceinline__ u64 span_of(const Arguments& a, s64 lo, s64 hi) {
    const s64 end = a.ended ? a.end : lo < hi ? a.t[hi - 1] : a.start;
    return end > a.start ? (u64)end - (u64)a.start : 1;
}

static __device__ __forceinline__ s64 edge_of(const Arguments& a, s64 b, int k) {
    const s64 lo = a.offsets[b], hi = a.offsets[b + 1], length = hi - lo;
    if (a.rule == BY_SHARE) return lo + (s64)share(k, length, a.T);
    if (a.rule == BY_SLICE) return k == a.T ? hi : lo + k * (length / a.T);
    if (a.rule == BY_NUMBER) return k && a.size > length / k ? hi : lo + k * a.size;
    if (a.rule == BY_WINDOW) return k && a.size > 0x7fffffffffffffffll / k ? hi : first_at(a.t, lo, hi, k * a.size);
    const u64 span = span_of(a, lo, hi);
    if (k == 0 && threadIdx.x % 32 == 0) a.spans[b] = span;
    if (k == a.T && !a.ended) return hi;  // also where the last event has the largest number for a time
    return first_at(a.t, lo, hi, (s64)((u64)a.start + (k < a.T ? share(k, span, a.parts) : span + 1)));
}

extern "C" __global__ void __launch_bounds__(THREADS) events_edges(const Arguments a) {
    const s64 thread = (s64)blockIdx.x * THREADS + threadIdx.x, threads = (s64)gridDim.x * THREADS;
    const int columns = a.T + 1, edges = a.B * columns;
    for (s64 e = thread / 32; e < edges; e += threads / 32) {
        const s64 edge = edge_of(a, e / columns, (int)(e % columns));
        if (threadIdx.x % 32 == 0) a.edges[e] = edge;
    }
    const Quad zero = {{0, 0, 0, 0}};
    for (s64 i = thread; i < a.words / 4; i += threads) ((Quad*)a.cells)[i] = zero;
    if (thread < a.words % 4) ((unsigned*)a.cells)[a.words - 1 - thread] = 0;
}

struct Bin {
    int b, k;  // k < 0: no bin
    s64 end;   // its first event that is none
};

// The bin of event i, by the first of `count` edges behind it.
static __device__ __noinline__ Bin bin_of(const s64* edges, int count, int columns, s64 events, s64 i) {
    int lo = 0, hi = count;
    while (lo < hi) {
        const int middle = lo + (hi - lo) / 2;
        if (edges[middle] <= i) lo = middle + 1;
        else hi = middle;
    }
    Bin bin = {(lo - 1) / columns, (lo - 1) % columns, lo < count ? edges[lo] : events};
    if (lo == 0 || bin.k == columns - 1) bin.k = -1;  // in front of a recording's first bin, or behind its last
    return bin;
}

struct Few {
    unsigned x[EACH], y[EACH], p[EACH];
    int count;
};

static __device__ __forceinline__ Few few_of(const Arguments& a, s64 i) {
    Few few;
    few.count = a.events - i < EACH ? (int)(a.events - i) : EACH;
    if (WIDE && few.count == EACH) {
        const Quad x = *(const Quad*)(a.x + i), y = *(const Quad*)(a.y + i);
        const Pair p = *(const Pair*)(a.p + i);
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            few.x[e] = x.w[e / 2] >> 16 * (e % 2) & 0xffff;
            few.y[e] = y.w[e / 2] >> 16 * (e % 2) & 0xffff;
            few.p[e] = p.w[e / 4] >> 8 * (e % 4) & 0xff;
        }
    } else {
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            if (e < few.count) few.x[e] = a.x[i + e], few.y[e] = a.y[i + e], few.p[e] = a.p[i + e];
        }
    }
    return few;
}

extern "C" __global__ void __launch_bounds__(THREADS) events_count(const Arguments a) {
    const s64 first = ((s64)blockIdx.x * THREADS + threadIdx.x) * EACH;
    if (first >= a.events) return;
    const Few few = few_of(a, first);
    const int columns = a.T + 1, edges = a.B * columns;
    const s64 plane = 2ll * a.H * a.W;
    Bin bin = {0, -1, first};
    int* cell = 0;
    int many = 0;
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        if (e >= few.count) break;
        if (first + e >= bin.end) bin = bin_of(a.edges, edges, columns, a.events, first + e);
        if (bin.k < 0) continue;
        int* here = (int*)a.cells + ((s64)bin.k * a.B + bin.b) * plane + (few.p[e] * a.H + few.y[e]) * a.W + few.x[e];
        if (here != cell) {  // events of one pixel, one after the other, are added once
            if (many) atomicAdd(cell, many);
            cell = here, many = 0;
        }
        ++many;
    }
    if (many) atomicAdd(cell, many);
}

// floor(part * 2^UNIT_BITS / whole), part < whole < 2^62: the estimate is wrong by 1 at most, and the remainder tells.
static __device__ __forceinline__ unsigned weight_of(u64 part, u64 whole, double scale) {
    unsigned weight = (unsigned)((double)part * scale);
    const u64 rest = (part << UNIT_BITS) - weight * whole;  // modulo 2^64
    if ((s64)rest < 0) --weight;
    else if (rest >= whole) ++weight;
    return weight;
}

extern "C" __global__ void __launch_bounds__(THREADS) events_voxels(const Arguments a) {
    const s64 first = ((s64)blockIdx.x * THREADS + threadIdx.x) * EACH;
    if (first >= a.events) return;
    const Few few = few_of(a, first);
    s64 t[EACH];
    if (WIDE && few.count == EACH) {
#pragma unroll
        for (int e = 0; e < EACH; e += 2) {
            const Times two = *(const Times*)(a.t + first + e);
            t[e] = two.t[0], t[e + 1] = two.t[1];
        }
    } else {
#pragma unroll
        for (int e = 0; e < EACH; ++e)
            if (e < few.count) t[e] = a.t[first + e];
    }
    const int columns = a.T + 1, edges = a.B * columns;
    const s64 plane = (s64)a.H * a.W;
    Bin bin = {0, -1, first};
    u64 span = 1;
    double scale = 0;
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        if (e >= few.count) break;
        if (first + e >= bin.end) {
            bin = bin_of(a.edges, edges, columns, a.events, first + e);
            span = bin.k < 0 ? 1 : a.spans[bin.b];
            scale = (double)(1u << UNIT_BITS) / (double)span;
        }
        if (bin.k < 0) continue;
        // how far behind instant k, of span; products modulo 2^64, their difference is below span
        const u64 part = ((u64)t[e] - (u64)a.start) * (u64)(a.T - 1) - (u64)bin.k * span;
        const s64 right = weight_of(part, span, scale), left = (1 << UNIT_BITS) - right;
        u64* here = (u64*)a.cells + ((s64)bin.k * a.B + bin.b) * plane + few.y[e] * a.W + few.x[e];
        atomicAdd(here, (u64)(few.p[e] ? left : -left));
        if (right) atomicAdd(here + a.B * plane, (u64)(few.p[e] ? right : -right));  // never at the last instant
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) events_grid(const Arguments a) {
    const s64 i = (s64)blockIdx.x * THREADS + threadIdx.x;
    if (i < a.words / 2) a.grid[i] = (float)((double)((const s64*)a.cells)[i] / (1 << UNIT_BITS));
}
