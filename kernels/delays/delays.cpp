// Sums of delayed inputs on the CPU; `cpu.source` puts `typedef ... real;`, the prelude and TILE in front of this text.
//
// Two walks over the same sums. Either way y[t, o] adds up what is on its way from before, then its terms w x in the
// order in which they were sent (by time, then input, then element), so both give the same bits.
#include <algorithm>
#include <cstdlib>
#include <memory>

enum { AT_ONCE = 16, LANES = 64 / sizeof(real), REACH = 12 };

struct Arguments {
    const real *x, *pending, *bias;        // [S, B, I]; [K - 1, B, O] and [O], or null
    const real* sent_weight;               // tiles of at most TILE outputs of one group: [I / groups, c, outputs of it]
    const int32_t* sent_place;             // delay * TILE + number in the tile
    const real* heard_weight;              // [O, I / groups c], the longest delay first
    const int32_t *heard_from, *heard_delay;
    real *y, *kept;                        // [S - skip, B, O]; [K - 1, B, O] or null
    int64_t S, B, I, O, K, groups, count, skip, threads;
    int64_t form;                          // 0: by cost; 1: walk over spikes; 2: walk over outputs
};

template <class E> using Buffer = std::unique_ptr<E[]>;
template <class E> static Buffer<E> buffer(int64_t n) { return Buffer<E>(new E[n]); }  // not initialised

// One iteration after the other on a single thread works outside OpenMP, whose threads do not survive a fork.
template <class Run> static void each(int64_t n, int64_t threads, Run run) {
    if (threads == 1 || n == 1) {
        for (int64_t i = 0; i < n; ++i) run(i);
    } else {
        #pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (int64_t i = 0; i < n; ++i) run(i);
    }
}

// The inputs other than 0 of a sample, step by step: those of step t are first[t] ... first[t + 1] - 1.
struct Spikes {
    Buffer<int32_t> channel;
    Buffer<real> value;
    Buffer<int64_t> first;
    int64_t room = 0;

    void grow(int64_t wanted) {
        if (wanted <= room) return;
        const int64_t more = std::max(wanted, 2 * room);
        Buffer<int32_t> channels = buffer<int32_t>(more);
        Buffer<real> values = buffer<real>(more);
        std::copy_n(channel.get(), room, channels.get()), std::copy_n(value.get(), room, values.get());
        channel.swap(channels), value.swap(values), room = more;
    }
    void find(const Arguments& a, int64_t b) {
        first = buffer<int64_t>(a.S + 1);
        int64_t n = 0;
        for (int64_t t = 0; t < a.S; ++t) {
            first[t] = n;
            grow(n + a.I);
            const real* x = a.x + (t * a.B + b) * a.I;
            int32_t* channels = channel.get();
            real* values = value.get();
            for (int64_t i = 0; i < a.I; ++i) {  // without a branch that the processor would have to guess
                channels[n] = (int32_t)i, values[n] = x[i];
                n += x[i] != 0;
            }
        }
        first[a.S] = n;
    }
};

// Outputs o ... o + n - 1 of one group, whose elements begin at `table`.
struct Tile { int64_t group, o, n, table; };
static Tile tile_of(const Arguments& a, int64_t number) {
    const int64_t outputs = a.O / a.groups, inputs = a.I / a.groups, per_group = (outputs + TILE - 1) / TILE;
    const int64_t group = number / per_group, from = number % per_group * TILE, o = group * outputs + from;
    return {group, o, std::min<int64_t>(TILE, outputs - from), o * inputs * a.count};
}

