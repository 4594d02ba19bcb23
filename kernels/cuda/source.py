"""CUDA source of the forward and backward kernel of a program, for one tuning.

A thread owns `V` neighbouring lanes and runs them through all time steps with the state in registers. Time is walked in
chunks of `K` unrolled steps whose loads are issued together, the next chunk's ahead of the current one's arithmetic.
Backward walks the chunks from the end: state at the start of the chunk (kept by forward), recomputed states inside, then
back through the derived step. Gradients of tensor parameters are summed per thread over a walk whose stride is a
multiple of the parameter's period, and written as one partial sum per thread: no atomics, the same bits every run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from spikeloom.kernels.cpu.source import STORAGE
from spikeloom.kernels.printer import backward_tape, function, invariants, statements
from spikeloom.kernels.program import Program, lookup
from spikeloom.kernels.tape import Tape

_PRELUDE = Path(__file__).with_name("prelude.cuh")
STORAGE_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Tuning:
    """What is fixed at compile time beside the program.

    Attributes:
        dtype: torch dtype name of inputs and outputs.
        kinds: one letter per parameter: s(calar by value), u(niform tensor), l(ane: one value per period entry).
        steps: T if known at compile time (short sequences), else 0.
        chunk: K, steps unrolled together; checkpoints are kept every `chunk` steps when T > chunk.
        vector: V, lanes of a thread.
        threads: threads of a block.
        flat: time is the slowest axis in memory.
        wide: lanes need 64-bit indices.
        given: an initial state is passed.
    """

    dtype: str
    kinds: str
    steps: int
    chunk: int
    vector: int
    threads: int
    flat: bool
    wide: bool
    given: bool


class _Writer:
    """Names and repeated fragments of one program under one tuning."""

    def __init__(self, program: Program, tuning: Tuning, tape: Tape, roots: list[int]) -> None:
        self.program = program
        self.tuning = tuning
        self.tape = tape
        self.hoisted = invariants(tape, roots, program.params, len(program.tape.nodes))
        self.x = [f"x{i}" for i in range(len(program.inputs))]
        self.y = [f"y{i}" for i in range(len(program.outputs))]
        self.s = [f"s{j}" for j in range(len(program.states))]
        self.p = [f"p{k}" for k in range(len(program.params))]
        self.leaf = {
            **dict(zip(program.inputs, self.x, strict=True)),
            **dict(zip(program.states, self.s, strict=True)),
            **dict(zip(program.params, self.p, strict=True)),
            **{f"gy{i}": f"gy{i}" for i in range(len(self.y))},
            **{f"gs{j}": f"gs{j}" for j in range(len(self.s))},
        }

    def kind(self, param: str) -> str:
        return self.tuning.kinds[self.p.index(param)]

    def param_fields(self) -> str:
        kinds = {"s": "double {0};", "u": "const real* {0};", "l": "LaneParam {0};"}
        return " ".join(kinds[k].format(p) for p, k in zip(self.p, self.tuning.kinds, strict=True))

    def params_once(self) -> str:
        """Load parameters that all lanes share, and compute what follows from them alone."""
        values = {"s": "const real {0} = (real)a.{0};", "u": "const real {0} = __ldg(a.{0});"}
        loads = [values[k].format(p) for p, k in zip(self.p, self.tuning.kinds, strict=True) if k in values]
        nodes, divisors = self._hoisted(per_lane=False)
        lines, results = statements(self.tape, [*nodes, *divisors], self.leaf)
        made = [f"const real {u} = {r};" for u, r in zip(nodes.values(), results, strict=False)]
        made += [
            f"const Divisor {d} = loom_divisor({r});"
            for d, r in zip(divisors.values(), results[len(nodes) :], strict=True)
        ]
        return "\n    ".join([*loads, *lines, *made])

    def params_lane(self) -> str:
        """The same for parameters with one value per lane: arrays over the `V` lanes of the thread."""
        loads = " ".join(
            f"real {p}_[V]; loom_gather<V>(a.{p}, lane, {p}_);"
            for p, k in zip(self.p, self.tuning.kinds, strict=True)
            if k == "l"
        )
        nodes, divisors = self._hoisted(per_lane=True)
        if not nodes and not divisors:
            return loads
        at = {p: f"{p}_[v]" if k == "l" else p for p, k in zip(self.p, self.tuning.kinds, strict=True)}
        leaf = {name: at.get(c, c) for name, c in self.leaf.items()}
        lines, results = statements(self.tape, [*nodes, *divisors], leaf)
        made = [f"{u}_[v] = {r};" for u, r in zip(nodes.values(), results, strict=False)]
        made += [f"{d}_[v] = loom_divisor({r});" for d, r in zip(divisors.values(), results[len(nodes) :], strict=True)]
        arrays = " ".join(
            [*[f"real {u}_[V];" for u in nodes.values()], *[f"Divisor {d}_[V];" for d in divisors.values()]]
        )
        return (
            f'{loads} {arrays}\n        _Pragma("unroll") for (int v = 0; v < V; ++v) {{ {" ".join([*lines, *made])} }}'
        )

    def _hoisted(self, per_lane: bool) -> tuple[dict[int, str], dict[int, str]]:
        """Hoisted nodes and divisors that do (or do not) depend on a parameter with one value per lane."""
        lane_params = {n for n, p in zip(self.program.params, self.p, strict=True) if self.kind(p) == "l"}

        def depends(index: int) -> bool:
            return any(self.tape.nodes[i].name in lane_params for i in self.tape.live([index]))

        return (
            {i: u for i, u in self.hoisted.nodes.items() if depends(i) == per_lane},
            {i: d for i, d in self.hoisted.divisors.items() if depends(i) == per_lane},
        )

    def params_at(self) -> list[str]:
        return [f"{p}_[v]" if k == "l" else p for p, k in zip(self.p, self.tuning.kinds, strict=True)]

    def hoisted_at(self) -> list[str]:
        """Arguments for the hoisted parameters of a step function, in the order of `printer.function`."""
        lane_nodes, lane_divisors = self._hoisted(per_lane=True)
        return [
            *[f"{u}_[v]" if i in lane_nodes else u for i, u in self.hoisted.nodes.items()],
            *[f"{d}_[v]" if i in lane_divisors else d for i, d in self.hoisted.divisors.items()],
        ]

    def start(self) -> str:
        """Fill `s*[v]` from the initial state or from rest."""
        if not self.s:
            return ""
        if self.tuning.given:
            return " ".join(f"loom_read_real<V>(a.{s} + lane, {s});" for s in self.s)
        call = ", ".join([*self.params_at(), *[f"{s}[v]" for s in self.s]])
        return f'_Pragma("unroll") for (int v = 0; v < V; ++v) rest({call});'

    def chunk_struct(self, name: str, members: list[str]) -> str:
        return f"struct {name} {{ " + " ".join(f"Pack<io, V> {m}[K];" for m in members) + " };\n"

    def chunk_load(self, into: str, first: str, members: list[str], clamp: bool) -> str:
        """Load K steps from `first` on; with `clamp`, steps past the end repeat the last one (and are not used)."""
        row = f"({first} + k < T ? {first} + k : T - 1)" if clamp else f"({first} + k)"
        loads = " ".join(f"{into}.{m}[k] = loom_read<io, V>(a.{m} + base + {row} * step_stride);" for m in members)
        return f'_Pragma("unroll") for (int k = 0; k < K; ++k) {{ {loads} }}'


def _head(w: _Writer) -> str:
    t = w.tuning
    real, io = STORAGE[t.dtype]
    index = "unsigned long long" if t.wide else "unsigned"
    return "\n".join(
        [
            f"// {w.program.name}",
            f"typedef {real} real; typedef {index} index_t;",
            _PRELUDE.read_text(),
            f"typedef {io} io; enum {{ V = {t.vector}, K = {t.chunk} }};",
        ]
    )


def _walk(w: _Writer) -> str:
    """Constants of the walk: which vectors of lanes this thread owns."""
    steps = f"constexpr int T = {w.tuning.steps};" if w.tuning.steps else "const int T = (int)a.T;"
    return f"""
    {steps}
    const long long step_stride = a.inner;
    const index_t vectors = (index_t)(a.lanes / V), walk = (index_t)a.walk;
    const index_t self = blockIdx.x * (index_t)blockDim.x + threadIdx.x;
    if (self >= walk) return;
    {w.params_once()}"""


@lru_cache(maxsize=1024)
def forward_source(key: str, tuning: Tuning, save: bool, final: bool) -> str:
    """CUDA source of `extern "C" forward`; with `save` it writes checkpoints, with `final` the final states."""
    program = lookup(key)
    roots = [*program.outputs, *program.next]
    w = _Writer(program, tuning, program.tape, roots)
    nexts = [f"{s}n" for s in w.s]
    step = function("step", program.tape, roots, [*w.x, *w.s, *w.p], w.leaf, [*w.y, *nexts], "LOOM_INLINE", w.hoisted)
    rest = function("rest", program.tape, program.rest, w.p, w.leaf, nexts, "LOOM_INLINE")
    fields = " ".join(
        [
            *[f"const io* {x};" for x in w.x],
            *[f"io* {y};" for y in w.y],
            *[f"const real* {s};" for s in w.s],
            *[f"real* {n};" for n in nexts],
            "real* checkpoints;",
            w.param_fields(),
            "long long T, lanes, inner, walk;",
        ]
    )
    call = ", ".join(
        [
            *[f"loom_load(now.{x}[k].e[v])" for x in w.x],
            *[f"{s}[v]" for s in w.s],
            *w.params_at(),
            *w.hoisted_at(),
            *w.y,
            *nexts,
        ]
    )
    locals_ = " ".join(f"real {v};" for v in [*w.y, *nexts])
    put = " ".join([*[f"loom_store({y}_.e[v], {y});" for y in w.y], *[f"{s}[v] = {s}n;" for s in w.s]])
    outs = " ".join(f"Pack<io, V> {y}_;" for y in w.y)
    write = " ".join(f"loom_write<io, V>(a.{y} + base + (first + k) * step_stride, {y}_);" for y in w.y)
    keep = ""
    if save:
        keep = (
            "if (first) { const long long saves = (T - 1) / K; "
            + " ".join(
                f'_Pragma("unroll") for (int v = 0; v < V; ++v) '
                f"a.checkpoints[({j} * saves + first / K - 1) * a.lanes + lane + v] = {s}[v];"
                for j, s in enumerate(w.s)
            )
            + " }"
        )
    finish = " ".join(f"a.{s}n[lane + v] = {s}[v];" for s in w.s) if final else ""
    chunk = f"""
            {_escape(keep)}
            #pragma unroll
            for (int k = 0; k < K; ++k) {{guard}} {{{{
                {outs}
                #pragma unroll
                for (int v = 0; v < V; ++v) {{{{ {locals_} step({call}); {_escape(put)} }}}}
                {write}
            }}}}"""
    single = 0 < tuning.steps <= tuning.chunk
    body = _forward_single(w, chunk) if single else _forward_long(w, chunk)
    return f"""{_head(w)}
