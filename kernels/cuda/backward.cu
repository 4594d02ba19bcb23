// Backward kernel on the GPU; backward.py fills it in (rules of the placeholders: kernels/template.py).
//
// Lists beside those of names.py: `gy` output gradients that arrive as tensors, `member` the tensors read at every step,
// `want_*` leaves whose gradients are asked for, `flow` leaves that a gradient reaches through the step, `rested`
// parameters that one reaches through the rest state.

// [kernel]
$head
struct Backward {
    const io* $x;
    const real* $s;
    const real* checkpoints;
    const io* g$y;
    const real* g${s}n;
    io* g$x;
    real* g${s}_;
    real* g$p;
    $p_type $p;
    long long T, lanes, inner, walk;
};
$functions
// What K steps read: the loads are issued together, long before they are used.
struct Chunk {
    Pack<io, V> $member[K];
};

extern "C" __global__ void __launch_bounds__($threads) backward(const Backward a) {
    $walk
    real sum_$want_p[$width] = {};
    for (index_t i = self; i < vectors; i += walk) {
        const index_t lane = i * V;
        $base
        $own
        real $s[V], g$s[V];
        $arrive
        $body
        $through_rest
        _Pragma("unroll") for (int v = 0; v < V; ++v) a.g${want_s}_[lane + v] = g$want_s[v];
    }
    $partial_sum
}

// [arrive]
_Pragma("unroll") for (int v = 0; v < V; ++v) {
    g$s[v] = $final_gs;
}

// [single] All steps fit one chunk.
constexpr int first = 0;
Chunk now;
_Pragma("unroll") for (int k = 0; k < K; ++k) {
    now.$member[k] = loom_read<io, V>(a.$member + base + (first + k) * step_stride);
}
{
    $chunk
}

// [long] The ragged chunk at the end first, then whole chunks without a test per step.
// Loads past the end repeat the last step, and what comes of them is not used.
int first = (T - 1) / K * K;
Chunk now;
_Pragma("unroll") for (int k = 0; k < K; ++k) {
    now.$member[k] = loom_read<io, V>(a.$member + base + (first + k < T ? first + k : T - 1) * step_stride);
}
if (T % K) {
    $ahead
    $ragged_chunk
    now = ahead;
    first -= K;
}
for (; first >= 0; first -= K) {
    $ahead
    $chunk
    now = ahead;
}

// [ahead]
Chunk ahead;
if (first) {
    _Pragma("unroll") for (int k = 0; k < K; ++k) {
        ahead.$member[k] = loom_read<io, V>(a.$member + base + (first - K + k) * step_stride);
    }
}

// [chunk] One chunk of steps; `guard` leaves out steps past the end.
// The states before each step, then back through them:
$start
real ${s}_at[K][V];
_Pragma("unroll") for (int v = 0; v < V; ++v) ${s}_at[0][v] = $s[v];
$recompute
#pragma unroll
for (int k = K - 1; k >= 0; --k) $guard {
    Pack<io, V> g${want_x}_;
    #pragma unroll
    for (int v = 0; v < V; ++v) {
        real ${flow}_out;
        step_back(
            loom_load(now.$x[k].e[v]),
            ${s}_at[k][v],
            $p_at,
            loom_load(now.$gy[k].e[v]),
            g$s[v],
            $hoisted_at,
            ${flow}_out,
        );
        loom_store(g${want_x}_.e[v], $new_gx);
        g$s[v] = $new_gs;
        sum_$flow_p[$flow_entry] += ${flow_p}_out;
    }
    loom_write<io, V>(a.g$want_x + base + (first + k) * step_stride, g${want_x}_);
}

// [restart] State at the start of the chunk: kept by forward, or that of the first step.
if (first) {
    const long long saves = (T - 1) / K;
    loom_read_real<V>(a.checkpoints + ($j * saves + first / K - 1) * a.lanes + lane, $s);
} else {
    $start
}

// [recompute] Past the end of a ragged chunk the states come from repeated inputs and are not used.
_Pragma("unroll") for (int k = 0; k + 1 < K; ++k)
    _Pragma("unroll") for (int v = 0; v < V; ++v)
        step(
            loom_load(now.$x[k].e[v]),
            ${s}_at[k][v],
            $p_at,
            $hoisted_at,
            ${s}_at[k + 1 < K ? k + 1 : K - 1][v],
        );

// [through_rest] A call without initial state: what reaches the rest state goes on to the parameters it is made of.
_Pragma("unroll") for (int v = 0; v < V; ++v) {
    real ${rested}_out;
    rest_back(
        $p_at,
        g$s[v],
        ${rested}_out,
    );
    sum_$rested[$rested_entry] += ${rested}_out;
}