// A spike adds its row of weights to sums that are due later; rows of sums are [S + K - 1, TILE]. Not inlined: GCC 12
// makes half the speed of it inside of a lambda.
__attribute__((noinline)) static void send(
    const Arguments& a, const Spikes& spikes, int64_t b, const Tile& tile, real* sums
) {
    const int64_t inputs = a.I / a.groups, low = tile.group * inputs, row = tile.n * a.count, wait = a.K - 1;
    const real* weights = a.sent_weight + tile.table;
    const int32_t* places = a.sent_place + tile.table;
    const int64_t before = a.pending ? wait : 0;
    for (int64_t r = 0; r < wait; ++r) {
        real* to = sums + r * TILE;
        if (r < before) std::copy_n(a.pending + (r * a.B + b) * a.O + tile.o, tile.n, to);
        else std::fill_n(to, tile.n, real(0));
    }
    for (int64_t t = 0; t < a.S; ++t) {
        real* now = sums + t * TILE;
        std::fill_n(now + wait * TILE, tile.n, real(0));
        for (int64_t k = spikes.first[t]; k < spikes.first[t + 1]; ++k) {
            const int64_t i = spikes.channel[k] - low;
            if ((uint64_t)i >= (uint64_t)inputs) continue;
            const real value = spikes.value[k], *w = weights + i * row;
            const int32_t* place = places + i * row;
            for (int64_t j = 0; j < row; ++j) now[place[j]] += w[j] * value;
        }
        if (t < a.skip) continue;
        real* y = a.y + ((t - a.skip) * a.B + b) * a.O + tile.o;
        for (int64_t o = 0; o < tile.n; ++o) y[o] = a.bias ? now[o] + a.bias[tile.o + o] : now[o];
    }
    if (!a.kept) return;
    for (int64_t r = 0; r < wait; ++r)
        std::copy_n(sums + (a.S + r) * TILE, tile.n, a.kept + (r * a.B + b) * a.O + tile.o);
}

static void walk_spikes(const Arguments& a, const Spikes* spikes, double terms) {
    const int64_t tiles = (a.O / a.groups + TILE - 1) / TILE * a.groups;
    each(a.B * tiles, terms < 65536 ? 1 : a.threads, [&](int64_t task) {
        const int64_t b = task / tiles;
        const Buffer<real> sums = buffer<real>((a.S + a.K - 1) * TILE);
        send(a, spikes[b], b, tile_of(a, task % tiles), sums.get());
    });
}

// Steps lie side by side in vectors: line i of a sample holds x[r + skip - (K - 1), i] at r, zeros outside.
typedef real Vector __attribute__((vector_size(64)));
typedef real Unaligned __attribute__((vector_size(64), aligned(alignof(real)), may_alias));

struct Lines {
    int64_t rows, padded, stride;
    Lines(const Arguments& a) {
        rows = a.S - a.skip + (a.kept ? a.K - 1 : 0), padded = (rows + LANES - 1) / LANES * LANES;
        stride = (padded + a.K - 1 + LANES - 1) / LANES | 1;  // odd: lines begin in different sets of a cache
        stride *= LANES;
    }
    void fill(const Arguments& a, int64_t b, real* lines) const {
        std::fill_n(lines, stride * a.I, real(0));
        for (int64_t t = 0; t < a.S; ++t) {
            const real* x = a.x + (t * a.B + b) * a.I;
            real* to = lines + t + a.K - 1 - a.skip;
            for (int64_t i = 0; i < a.I; ++i) to[i * stride] = x[i];
        }
    }
};

template <int VECTORS> static void hear_vectors(
    const real* lines, const real* w, const int32_t* from, const int32_t* delay, int64_t elements, int64_t stride,
    int64_t wait, real* sums
) {
    Vector held[VECTORS];
    for (int v = 0; v < VECTORS; ++v) held[v] = *(const Unaligned*)(sums + v * LANES);
    for (int64_t e = 0; e < elements; ++e) {
        const real* line = lines + from[e] * stride + wait - delay[e];
        const real weight = w[e];
        for (int v = 0; v < VECTORS; ++v) held[v] += *(const Unaligned*)(line + v * LANES) * weight;
    }
    for (int v = 0; v < VECTORS; ++v) *(Unaligned*)(sums + v * LANES) = held[v];
}
typedef void (*Hear)(const real*, const real*, const int32_t*, const int32_t*, int64_t, int64_t, int64_t, real*);
static const Hear HEAR[REACH + 1] = {
    nullptr, hear_vectors<1>, hear_vectors<2>, hear_vectors<3>, hear_vectors<4>, hear_vectors<5>, hear_vectors<6>,
    hear_vectors<7>, hear_vectors<8>, hear_vectors<9>, hear_vectors<10>, hear_vectors<11>, hear_vectors<12>,
};