struct Forward {{ {fields} }};
{step}{rest}{w.chunk_struct("Chunk", w.x)}
extern "C" __global__ void __launch_bounds__({tuning.threads}) forward(const Forward a) {{
    {_walk(w)}
    for (index_t i = self; i < vectors; i += walk) {{
        const index_t lane = i * V;
        {_base(w)}
        {w.params_lane()}
        {" ".join(f"real {s}[V];" for s in w.s)}
        {body}
        #pragma unroll
        for (int v = 0; v < V; ++v) {{ {finish} }}
    }}
}}
"""


def _forward_single(w: _Writer, chunk: str) -> str:
    """All steps fit one chunk."""
    return f"""constexpr int first = 0;
        Chunk now;
        {w.chunk_load("now", "first", w.x, clamp=False)}
        {w.start()}
        {chunk.format(guard="")}"""


def _forward_long(w: _Writer, chunk: str) -> str:
    """Whole chunks without a test per step, then the ragged rest."""
    return f"""int first = 0;
        Chunk now;
        {w.chunk_load("now", "first", w.x, clamp=True)}
        {w.start()}
        for (; first + K <= T; first += K) {{
            Chunk ahead;
            {w.chunk_load("ahead", "first + K", w.x, clamp=True)}
            {chunk.format(guard="")}
            now = ahead;
        }}
        if (first < T) {{ {chunk.format(guard="if (first + k < T)")} }}"""


def _base(w: _Writer) -> str:
    if w.tuning.flat:
        return "const long long base = lane;"
    return (
        "const index_t row = lane / (index_t)a.inner; "
        "const long long base = (long long)row * a.T * a.inner + (lane - row * (index_t)a.inner);"
    )


@lru_cache(maxsize=1024)
def backward_source(
    key: str, tuning: Tuning, arriving: tuple[int, ...], wanted: tuple[bool, ...], shared: tuple[bool, ...]
) -> str:
    """CUDA source of `extern "C" backward`.

    Args:
        arriving: which gradients come in (outputs, then final states): 0 none, 1 a tensor, 2 the constant 1.
        wanted: which gradients go out: inputs, initial states, then every parameter of the program.
        shared: per parameter, whether the `V` lanes of a thread share one value (one partial sum instead of V).
    """
    program = lookup(key)
    n_in, n_out, n_s = len(program.inputs), len(program.outputs), len(program.states)
    back = backward_tape(program, arriving[:n_out])
    names = (*program.inputs, *program.states, *program.params)
    always = (*wanted[:n_in], *[True] * n_s, *wanted[n_in + n_s :])
    needed = {n: back.roots[n] for n, want in zip(names, always, strict=True) if want and n in back.roots}
    w = _Writer(program, tuning, back.tape, [*needed.values(), *program.next])
    want_x = [x for x, want in zip(w.x, wanted[:n_in], strict=True) if want]
    want_s = [s for s, want in zip(w.s, wanted[n_in : n_in + n_s], strict=True) if want]
    want_p = [p for p, want in zip(w.p, wanted[n_in + n_s :], strict=True) if want]
    gy = [f"gy{i}" for i in range(n_out) if arriving[i] == 1]
    leaves = dict(zip(names, [*w.x, *w.s, *w.p], strict=True))
    flowing = {leaves[n]: root for n, root in needed.items()}
    resting = {leaves[n]: root for n, root in back.rest_roots.items() if leaves[n] in want_p and not tuning.given}
    gs = [f"gs{j}" for j in range(n_s)]
    nexts = [f"{s}n" for s in w.s]
    functions = "".join(
        [
            function("step", back.tape, program.next, [*w.x, *w.s, *w.p], w.leaf, nexts, "LOOM_INLINE", w.hoisted),
            function("rest", program.tape, program.rest, w.p, w.leaf, nexts, "LOOM_INLINE"),
            function(
                "step_back",
                back.tape,
                list(flowing.values()),
                [*w.x, *w.s, *w.p, *gy, *gs],
                w.leaf,
                [f"{n}_out" for n in flowing],
                "LOOM_INLINE",
                w.hoisted,
            ),
            function(
                "rest_back",
                back.rest_tape,
                list(resting.values()),
                [*w.p, *gs],
                w.leaf,
                [f"{n}_out" for n in resting],
                "LOOM_INLINE",
            ),
        ]
    )
    fields = " ".join(
        [
            *[f"const io* {x};" for x in w.x],
            *[f"const real* {s};" for s in w.s],
            "const real* checkpoints;",
            *[f"const io* gy{i};" for i in range(n_out)],
            *[f"const real* gs{j}n;" for j in range(n_s)],
            *[f"io* g{x};" for x in w.x],
            *[f"real* g{s}_;" for s in w.s],
            *[f"real* g{p};" for p in w.p],
            w.param_fields(),
            "long long T, lanes, inner, walk;",
        ]
    )
    members = [*w.x, *gy]
    sums = {p: "1" if shared[w.p.index(p)] else "V" for p in want_p}
    recompute = ", ".join(
        [
            *[f"loom_load(now.{x}[k].e[v])" for x in w.x],
            *[f"{s}_at[k][v]" for s in w.s],
            *w.params_at(),
            *w.hoisted_at(),
            *[f"{s}_at[k + 1 < K ? k + 1 : K - 1][v]" for s in w.s],
        ]
    )
    call = ", ".join(
        [
            *[f"loom_load(now.{x}[k].e[v])" for x in w.x],
            *[f"{s}_at[k][v]" for s in w.s],
            *w.params_at(),
            *[f"loom_load(now.{g}[k].e[v])" for g in gy],
            *[f"gs{j}[v]" for j in range(n_s)],
            *w.hoisted_at(),
            *[f"{n}_out" for n in flowing],
        ]
    )
    put = " ".join(
        [
            *[f"loom_store(g{x}_.e[v], {f'{x}_out' if x in flowing else 'real(0)'});" for x in want_x],
            *[f"gs{j}[v] = {f'{s}_out' if s in flowing else 'real(0)'};" for j, s in enumerate(w.s)],
            *[f"sum_{p}[{'0' if sums[p] == '1' else 'v'}] += {p}_out;" for p in want_p if p in flowing],
        ]
    )
    load_state = " ".join(
        f"loom_read_real<V>(a.checkpoints + ({j} * saves + first / K - 1) * a.lanes + lane, {s});"
        for j, s in enumerate(w.s)
    )
    arrive = " ".join(
        f"gs{j}[v] = {f'__ldg(a.gs{j}n + lane + v)' if arriving[n_out + j] else 'real(0)'};" for j in range(n_s)
    )
    rest_call = ", ".join([*w.params_at(), *[f"gs{j}[v]" for j in range(n_s)], *[f"{n}_out" for n in resting]])
    rest_back = (
        (
            f'_Pragma("unroll") for (int v = 0; v < V; ++v) {{ {" ".join(f"real {n}_out;" for n in resting)} '
            f"rest_back({rest_call}); "
            + " ".join(f"sum_{p}[{'0' if sums[p] == '1' else 'v'}] += {p}_out;" for p in resting)
            + " }"
        )
        if resting
        else ""
    )
    partial = " ".join(
        f"a.g{p}[self] = sum_{p}[0];"
        if sums[p] == "1"
        else f'_Pragma("unroll") for (int v = 0; v < V; ++v) a.g{p}[self * V + v] = sum_{p}[v];'
        for p in want_p
    )
    long_walk = tuning.steps == 0 or tuning.steps > tuning.chunk
    first_state = (
        f"if (first) {{ const long long saves = (T - 1) / K; {load_state} }} else {{ {w.start()} }}"
        if long_walk and w.s
        else w.start()
    )
    chunk = f"""
            {_escape(first_state)}
            {" ".join(f"real {s}_at[K][V];" for s in w.s)}
            {" ".join(f'_Pragma("unroll") for (int v = 0; v < V; ++v) {s}_at[0][v] = {s}[v];' for s in w.s)}
            {_escape(_recompute(w, recompute))}
            #pragma unroll
            for (int k = K - 1; k >= 0; --k) {{guard}} {{{{
                {" ".join(f"Pack<io, V> g{x}_;" for x in want_x)}
                #pragma unroll
                for (int v = 0; v < V; ++v) {{{{
                    {" ".join(f"real {n}_out;" for n in flowing)}
                    step_back({call});
                    {put}
                }}}}
                {" ".join(f"loom_write<io, V>(a.g{x} + base + (first + k) * step_stride, g{x}_);" for x in want_x)}
            }}}}"""
    body = _backward_long(w, chunk, members) if long_walk else _backward_single(w, chunk, members)
    return f"""{_head(w)}
