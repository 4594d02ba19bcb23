// Counting on the GPU; cuda.py fills it in (rules of the placeholders: kernels/template.py).

// [file] The whole source for one storage type and one set of choices.
typedef $real real; typedef $index index_t;
$prelude
typedef $io io; typedef $word word;
enum { V = $vector, U = $unroll, THREADS = $threads, STRIDE = THREADS * V };
enum { SLOTS = $slots, SMALL = $small, FIRST = SMALL + 1, ROOM = SLOTS - FIRST };
enum { OVERFLOWED, NON_FINITE, NEGATIVE, BEYOND_ONE };
enum { NONE, INNER, OUTER, FULL };
enum { FAN = $fan, PRUNED = $pruned, AFFINE = $affine, LEVELS = $levels };
constexpr bool PLACED = FAN != NONE || PRUNED == INNER || AFFINE != NONE;  // needs to know where in the row it is
constexpr word ONE = ($one);

// A row has `size` elements, which blocks take in parts of `part`, `parts` to a row.
struct Arguments {
    const io* x;
    const int *fan, *pruned;
    const real *scale, *shift;
    long long *events, *terms, *pruned_terms, *levels, *keys;
    int* flags;
    long long size, inner, part, parts;
};

LOOM_INLINE word bits_of(io value) {
    union { io value; word bits; } u;
    u.value = value;
    return u.bits;
}

// Values of V neighbouring elements.
LOOM_INLINE void read_ints(const int* from, int* to) {
    constexpr int N = V < 4 ? V : 4;
    #pragma unroll
    for (int k = 0; k < V; k += N) {
        const Pack<int, N> pack = loom_read<int, N>(from + k);
        #pragma unroll
        for (int v = 0; v < N; ++v) to[k + v] = pack.e[v];
    }
}
template <int on> LOOM_INLINE void read_weights(const int* values, index_t at, index_t outer, index_t inner, int* to) {
    if (on == OUTER) {
        const int shared = __ldg(values + outer);
        #pragma unroll
        for (int v = 0; v < V; ++v) to[v] = shared;
    } else if (on != NONE) {
        read_ints(values + (on == FULL ? at : inner), to);
    }
}

// Sums per slot in shared memory, as two words: 64-bit additions there are loops, 32-bit ones are not.
struct Histogram { unsigned low[SLOTS], high[SLOTS]; };
LOOM_INLINE void add(Histogram& histogram, int slot, long long n) {
    const unsigned low = (unsigned)n, before = atomicAdd(&histogram.low[slot], low);
    const unsigned high = (unsigned)((unsigned long long)n >> 32) + (before + low < before);
    if (high) atomicAdd(&histogram.high[slot], high);
}

// The hashed slot of a magnitude, which the table takes in if it is new; 0 if there is no room. A key once there never
// changes, so a stale key is at worst an empty one, and then the exchange tells.
LOOM_INLINE int find(long long* keys, const volatile int* flags, long long bits) {
    const unsigned long long spread = (unsigned long long)bits * ${multiplier}ull >> 32;
    int slot = FIRST + (int)(spread * ROOM >> 32);
    for (int probe = 0; probe < ROOM; ++probe) {
        long long held = keys[slot];
        if (!held) held = (long long)atomicCAS((unsigned long long*)keys + slot, 0ull, (unsigned long long)bits);
        if (!held || held == bits) return slot;
        if (++slot == SLOTS) slot = FIRST;
        if (probe % 32 == 31 && flags[OVERFLOWED]) return 0;
    }
    return 0;
}

// What a thread found. The last value's sum waits in registers until another value comes.
struct Found {
    unsigned events;
    long long terms, pruned, ones, waiting;
    word last;
    int slot;
    unsigned seen;
};

LOOM_INLINE int slot_of(const Arguments& a, Found& found, double value, bool full) {
    const double magnitude = fabs(value);
    found.seen |= 1u << BEYOND_ONE;
    if (value < 0) found.seen |= 1u << NEGATIVE;
    if (!(magnitude - magnitude == 0)) {
        found.seen |= 1u << NON_FINITE;
        return 0;
    }
    if (magnitude <= SMALL && magnitude == (int)magnitude) return (int)magnitude;
    if (full || found.seen >> OVERFLOWED & 1) return 0;
    const int slot = find(a.keys, a.flags, __double_as_longlong(magnitude));
    if (!slot) {
        found.seen |= 1u << OVERFLOWED;
        a.flags[OVERFLOWED] = 1;  // at once, so that nobody searches the full table for long
    }
    return slot;
}

