// Forward kernel on the GPU; forward.py fills it in (rules of the placeholders: kernels/template.py).

// [kernel]
$head
struct Forward {
    const io* $x;
    io* $y;
    const real* $s;
    real* ${s}n;
    real* checkpoints;
    $p_type $p;
    long long T, lanes, inner, walk;
};
$step
$rest
// Inputs of K steps: their loads are issued together, long before they are used.
struct Chunk {
    Pack<io, V> $x[K];
};

extern "C" __global__ void __launch_bounds__($threads) forward(const Forward a) {
    $walk
    for (index_t i = self; i < vectors; i += walk) {
        const index_t lane = i * V;
        $base
        $own
        real $s[V];
        $body
        #pragma unroll
        for (int v = 0; v < V; ++v) {
            a.${final}n[lane + v] = $final[v];
        }
    }
}

// [single] All steps fit one chunk.
constexpr int first = 0;
Chunk now;
_Pragma("unroll") for (int k = 0; k < K; ++k) {
    now.$x[k] = loom_read<io, V>(a.$x + base + (first + k) * step_stride);
}
$start
$chunk

// [long] Whole chunks without a test per step, then the ragged rest.
// Loads past the end repeat the last step, and what comes of them is not used.
int first = 0;
Chunk now;
_Pragma("unroll") for (int k = 0; k < K; ++k) {
    now.$x[k] = loom_read<io, V>(a.$x + base + (first + k < T ? first + k : T - 1) * step_stride);
}
$start
for (; first + K <= T; first += K) {
    Chunk ahead;
    _Pragma("unroll") for (int k = 0; k < K; ++k) {
        ahead.$x[k] = loom_read<io, V>(a.$x + base + (first + K + k < T ? first + K + k : T - 1) * step_stride);
    }
    $chunk
    now = ahead;
}
if (first < T) {
    $ragged_chunk
}

// [chunk] One chunk of steps; `guard` leaves out steps past the end.
$save
#pragma unroll
for (int k = 0; k < K; ++k) $guard {
    Pack<io, V> ${y}_;
    #pragma unroll
    for (int v = 0; v < V; ++v) {
        real $y;
        real ${s}n;
        step(
            loom_load(now.$x[k].e[v]),
            $s[v],
            $p_at,
            $hoisted_at,
            $y,
            ${s}n,
        );
        loom_store(${y}_.e[v], $y);
        $s[v] = ${s}n;
    }
    loom_write<io, V>(a.$y + base + (first + k) * step_stride, ${y}_);
}

// [save] Backward restarts every chunk but the first from here.
if (first) {
    const long long saves = (T - 1) / K;
    _Pragma("unroll") for (int v = 0; v < V; ++v) a.checkpoints[($j * saves + first / K - 1) * a.lanes + lane + v] = $s[v];
}
