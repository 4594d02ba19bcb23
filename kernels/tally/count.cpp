// Counting on the CPU; cpu.py fills it in (rules of the placeholders: kernels/template.py).

// [file] The whole translation unit for one storage type.
typedef $real real;
$prelude
typedef $io io;
enum { SLOTS = $slots, SMALL = $small, FIRST = SMALL + 1, ROOM = SLOTS - FIRST, CHUNK = 1024, PIECE = 1 << 16 };
enum { OVERFLOWED, NON_FINITE, NEGATIVE, BEYOND_ONE };

struct Arguments {
    const io* x;
    const int32_t *fan, *pruned;
    const real *scale, *shift;
    int64_t *events, *terms, *pruned_terms, *levels, *keys;
    int32_t* flags;
    int64_t rows, size, fan_count, fan_repeat, pruned_count, affine_count, affine_repeat, threads;
};

// Elements are compared as bits: quick for half types, and right for subnormal numbers even where the processor is set
// to take them for zero.
template <int bytes> struct Bits;
template <> struct Bits<2> { typedef uint16_t __attribute__((may_alias)) type; };
template <> struct Bits<4> { typedef uint32_t __attribute__((may_alias)) type; };
template <> struct Bits<8> { typedef uint64_t __attribute__((may_alias)) type; };
typedef Bits<sizeof(io)>::type io_bits;
typedef Bits<sizeof(real)>::type real_bits;

// Element j of a row uses entry (j / repeat) % count. Short runs would cut the vectorised loops into small pieces, so
// such maps are written out first.
template <class E> struct Map {
    const E* values;
    int64_t count, repeat;
    std::vector<E> written;

    Map(const E* v, int64_t c, int64_t r) : values(v), count(c), repeat(r) {
        if (!v || (r == 1 ? c >= CHUNK : r >= CHUNK / 16)) return;
        const int64_t copies = c * r < CHUNK ? CHUNK / (c * r) : 1;
        written.reserve(copies * c * r);
        for (int64_t k = 0; k < copies; ++k)
            for (int64_t e = 0; e < c; ++e) written.insert(written.end(), r, v[e]);
        values = written.data(), count = copies * c * r, repeat = 1;
    }
    bool each() const { return values && repeat == 1; }
    const E* at(int64_t j) const { return values ? values + (repeat == 1 ? j % count : j / repeat) : nullptr; }
    int64_t left(int64_t j) const { return !values ? CHUNK : repeat == 1 ? count - j % count : repeat - j % repeat; }
};

// The fast path: one vectorised pass over at most CHUNK elements. No `omp simd`: GCC 12 would keep the sums in memory.
struct Sums { int64_t events, ones, terms, pruned; };
template <class Word, bool with_ones, bool with_fan, bool with_pruned>
static Sums count(const void* data, int n, uint64_t one_bits, const int32_t* fan, const int32_t* pruned) {
    const typename Bits<sizeof(Word)>::type* x = (const typename Bits<sizeof(Word)>::type*)data;
    const Word one = (Word)one_bits;
    Word events = 0, ones = 0;  // at most CHUNK, which fits the narrowest element
    int64_t terms = 0, kept = 0;
    for (int i = 0; i < n; ++i) {
        const bool on = (Word)(x[i] << 1) != 0;
        events += on;
        if (with_ones) ones += x[i] == one;
        if (with_fan) terms += on ? fan[i] : 0;
        if (with_pruned) kept += on ? pruned[i] : 0;
    }
    return {(int64_t)events, (int64_t)ones, terms, kept};
}
typedef Sums (*Count)(const void*, int, uint64_t, const int32_t*, const int32_t*);
template <class Word, bool with_ones> static Count pick(bool fan, bool pruned) {
    return fan ? pruned ? count<Word, with_ones, true, true> : count<Word, with_ones, true, false>
               : pruned ? count<Word, with_ones, false, true> : count<Word, with_ones, false, false>;
}

struct Plan {
    const Arguments& a;
    const Map<int32_t> fan, pruned;
    const Map<real> scale, shift;
    uint64_t one;
    Count count;

    Plan(const Arguments& a)
        : a(a), fan(a.fan, a.fan_count, a.fan_repeat), pruned(a.pruned, a.pruned_count, 1),
          scale(a.scale, a.affine_count, a.affine_repeat), shift(a.shift, a.affine_count, a.affine_repeat) {
        io value;
        loom_store(value, real(1));
        one = *(const io_bits*)&value;
        count = a.scale ? pick<real_bits, false>(fan.each(), a.pruned)
              : a.levels ? pick<io_bits, true>(fan.each(), a.pruned) : pick<io_bits, false>(fan.each(), a.pruned);
    }
};

static bool is_set(const Arguments& a, int flag) { return __atomic_load_n(a.flags + flag, __ATOMIC_RELAXED); }
static void set(const Arguments& a, int flag) {
    if (!is_set(a, flag)) __atomic_store_n(a.flags + flag, 1, __ATOMIC_RELAXED);
}

