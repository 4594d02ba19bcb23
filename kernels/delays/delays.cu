// Sums of delayed inputs on a GPU: spikes as bits, then as lists, then every spike adds its row of weights to sums that
// are due later. A thread owns one output of one sample, so that nothing is shared, nothing waits, and terms are added
// in the order of the CPU's kernel. In front of this text: `real`, `index_t`, the prelude, TILE, THREADS, AHEAD, COUNT
// (c, elements per pair) and, where the sums of a block fit into shared memory, SHARED (their number, K TILE).
struct Arguments {
    const real *x, *pending, *bias;     // [S, B, I]; [K - 1, B, O] and [O], or null
    const real* weight;                 // tiles of at most TILE outputs of one group: [I / groups, c, outputs of it]
    const int* place;                   // delay * TILE + number in the tile
    real *y, *kept, *far;               // [S - skip, B, O]; [K - 1, B, O] or null; [blocks, K, TILE] unless SHARED
    unsigned* bits;                     // [S B, words]
    int *channel, *found;               // [S B, I], [S B]
    int S, B, I, O, K, groups, skip, words, tiles;
};

// A bit per input that is not 0; a thread per word of 32.
extern "C" __global__ void __launch_bounds__(THREADS) delays_mark(const Arguments a) {
    const long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (at >= (long long)a.S * a.B * a.words) return;
    const long long row = at / a.words;
    const int low = (int)(at - row * a.words) * 32, n = a.I - low < 32 ? a.I - low : 32;
    const real* x = a.x + row * a.I + low;
    unsigned bits = 0;
    for (int i = 0; i < n; ++i) bits |= (unsigned)(x[i] != 0) << i;
    a.bits[at] = bits;
}

// Its inputs that are not 0, in order; a thread per step and sample.
extern "C" __global__ void __launch_bounds__(THREADS) delays_list(const Arguments a) {
    const long long row = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (row >= (long long)a.S * a.B) return;
    int* to = a.channel + row * a.I;
    int n = 0;
    for (int word = 0; word < a.words; ++word) {
        unsigned bits = a.bits[row * a.words + word];
        for (; bits; bits &= bits - 1) to[n++] = word * 32 + __ffs(bits) - 1;
    }
    a.found[row] = n;
}

// Where a thread works.
struct Lane {
    int b, low, inputs, number, outputs;  // sample; first input of the group; output in its tile, and how many it has
    int o;
    long long table;                      // first element of the tile
};
LOOM_INLINE Lane find(const Arguments& a) {
    const int tile = blockIdx.x % a.tiles, per_group = a.O / a.groups, tiles = a.tiles / a.groups;
    const int group = tile / tiles, from = tile % tiles * TILE, first = group * per_group + from;
    Lane lane;
    lane.b = blockIdx.x / a.tiles, lane.inputs = a.I / a.groups, lane.low = group * lane.inputs;
    lane.number = threadIdx.x, lane.outputs = per_group - from < TILE ? per_group - from : TILE;
    lane.o = first + lane.number, lane.table = (long long)first * lane.inputs * COUNT;
    return lane;
}

// AHEAD terms of a step at a time, so that what they need is on its way together.
LOOM_INLINE void send(const Arguments& a, const Lane& lane, real* sums, long long row, int now) {
    const int total = a.found[row] * COUNT, turn = a.K * TILE;
    const int* channels = a.channel + row * a.I;
    for (int k = 0; k < total; k += AHEAD) {
        real term[AHEAD];
        int place[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; ++j) {
            place[j] = -1;
            if (k + j >= total) continue;
            const int channel = channels[(k + j) / COUNT], i = channel - lane.low;
            if ((unsigned)i >= (unsigned)lane.inputs) continue;
            const long long at = lane.table + ((long long)i * COUNT + (k + j) % COUNT) * lane.outputs + lane.number;
            term[j] = __ldg(a.weight + at) * __ldg(a.x + row * a.I + channel);
            place[j] = __ldg(a.place + at) + now;
        }
#pragma unroll
        for (int j = 0; j < AHEAD; ++j) {
            if (place[j] < 0) continue;
            sums[place[j] >= turn ? place[j] - turn : place[j]] += term[j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(TILE) delays_send(const Arguments a) {
    const Lane lane = find(a);
    if (lane.number >= lane.outputs) return;
#ifdef SHARED
    __shared__ real sums[SHARED];
#else
    real* sums = a.far + (long long)blockIdx.x * a.K * TILE;
#endif
    const long long step = (long long)a.B * a.O, at = (long long)lane.b * a.O + lane.o;
    for (int r = 0; r < a.K; ++r)
        sums[r * TILE + lane.number] = a.pending && r < a.K - 1 ? a.pending[r * step + at] : real(0);
    const real bias = a.bias ? a.bias[lane.o] : real(0);
    int now = 0;
    for (int t = 0; t < a.S; ++t) {
        const long long row = (long long)t * a.B + lane.b;
        send(a, lane, sums, row, now);
        real& due = sums[now + lane.number];
        if (t >= a.skip) a.y[(t - a.skip) * step + at] = a.bias ? due + bias : due;
        due = 0;
        now = now + TILE == a.K * TILE ? 0 : now + TILE;
    }
    if (!a.kept) return;
    for (int r = 0; r < a.K - 1; ++r) {
        a.kept[r * step + at] = sums[now + lane.number];
        now = now + TILE == a.K * TILE ? 0 : now + TILE;
    }
}
