// Parts of both CUDA kernels; writer.py fills them in (rules of the placeholders: kernels/template.py).

// [head] Types and sizes.
// $program
typedef $real real; typedef $index index_t;
$prelude
typedef $io io; enum { V = $vector, K = $chunk };

// [walk] Which vectors of lanes this thread owns, and the values that all lanes share.
$steps
const long long step_stride = a.inner;
const index_t vectors = (index_t)(a.lanes / V), walk = (index_t)a.walk;
const index_t self = blockIdx.x * (index_t)blockDim.x + threadIdx.x;
if (self >= walk) return;
const real $shared = $shared_value;
$line
const real $node = $node_value;
const $divisor_type $divisor = $divisor_type::of($divisor_value);
const index_t entry = self * V % (index_t)a.$first_channel.count;
real ${channel}_[V]; _Pragma("unroll") for (int v = 0; v < V; ++v) ${channel}_[v] = __ldg(a.$channel.values + entry + v);

// [flat] Time is the slowest axis: the lanes of one step are neighbours.
const long long base = lane;

// [rows] `inner` lanes are neighbours, then come the other steps of the same row.
const index_t row = lane / (index_t)a.inner;
const long long base = (long long)row * a.T * a.inner + (lane - row * (index_t)a.inner);

// [own] Parameters with one value per lane.
real ${own}_[V]; loom_gather<V>(a.$own, lane, ${own}_);

// [hoisted] What follows from them alone, once per lane instead of once per step.
real ${node}_[V];
$divisor_type ${divisor}_[V];
_Pragma("unroll") for (int v = 0; v < V; ++v) {
    $line
    ${node}_[v] = $node_value;
    ${divisor}_[v] = $divisor_type::of($divisor_value);
}

// [given] State before the first step, from the caller ...
loom_read_real<V>(a.$s + lane, $s);

// [resting] ... or at rest.
_Pragma("unroll") for (int v = 0; v < V; ++v)
    rest(
        $p_at,
        $s[v],
    );