struct Backward {{ {fields} }};
{functions}{w.chunk_struct("Chunk", members)}
extern "C" __global__ void __launch_bounds__({tuning.threads}) backward(const Backward a) {{
    {_walk(w)}
    {" ".join(f"real sum_{p}[{n}] = {{}};" for p, n in sums.items())}
    for (index_t i = self; i < vectors; i += walk) {{
        const index_t lane = i * V;
        {_base(w)}
        {w.params_lane()}
        {" ".join(f"real {s}[V], gs{j}[V];" for j, s in enumerate(w.s))}
        {f'_Pragma("unroll") for (int v = 0; v < V; ++v) {{ {arrive} }}' if w.s else ""}
        {body}
        {rest_back}
        {" ".join(f'_Pragma("unroll") for (int v = 0; v < V; ++v) a.g{s}_[lane + v] = gs{w.s.index(s)}[v];' for s in want_s)}
    }}
    {partial}
}}
"""


def _backward_single(w: _Writer, chunk: str, members: list[str]) -> str:
    """All steps fit one chunk."""
    return f"""constexpr int first = 0;
        Chunk now;
        {w.chunk_load("now", "first", members, clamp=False)}
        {{ {chunk.format(guard="")} }}"""


def _backward_long(w: _Writer, chunk: str, members: list[str]) -> str:
    """The ragged chunk at the end first, then whole chunks without a test per step."""
    ahead = f"Chunk ahead; if (first) {{ {w.chunk_load('ahead', 'first - K', members, clamp=False)} }}"
    return f"""int first = (T - 1) / K * K;
        Chunk now;
        {w.chunk_load("now", "first", members, clamp=True)}
        if (T % K) {{
            {ahead}
            {chunk.format(guard="if (first + k < T)")}
            now = ahead;
            first -= K;
        }}
        for (; first >= 0; first -= K) {{
            {ahead}
            {chunk.format(guard="")}
            now = ahead;
        }}"""


def _recompute(w: _Writer, call: str) -> str:
    """States inside a chunk. Past the end of a ragged chunk they are computed from repeated inputs and not used."""
    if not w.s:
        return ""
    return (
        f'_Pragma("unroll") for (int k = 0; k + 1 < K; ++k) _Pragma("unroll") for (int v = 0; v < V; ++v) step({call});'
    )


def _escape(text: str) -> str:
    """Protect braces from `str.format`."""
    return text.replace("{", "{{").replace("}", "}}")