// Outputs o ... of a sample; they are gathered in `sums` [AT_ONCE, padded], so that y is written in runs.
static void hear(const Arguments& a, const Lines& shape, const real* lines, int64_t b, int64_t o, real* sums) {
    const int64_t n = std::min<int64_t>(AT_ONCE, a.O - o), elements = a.I / a.groups * a.count, wait = a.K - 1;
    const int64_t vectors = shape.padded / LANES, parts = (vectors + REACH - 1) / REACH, T = a.S - a.skip;
    std::fill_n(sums, n * shape.padded, real(0));
    for (int64_t r = 0; a.pending && r < std::min(wait, shape.rows); ++r)
        for (int64_t j = 0; j < n; ++j) sums[j * shape.padded + r] = a.pending[(r * a.B + b) * a.O + o + j];
    for (int64_t j = 0; j < n; ++j) {
        const int64_t at = (o + j) * elements;
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t begin = part * vectors / parts, end = (part + 1) * vectors / parts;
            HEAR[end - begin](lines + begin * LANES, a.heard_weight + at, a.heard_from + at, a.heard_delay + at,
                              elements, shape.stride, wait, sums + j * shape.padded + begin * LANES);
        }
    }
    for (int64_t r = 0; r < shape.rows; ++r) {
        real* to = (r < T ? a.y + (r * a.B + b) * a.O : a.kept + ((r - T) * a.B + b) * a.O) + o;
        const real* bias = r < T && a.bias ? a.bias + o : nullptr;
        const real* sum = sums + r;
        for (int64_t j = 0; j < n; ++j, sum += shape.padded) to[j] = bias ? *sum + bias[j] : *sum;
    }
}

static void walk_outputs(const Arguments& a) {
    const Lines shape(a);
    const int64_t blocks = (a.O + AT_ONCE - 1) / AT_ONCE;
    const bool by_sample = a.B >= a.threads;
    const auto sample = [&](int64_t b) {
        const Buffer<real> lines = buffer<real>(shape.stride * a.I);
        shape.fill(a, b, lines.get());
        each(blocks, by_sample ? 1 : a.threads, [&](int64_t block) {
            const Buffer<real> sums = buffer<real>(AT_ONCE * shape.padded);
            hear(a, shape, lines.get(), b, block * AT_ONCE, sums.get());
        });
    };
    each(a.B, by_sample ? a.threads : 1, sample);
}

// Returns the walk that was taken, 1 or 2. The costs, measured in units of a term of a spike (0.5 ns on a Zen 5 core):
// an element costs 1.4, and 0.65 for each vector of steps.
extern "C" int loom_delays(const Arguments* arguments) {
    const Arguments& a = *arguments;
    if (a.form != 2) {
        const Buffer<Spikes> spikes = buffer<Spikes>(a.B);
        each(a.B, a.S * a.I > 4096 ? a.threads : 1, [&](int64_t b) { spikes[b].find(a, b); });
        double found = 0;
        for (int64_t b = 0; b < a.B; ++b) found += (double)spikes[b].first[a.S];
        const double vectors = (double)(Lines(a).padded / LANES), row = (double)(a.O / a.groups * a.count);
        if (a.form == 1 || found <= (double)a.B * (double)a.I * (1.4 + 0.65 * vectors)) {
            walk_spikes(a, spikes.get(), found * row);
            return 1;
        }
    }
    walk_outputs(a);
    return 2;
}