// V neighbouring elements, all in registers. Returns which of them are neither 0 nor 1.
LOOM_INLINE unsigned count_pack(
    const Arguments& a, const Pack<io, V>& pack, index_t at, index_t outer, index_t inner, Found& found
) {
    int fan[V], pruned[V];
    real scale[V], shift[V];
    read_weights<FAN>(a.fan, at, outer, inner, fan);
    read_weights<PRUNED>(a.pruned, at, outer, inner, pruned);
    if (AFFINE != NONE) {
        #pragma unroll
        for (int v = 0; v < V; ++v) {
            scale[v] = __ldg(a.scale + (AFFINE == OUTER ? outer : inner + v));
            shift[v] = __ldg(a.shift + (AFFINE == OUTER ? outer : inner + v));
        }
    }
    unsigned others = 0;
    #pragma unroll
    for (int v = 0; v < V; ++v) {
        const word bits = bits_of(pack.e[v]);
        bool on = (word)(bits << 1) != 0;
        if (AFFINE != NONE) {
            const real product = loom_load(pack.e[v]) * scale[v];
            on = product + shift[v] != 0;
        }
        found.events += on;
        if (FAN != NONE && on) found.terms += fan[v];
        if (PRUNED != NONE && on) found.pruned += pruned[v];
        if (LEVELS) {
            if (bits == ONE) found.ones += FAN == NONE ? 1 : fan[v];
            else if (on) others |= 1u << v;
        }
    }
    return others;
}

// The elements `others` of U packs, which start at `at` and lie STRIDE apart, one by one.
LOOM_INLINE void add_others(
    const Arguments& a, const io* x, index_t at, unsigned others, bool full, Histogram& histogram, Found& found
) {
    for (; others; others &= others - 1) {
        const int e = __ffs(others) - 1;
        const index_t place = at + (e / V) * STRIDE + e % V;
        const io value = loom_read<io, 1>(x + place).e[0];
        if (bits_of(value) != found.last) {
            if (found.slot && found.waiting) add(histogram, found.slot, found.waiting);
            found.waiting = 0;
            found.last = bits_of(value);
            found.slot = slot_of(a, found, (double)loom_load(value), full);
        }
        const index_t inner = (index_t)a.inner;
        found.waiting += FAN == NONE ? 1 : __ldg(a.fan + (FAN == OUTER ? place / inner : place % inner));
    }
}

// The sum over the block, valid in thread 0.
LOOM_INLINE long long block_sum(long long sum) {
    __shared__ long long held[THREADS / 32];
    for (int offset = 16; offset; offset >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, offset);
    __syncthreads();
    if (threadIdx.x % 32 == 0) held[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int warp = 1; warp < THREADS / 32; ++warp) sum += held[warp];
    return sum;
}
LOOM_INLINE void add_block(long long* to, long long sum) {
    sum = block_sum(sum);
    if (threadIdx.x == 0 && sum) atomicAdd((unsigned long long*)to, (unsigned long long)sum);
}

extern "C" __global__ void __launch_bounds__(THREADS) tally(const Arguments a) {
    __shared__ Histogram histogram;
    const long long row = blockIdx.x / (unsigned)a.parts;
    const index_t begin = (index_t)((blockIdx.x - row * a.parts) * a.part), size = (index_t)a.size;
    const index_t end = size - begin < (index_t)a.part ? size : begin + (index_t)a.part, inner_size = (index_t)a.inner;
    const io* x = a.x + row * a.size;
    bool full = false;
    if (LEVELS) {
        for (int slot = threadIdx.x; slot < SLOTS; slot += THREADS) histogram.low[slot] = histogram.high[slot] = 0;
        full = a.flags[OVERFLOWED];
        __syncthreads();
    }
    Found found = {};
    const index_t start = begin + threadIdx.x * V;
    index_t outer = PLACED ? start / inner_size : 0, inner = PLACED ? start - outer * inner_size : 0;
    const index_t step_outer = PLACED ? STRIDE / inner_size : 0;
    const index_t step_inner = PLACED ? STRIDE - step_outer * inner_size : 0;
    for (index_t at = start; at < end; at += U * STRIDE) {
        Pack<io, V> packs[U];
        #pragma unroll
        for (int u = 0; u < U; ++u)
            if (end - at > u * STRIDE) packs[u] = loom_read<io, V>(x + at + u * STRIDE);
        unsigned others = 0;
        #pragma unroll
        for (int u = 0; u < U; ++u) {
            if (end - at > u * STRIDE) others |= count_pack(a, packs[u], at + u * STRIDE, outer, inner, found) << u * V;
            if (PLACED) {
                outer += step_outer, inner += step_inner;
                if (inner >= inner_size) inner -= inner_size, ++outer;
            }
        }
        if (LEVELS && others) add_others(a, x, at, others, full, histogram, found);
    }
    add_block(a.events + row, found.events);
    if (FAN != NONE) add_block(a.terms + row, found.terms);
    if (PRUNED != NONE) add_block(a.pruned_terms + row, found.pruned);
    if (LEVELS) {
        if (found.slot && found.waiting) add(histogram, found.slot, found.waiting);
        long long* levels = a.levels + row * SLOTS;
        add_block(levels + 1, found.ones);
        if (!__syncthreads_or(found.seen)) return;
        for (int flag = 0; flag < 4; ++flag)
            if (found.seen >> flag & 1 && !a.flags[flag]) a.flags[flag] = 1;
        for (int slot = threadIdx.x; slot < SLOTS; slot += THREADS) {
            const unsigned long long sum = (unsigned long long)histogram.high[slot] << 32 | histogram.low[slot];
            if (sum) atomicAdd((unsigned long long*)levels + slot, sum);
        }
    }
}
