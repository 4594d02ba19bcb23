// Parts of both CPU kernels; source.py fills them in (rules of the placeholders: kernels/template.py).

// [file] The whole translation unit.
// $program
typedef $real real;
$prelude
typedef $io io;
enum { BLOCK = $block, CHUNK = $chunk };
$forward
$backward

// [start] State of the block before the first step: given, or at rest.
if (a.s0) {
    for (int l = 0; l < n; ++l) {
        ${s}_[l] = a.$s[lane + l];
    }
} else {
    for (int l = 0; l < n; ++l)
        rest(
            $p_at,
            ${s}_[l],
        );
}

// [driver] The exported function.
// Threads get runs of blocks in a fixed order, so that sums are reproducible. The lanes of one row (`inner` of them)
// are neighbours in memory, and a block never crosses the end of a row. The walk is a macro because a single thread
// runs it outside OpenMP, whose threads do not survive a fork.
#define LOOM_RUN_$kernel \
    const int64_t rows = a.lanes / a.inner, blocks = (a.inner + BLOCK - 1) / BLOCK, total = rows * blocks; \
    for (int64_t i = total * thread / a.threads; i < total * (thread + 1) / a.threads; ++i) { \
        const int64_t row = i / blocks, start = (i % blocks) * BLOCK, left = a.inner - start; \
        const int64_t lane = row * a.inner + start, base = row * a.T * a.inner + start; \
        if (left >= BLOCK) ${kernel}_block<true>(a, $sums lane, base, BLOCK); \
        else ${kernel}_block<false>(a, $sums lane, base, (int)left); \
    }
extern "C" void loom_$kernel(const $struct* arguments) {
    const $struct& a = *arguments;
    $before
    if (a.threads == 1) { const int thread = 0; $each_thread LOOM_RUN_$kernel }
    else {
        #pragma omp parallel for schedule(static, 1) num_threads(a.threads)
        for (int thread = 0; thread < (int)a.threads; ++thread) { $each_thread LOOM_RUN_$kernel }
    }
    $after
}
