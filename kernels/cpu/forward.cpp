// Forward kernel on the CPU; source.py fills it in (rules of the placeholders: kernels/template.py).

// [kernel]
struct Forward {
    const io* $x;
    io* $y;
    const real* $s;
    real* ${s}n;
    real* checkpoints;
    $p_type $p;
    int64_t T, lanes, inner, every, threads;
};
$step
$rest
// All steps of up to BLOCK neighbouring lanes: their state stays in first-level cache, and the loops over them are
// vectorised. `full` makes the trip count a constant.
template <bool full> static void forward_block(const Forward& a, int64_t lane, int64_t base, int count) {
    const int n = full ? BLOCK : count;
    $load_p
    $hoist
    real ${s}_[BLOCK];
    $start
    const int64_t saves = a.every ? (a.T - 1) / a.every : 0;
    (void)saves;
    for (int64_t t = 0; t < a.T; ++t) {
        if (a.every && t && t % a.every == 0) {
            std::memcpy(a.checkpoints + (($j * saves + t / a.every - 1) * a.lanes + lane), ${s}_, n * sizeof(real));
        }
        const int64_t at = base + t * a.inner;
        const io* ${x}_ = a.$x + at;
        io* ${y}_ = a.$y + at;
        #pragma omp simd
        for (int l = 0; l < n; ++l) {
            real $y;
            real ${s}n;
            step(
                loom_load(${x}_[l]),
                ${s}_[l],
                $p_at,
                $u,
                $y,
                ${s}n,
            );
            loom_store(${y}_[l], $y);
            ${s}_[l] = ${s}n;
        }
    }
    if (a.${s}n) std::memcpy(a.${s}n + lane, ${s}_, n * sizeof(real));
}
$driver