// The slot of a value, which the table takes in if it is new; 0 if it has none. Threads race for empty slots, and the
// loser of a slot looks what the winner wrote.
static int slot_of(const Arguments& a, double value) {
    const double magnitude = std::fabs(value);
    if (value < 0) set(a, NEGATIVE);
    if (!(magnitude - magnitude == 0)) return set(a, NON_FINITE), 0;
    if (magnitude <= SMALL && magnitude == (int)magnitude) return (int)magnitude;
    if (is_set(a, OVERFLOWED)) return 0;
    const int64_t bits = loom_bits<int64_t>(magnitude);
    const uint64_t start = (((uint64_t)bits * ${multiplier}u) >> 32) * ROOM >> 32;
    for (int probe = 0; probe < ROOM; ++probe) {
        const int slot = FIRST + (int)((start + probe) % ROOM);
        int64_t held = __atomic_load_n(a.keys + slot, __ATOMIC_RELAXED);
        if (!held && __atomic_compare_exchange_n(a.keys + slot, &held, bits, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return slot;
        if (held == bits) return slot;
    }
    return set(a, OVERFLOWED), 0;
}

// With the table full only flags and small integers are of interest: does a chunk need a closer look for the latter?
static bool has_small_integers(const Arguments& a, const io* x, int n) {
    int negative = 0, strange = 0, small = 0;
    for (int i = 0; i < n; ++i) {
        const real v = loom_load(x[i]), m = loom_abs(v);
        negative |= v < 0;
        strange |= !(m - m == 0);
        small |= (m >= 1) & (m <= SMALL) & (loom_round(m) == m);
    }
    if (negative) set(a, NEGATIVE);
    if (strange) set(a, NON_FINITE);
    return small;
}

// The slow path: a chunk with values other than 0 and 1. All non-zero ones may be the same as the one before (scaled
// spikes), else they are looked up one after the other.
struct Last { io_bits bits; int slot; };
static void add_levels(
    const Plan& p, const io* x, int n, const int32_t* fan, const Sums& found, int64_t* levels, Last& last
) {
    const io_bits* bits = (const io_bits*)x;
    if (is_set(p.a, OVERFLOWED) && !has_small_integers(p.a, x, n)) return;
    if (last.slot && count<io_bits, true, false, false>(x, n, last.bits, fan, fan).ones == found.events) {
        levels[last.slot] += fan ? found.terms : found.events;
        return;
    }
    int on = 0, at[CHUNK];
    for (int i = 0; i < n; ++i) {  // without a branch that the processor would have to guess
        at[on] = i;
        on += (io_bits)(bits[i] << 1) != 0;
    }
    const bool each = p.fan.each();
    for (int k = 0; k < on; ++k) {
        const int i = at[k];
        if (bits[i] != last.bits) last = {bits[i], slot_of(p.a, (double)loom_load(x[i]))};
        if (last.slot) levels[last.slot] += !fan ? 1 : fan[each ? i : 0];
    }
}

static Sums count_chunk(const Plan& p, int64_t row, int64_t j, int n, int64_t* levels, Last& last) {
    const io* x = p.a.x + row * p.a.size + j;
    const int32_t *fan = p.fan.at(j), *pruned = p.pruned.at(j);
    const void* data = x;
    real u[CHUNK];
    if (p.scale.values) {
        const real *scale = p.scale.at(j), *shift = p.shift.at(j);
        if (p.scale.each()) for (int i = 0; i < n; ++i) u[i] = loom_load(x[i]) * scale[i] + shift[i];
        else for (int i = 0; i < n; ++i) u[i] = loom_load(x[i]) * *scale + *shift;
        data = u;
    }
    Sums found = p.count(data, n, p.one, fan, pruned);
    if (fan && !p.fan.each()) found.terms = found.events * *fan;
    if (!p.a.levels) return found;
    if (found.events == found.ones) levels[1] += fan ? found.terms : found.events;
    else set(p.a, BEYOND_ONE), add_levels(p, x, n, fan, found, levels, last);
    return found;
}

// Part of a row. `alone`: no other thread works on the row.
static void add(int64_t* to, int64_t n) { __atomic_fetch_add(to, n, __ATOMIC_RELAXED); }
static void count_piece(const Plan& p, int64_t row, int64_t begin, int64_t end, bool alone) {
    const Arguments& a = p.a;
    int64_t own[SLOTS], *levels = a.levels ? a.levels + row * SLOTS : nullptr;
    if (levels && !alone) levels = (int64_t*)std::memset(own, 0, sizeof own);
    Last last = {0, 0};
    Sums sum = {0, 0, 0, 0};
    for (int64_t j = begin, n; j < end; j += n) {
        n = std::min({(int64_t)CHUNK, end - j, p.fan.left(j), p.pruned.left(j), p.scale.left(j)});
        const Sums found = count_chunk(p, row, j, (int)n, levels, last);
        sum.events += found.events, sum.terms += found.terms, sum.pruned += found.pruned;
    }
    add(a.events + row, sum.events);
    if (a.terms) add(a.terms + row, sum.terms);
    if (a.pruned_terms) add(a.pruned_terms + row, sum.pruned);
    if (levels == own)
        for (int slot = 1; slot < SLOTS; ++slot) if (own[slot]) add(a.levels + row * SLOTS + slot, own[slot]);
}

// A task is a piece of a long row, or several short rows. A single thread works outside OpenMP, whose threads do not
// survive a fork.
extern "C" void loom_tally(const Arguments* arguments) {
    const Arguments& a = *arguments;
    const Plan p(a);
    const int64_t pieces = (a.size + PIECE - 1) / PIECE, group = std::max<int64_t>(1, PIECE / a.size);
    const int64_t tasks = (a.rows + group - 1) / group * pieces;
    const auto run = [&](int64_t task) {
        const int64_t row = task / pieces * group, begin = task % pieces * PIECE, end = std::min(begin + PIECE, a.size);
        for (int64_t r = row; r < std::min(row + group, a.rows); ++r) count_piece(p, r, begin, end, pieces == 1);
    };
    if (a.threads == 1) {
        for (int64_t task = 0; task < tasks; ++task) run(task);
    } else {
        #pragma omp parallel for schedule(dynamic) num_threads(a.threads)
        for (int64_t task = 0; task < tasks; ++task) run(task);
    }
}
