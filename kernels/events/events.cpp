// Loops over events that are ordered by time: counting, search for times, filters. Plain C interface; the caller has
// checked lengths, and coordinates of columns (not of stored words, which come from a file and are checked here).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

extern "C" {

// Event numbers [B, K] of the first event of recording b at or after times[b, k].
void loom_edges(const int64_t* t, const int64_t* offsets, const int64_t* times, int64_t B, int64_t K, int64_t* edges) {
    for (int64_t b = 0; b < B; ++b) {
        const int64_t* first = t + offsets[b];
        const int64_t* last = t + offsets[b + 1];
        for (int64_t k = 0; k < K; ++k) edges[b * K + k] = std::lower_bound(first, last, times[b * K + k]) - t;
    }
}

// Event numbers [B, K] of the first word of recording b, words begin[b] ... end[b] - 1, at or after times[b, k].
void loom_word_edges(const int64_t* words, const int64_t* begin, const int64_t* end, const int64_t* times, int64_t B,
                     int64_t K, int64_t* edges) {
    for (int64_t b = 0; b < B; ++b) {
        const int64_t *first = words + begin[b], *last = words + end[b];
        for (int64_t k = 0; k < K; ++k) {
            const int64_t time = std::max<int64_t>(times[b * K + k], 0);
            // times have 32 bits: a later one would not fit into a word
            edges[b * K + k] = (time > UINT32_MAX ? last : std::lower_bound(first, last, time << 31)) - words;
        }
    }
}

// counts [planes, 2, H, W] of events begin[s] ... end[s] - 1, in plane[s]; no plane occurs twice. Each is set to 0 just
// before, so that it is in the cache when its events, which follow one another, are counted.
void loom_count(const int16_t* x, const int16_t* y, const uint8_t* p, const int64_t* begin, const int64_t* end,
                const int64_t* plane, int64_t segments, int64_t H, int64_t W, int64_t threads, int32_t* counts) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t s = 0; s < segments; ++s) {
        int32_t* to = counts + plane[s] * 2 * H * W;
        std::memset(to, 0, 2 * H * W * sizeof(int32_t));
        const int32_t h = (int32_t)H, w = (int32_t)W;
        for (int64_t i = begin[s]; i < end[s]; ++i) ++to[(p[i] * h + y[i]) * w + x[i]];
    }
}

// voxels [T, B, H, W] of events edges[b, k] ... edges[b, k + 1] - 1, which lie between instants k and k + 1, of T over
// spans[b] us; edges: [B, T + 1]. Each is shared by the two in whole multiples of 1 / 2^20. `parts` threads take
// instants that follow one another; what the one in front leaves to its first, a part computes again. A voxel's sum
// fits for up to 2^43 events. room: [parts, 2, H, W].
void loom_voxels(const int64_t* t, const int16_t* x, const int16_t* y, const uint8_t* p, const int64_t* edges,
                 const int64_t* spans, int64_t start, int64_t B, int64_t T, int64_t H, int64_t W, int64_t parts,
                 int64_t* room, float* voxels) {
    const int64_t unit = 1 << 20, plane = H * W;
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
    for (int64_t part = 0; part < parts; ++part) {
        int64_t *here = room + part * 2 * plane, *next = here + plane;
        std::fill(here, here + 2 * plane, 0);
        const int64_t first = B * T * part / parts, last = B * T * (part + 1) / parts;
        for (int64_t s = first - (first % T > 0); s < last; ++s) {
            const int64_t b = s / T, k = s % T, span = spans[b], *edge = edges + b * (T + 1) + k;
            const double scale = (double)unit / (double)span;
            for (int64_t i = edge[0]; i < edge[1]; ++i) {
                const int64_t behind = (t[i] - start) * (T - 1) - k * span;  // of span: how far behind instant k
                int64_t right = (int64_t)((double)behind * scale);  // wrong by 1 at most, and the remainder tells
                const int64_t rest = behind * unit - right * span;
                right += (rest >= span) - (rest < 0);
                const int64_t pixel = y[i] * W + x[i], sign = p[i] * 2 - 1;
                here[pixel] += sign * (unit - right);
                next[pixel] += sign * right;  // 0 at the last instant
            }
            float* to = voxels + (k * B + b) * plane;
            for (int64_t i = 0; i < plane && s >= first; ++i) to[i] = (float)((double)here[i] / unit);
            std::fill(here, here + plane, 0);
            std::swap(here, next);
        }
    }
}

// The same for stored words, t << 31 | y << 16 | x << 1 | p. Returns how many lie off the sensor (not counted).
int64_t loom_count_words(const int64_t* words, const int64_t* begin, const int64_t* end, const int64_t* plane,
                         int64_t segments, int64_t H, int64_t W, int64_t threads, int32_t* counts) {
    int64_t strays = 0;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1) reduction(+ : strays)
    for (int64_t s = 0; s < segments; ++s) {
        int32_t* to = counts + plane[s] * 2 * H * W;
        std::memset(to, 0, 2 * H * W * sizeof(int32_t));
        for (int64_t i = begin[s]; i < end[s]; ++i) {
            const uint32_t low = (uint32_t)(words[i] & 0x7fffffff);
            const uint32_t x = low >> 1 & 0x7fff, y = low >> 16;
            if (x < (uint32_t)W && y < (uint32_t)H) {
                ++to[((low & 1) * (uint32_t)H + y) * (uint32_t)W + x];
            } else {
                ++strays;
            }
        }
    }
    return strays;
}

