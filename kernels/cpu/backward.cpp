// Backward kernel on the CPU; source.py fills it in (rules of the placeholders: kernels/template.py). Lists beside
// those of names.py: `flow` leaves that a gradient reaches through the step, `rested` parameters that one reaches
// through the rest state, `q` parameters that are tensors.

// [kernel]
namespace back {
$step
}
$step_back
$rest_back
struct Backward {
    const io* $x;
    const real* $s;
    const real* checkpoints;
    const io* g$y;
    const real* g${s}n;
    io* g$x;
    real* g$s;
    double* g$q;
    $p_type $p;
    int64_t T, lanes, inner, every, threads;
};
struct Sums {
    std::vector<double> g$q;
};

// A gradient pointer is 0 for none, 1 for the constant one, else a tensor.
struct Constants {
    io zeros[BLOCK], ones[BLOCK];
    Constants() {
        for (int l = 0; l < BLOCK; ++l) {
            loom_store(zeros[l], real(0));
            loom_store(ones[l], real(1));
        }
    }
};
static const Constants constants;
LOOM_INLINE const io* loom_gradient(const io* gradient, int64_t at) {
    return (uintptr_t)gradient == 1 ? constants.ones : gradient ? gradient + at : constants.zeros;
}

// All steps of up to BLOCK neighbouring lanes, chunk by chunk from the end.
template <bool full>
static void backward_block(const Backward& a, Sums& sums, int64_t lane, int64_t base, int count) {
    const int n = full ? BLOCK : count;
    io unused[BLOCK];  // takes the gradient of an input that nobody asked for
    (void)sums; (void)unused;
    $load_p
    $hoist
    real ${s}_[BLOCK], ${s}_at[CHUNK][BLOCK], g${s}_[BLOCK];
    real g${q}_[BLOCK]; for (int l = 0; l < n; ++l) g${q}_[l] = 0;
    for (int l = 0; l < n; ++l) g${s}_[l] = a.g${s}n ? a.g${s}n[lane + l] : real(0);
    const int64_t chunk = a.every ? a.every : a.T, saves = a.every ? (a.T - 1) / a.every : 0;
    (void)saves;
    for (int64_t first = (a.T - 1) / chunk * chunk; first >= 0; first -= chunk) {
        const int steps = (int)(first + chunk < a.T ? chunk : a.T - first);
        if (first) {
            std::memcpy(${s}_, a.checkpoints + (($j * saves + first / a.every - 1) * a.lanes + lane), n * sizeof(real));
        } else {
            $start
        }
        // The states before each step of the chunk ...
        std::memcpy(${s}_at[0], ${s}_, n * sizeof(real));
        for (int k = 0; k + 1 < steps; ++k) {
            const int64_t at = base + (first + k) * a.inner;
            const io* ${x}_ = a.$x + at;
            #pragma omp simd
            for (int l = 0; l < n; ++l) {
                real $y;
                real ${s}n;
                back::step(
                    loom_load(${x}_[l]),
                    ${s}_[l],
                    $p_at,
                    $u,
                    $y,
                    ${s}n,
                );
                ${s}_at[k + 1][l] = ${s}n; ${s}_[l] = ${s}n;
            }
        }
        // ... then back through them.
        for (int k = steps - 1; k >= 0; --k) {
            const int64_t at = base + (first + k) * a.inner;
            const io* ${x}_ = a.$x + at;
            const io* g${y}_ = loom_gradient(a.g$y, at);
            io* g${x}_ = a.g$x ? a.g$x + at : unused;
            #pragma omp simd
            for (int l = 0; l < n; ++l) {
                real g${flow}_out;
                step_back(
                    loom_load(${x}_[l]),
                    ${s}_at[k][l],
                    $p_at,
                    loom_load(g${y}_[l]),
                    g${s}_[l],
                    $u,
                    g${flow}_out,
                );
                loom_store(g${x}_[l], $new_gx);
                g${s}_[l] = $new_gs;
                g${flow_q}_[l] += g${flow_q}_out;
            }
        }
    }
    $through_rest
    if (a.g$s) std::memcpy(a.g$s + lane, g${s}_, n * sizeof(real));
    if (sums.g$q.size()) $collect_q;
}
$driver

// [through_rest] A call without initial state: what reaches the rest state goes on to the parameters it is made of.
if (!a.s0) for (int l = 0; l < n; ++l) {
    real g${rested}_out;
    rest_back(
        $p_at,
        g${s}_[l],
        g${rested}_out,
    );
    g${rested_q}_[l] += g${rested_q}_out;
}

// [own_sums] Every thread sums in double for itself ...
Sums& mine = all[thread];
if (a.g$q) mine.g$q.assign($q_size, 0.0);

// [add_sums] ... and the sums of one parameter are added in the order of the threads.
if (a.g$q) for (int64_t i = 0; i < $q_size; ++i) {
    double sum = 0;
    for (const Sums& part : all) sum += part.g$q[i];
    a.g$q[i] = sum;
}