// How many words begin ... end - 1 of one recording lie off the sensor, before time 0 or before the word in front.
int64_t loom_misplaced(const int64_t* words, int64_t begin, int64_t end, int64_t H, int64_t W) {
    int64_t wrong = 0, before = 0;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t t = words[i] >> 31;
        wrong += ((words[i] >> 1 & 0x7fff) >= W) | ((words[i] >> 16 & 0x7fff) >= H) | (t < before);
        before = t;
    }
    return wrong;
}

// The words of recordings b, begin[b] ... end[b] - 1, one after the other as columns; their times count from start[b].
// Returns how many events lie off the sensor, before time 0 or before the event in front of them.
int64_t loom_unpack(const int64_t* words, const int64_t* begin, const int64_t* end, const int64_t* start, int64_t B,
                    int64_t H, int64_t W, int64_t* t, int16_t* x, int16_t* y, uint8_t* p) {
    int64_t wrong = 0;
    for (int64_t b = 0; b < B; ++b) {
        const int64_t events = end[b] - begin[b], *from = words + begin[b];
        for (int64_t i = 0; i < events; ++i) {
            t[i] = (int64_t)((uint64_t)(from[i] >> 31) + (uint64_t)start[b]);  // a damaged start may be any number
            x[i] = (int16_t)(from[i] >> 1 & 0x7fff);
            y[i] = (int16_t)(from[i] >> 16 & 0x7fff);
            p[i] = (uint8_t)(from[i] & 1);
            wrong += (x[i] >= W) | (y[i] >= H) | (t[i] < 0);
        }
        for (int64_t i = 1; i < events; ++i) wrong += t[i] < t[i - 1];
        t += events, x += events, y += events, p += events;
    }
    return wrong;
}

// exponents [K, cells] of a time surface: -(instants[k] - last) / tau, where `last` [cells] is when a polarity of a
// pixel fired, up to event edges[k + 1] - 1; it goes on from what it holds. Below 0 is never: -infinity.
void loom_surface(const int64_t* t, const int16_t* x, const int16_t* y, const uint8_t* p, const int64_t* edges,
                  const int64_t* instants, int64_t K, double tau, int64_t H, int64_t W, int64_t* last,
                  double* exponents) {
    const int64_t cells = 2 * H * W;
    for (int64_t k = 0; k < K; ++k) {
        for (int64_t i = edges[k]; i < edges[k + 1]; ++i) last[(p[i] * H + y[i]) * W + x[i]] = t[i];
        double* to = exponents + k * cells;
        for (int64_t c = 0; c < cells; ++c) to[c] = last[c] < 0 ? -INFINITY : -(double)(instants[k] - last[c]) / tau;
    }
}

// keep[i] = 1 unless the last kept event of the pixel is less than `period` microseconds old. room: [H, W].
void loom_refractory(const int64_t* t, const int16_t* x, const int16_t* y, const int64_t* offsets, int64_t B,
                     int64_t period, int64_t H, int64_t W, int64_t* room, uint8_t* keep) {
    for (int64_t b = 0; b < B; ++b) {
        std::fill(room, room + H * W, -1);
        for (int64_t i = offsets[b]; i < offsets[b + 1]; ++i) {
            int64_t& last = room[y[i] * W + x[i]];  // when the pixel fired
            const bool kept = last < 0 || t[i] - last >= period;
            keep[i] = kept;
            if (kept) last = t[i];
        }
    }
}

// keep[i] = 1 if one of the eight neighbours of the pixel had an event at most `window` microseconds ago, before
// event i. room: [H + 2, W + 2]: a border saves the tests for the sensor's edge.
void loom_background(const int64_t* t, const int16_t* x, const int16_t* y, const int64_t* offsets, int64_t B,
                     int64_t window, int64_t H, int64_t W, int64_t* room, uint8_t* keep) {
    const int64_t row = W + 2, long_ago = -1;
    for (int64_t b = 0; b < B; ++b) {
        std::fill(room, room + (H + 2) * row, long_ago);
        for (int64_t i = offsets[b]; i < offsets[b + 1]; ++i) {
            int64_t* here = room + (y[i] + 1) * row + x[i] + 1;
            const int64_t *up = here - row, *down = here + row;
            int64_t latest = std::max(std::max(up[-1], up[0]), std::max(up[1], here[-1]));
            latest = std::max(latest, std::max(std::max(here[1], down[-1]), std::max(down[0], down[1])));
            keep[i] = latest > long_ago && t[i] - latest <= window;
            *here = t[i];
        }
    }
}
}
