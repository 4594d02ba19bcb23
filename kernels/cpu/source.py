"""C++ source of the forward and backward kernel of a program.

Lanes are walked in blocks of `BLOCK` neighbours; a block keeps its state in first-level cache while it runs through all
time steps, and the loop over its lanes is vectorised. Backward walks chunks of at most `CHUNK` steps from the end: it
reloads the state at the start of the chunk, recomputes the states inside, and goes back through the derived step.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from spikeloom.kernels.printer import backward_tape, function
from spikeloom.kernels.program import Program, lookup

BLOCK = 256
CHUNK = 16
STORAGE = {
    "float32": ("float", "float"),
    "float64": ("double", "double"),
    "bfloat16": ("float", "bf16"),
    "float16": ("float", "fp16"),
}
"""torch dtype -> (arithmetic type, storage type)."""
_PRELUDE = Path(__file__).with_name("prelude.h")


class _Writer:
    """Names shared by both kernels of one program. `kinds`: per parameter s(calar), u(niform tensor) or l(ane)."""

    def __init__(self, program: Program, kinds: str) -> None:
        self.program = program
        self.kinds = kinds
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
        self.lane = [p for p, k in zip(self.p, kinds, strict=True) if k == "l"]
        self.tensor = [p for p, k in zip(self.p, kinds, strict=True) if k != "s"]

    def param_fields(self) -> str:
        kinds = {"s": "double {0};", "u": "const real* {0};", "l": "LaneParam {0};"}
        return " ".join(kinds[k].format(p) for p, k in zip(self.p, self.kinds, strict=True))

    def param_setup(self) -> str:
        lines = []
        for p, kind in zip(self.p, self.kinds, strict=True):
            if kind == "s":
                lines.append(f"const real {p} = (real)a.{p};")
            elif kind == "u":
                lines.append(f"const real {p} = a.{p}[0];")
            else:
                lines.append(f"real {p}_[BLOCK]; int32_t {p}_i[BLOCK]; loom_gather(a.{p}, lane, n, {p}_, {p}_i);")
        return "\n    ".join(lines)

    def params_at(self) -> list[str]:
        return [f"{p}_[l]" if k == "l" else p for p, k in zip(self.p, self.kinds, strict=True)]


@lru_cache(maxsize=1024)
def source(key: str, kinds: str, dtype: str) -> str:
    """C++ translation unit with `loom_forward` and `loom_backward` for a program, parameter kinds and torch dtype."""
    program = lookup(key)
    real, io = STORAGE[dtype]
    w = _Writer(program, kinds)
    return "\n".join(
        [
            f"// {program.name}",
            f"typedef {real} real;",
            _PRELUDE.read_text(),
            f"typedef {io} io;",
            f"enum {{ BLOCK = {BLOCK}, CHUNK = {CHUNK} }};",
            _forward(w),
            _backward(w),
        ]
    )


def _step(w: _Writer) -> str:
    program = w.program
    step = function(
        "step",
        program.tape,
        (*program.outputs, *program.next),
        [*w.x, *w.s, *w.p],
        w.leaf,
        [*w.y, *[f"{s}n" for s in w.s]],
        "LOOM_INLINE",
    )
    rest = function("rest", program.tape, program.rest, w.p, w.leaf, [f"{s}n" for s in w.s], "LOOM_INLINE")
    return step + rest


def _start_state(w: _Writer) -> str:
    """Statements that fill the block's state `s*_` from the initial state or from rest."""
    if not w.s:
        return ""
    given = "; ".join(f"{s}_[l] = a.{s}[lane + l]" for s in w.s)
    resting = ", ".join([*w.params_at(), *[f"{s}_[l]" for s in w.s]])
    return (
        f"if (a.{w.s[0]}) {{ for (int l = 0; l < n; ++l) {{ {given}; }} }}\n"
        f"    else {{ for (int l = 0; l < n; ++l) rest({resting}); }}"
    )


def _forward(w: _Writer) -> str:
    fields = " ".join(
        [
            *[f"const io* {x};" for x in w.x],
            *[f"io* {y};" for y in w.y],
            *[f"const real* {s};" for s in w.s],
            *[f"real* {s}n;" for s in w.s],
            "real* checkpoints;",
            w.param_fields(),
            "int64_t T, lanes, inner, every, threads;",
        ]
    )
    state = "\n    ".join(f"real {s}_[BLOCK];" for s in w.s)
    save = " ".join(
        f"std::memcpy(a.checkpoints + (({j} * saves + t / a.every - 1) * a.lanes + lane), {s}_, n * sizeof(real));"
        for j, s in enumerate(w.s)
    )
    pointers = " ".join([*[f"const io* {x}_ = a.{x} + at;" for x in w.x], *[f"io* {y}_ = a.{y} + at;" for y in w.y]])
    call = ", ".join(
        [
            *[f"loom_load({x}_[l])" for x in w.x],
            *[f"{s}_[l]" for s in w.s],
            *w.params_at(),
            *w.y,
            *[f"{s}n" for s in w.s],
        ]
    )
    results = " ".join(f"real {v};" for v in [*w.y, *[f"{s}n" for s in w.s]])
    stores = " ".join([*[f"loom_store({y}_[l], {y});" for y in w.y], *[f"{s}_[l] = {s}n;" for s in w.s]])
    final = " ".join(f"if (a.{s}n) std::memcpy(a.{s}n + lane, {s}_, n * sizeof(real));" for s in w.s)
    return f"""
struct Forward {{ {fields} }};
{_step(w)}
template <bool full> static void forward_block(const Forward& a, int64_t lane, int64_t base, int count) {{
    const int n = full ? BLOCK : count;
    {w.param_setup()}
    {state}
    {_start_state(w)}
    const int64_t saves = a.every ? (a.T - 1) / a.every : 0;
    (void)saves;
    for (int64_t t = 0; t < a.T; ++t) {{
        if (a.every && t && t % a.every == 0) {{ {save} }}
        const int64_t at = base + t * a.inner;
        {pointers}
        #pragma omp simd
        for (int l = 0; l < n; ++l) {{
            {results}
            step({call});
            {stores}
        }}
    }}
    {final}
}}
{_driver("forward", "Forward", "forward_block")}
"""


def _backward(w: _Writer) -> str:
    program = w.program
    back = backward_tape(program, [1] * len(w.y))
    wanted = [
        (n, f"g{leaf}")
        for n, leaf in zip((*program.inputs, *program.states, *program.params), [*w.x, *w.s, *w.p], strict=True)
        if n in back.roots
    ]
    step_back = function(
        "step_back",
        back.tape,
        [back.roots[n] for n, _ in wanted],
        [*w.x, *w.s, *w.p, *[f"gy{i}" for i in range(len(w.y))], *[f"gs{j}" for j in range(len(w.s))]],
        w.leaf,
        [f"{g}_out" for _, g in wanted],
        "LOOM_INLINE",
    )
    rest = [(n, f"g{w.leaf[n]}") for n in program.params if n in back.rest_roots]
    rest_back = function(
        "rest_back",
        back.rest_tape,
        [back.rest_roots[n] for n, _ in rest],
        [*w.p, *[f"gs{j}" for j in range(len(w.s))]],
        w.leaf,
        [f"{g}_out" for _, g in rest],
        "LOOM_INLINE",
    )
    return (
        step_back + rest_back + _backward_block(w, {g for _, g in wanted}, [g for _, g in wanted], [g for _, g in rest])
    )


_CONSTANT_GRADIENTS = """
// A gradient pointer is 0 for none, 1 for the constant one, else a tensor.
struct Constants { io zeros[BLOCK], ones[BLOCK]; Constants() { for (int l = 0; l < BLOCK; ++l) {
    loom_store(zeros[l], real(0)); loom_store(ones[l], real(1)); } } };
static const Constants constants;
LOOM_INLINE const io* loom_gradient(const io* gradient, int64_t at) {
    return (uintptr_t)gradient == 1 ? constants.ones : gradient ? gradient + at : constants.zeros;
}
"""


def _backward_block(w: _Writer, flowing: set[str], results: list[str], rest: list[str]) -> str:
    grads = [f"g{p}" for p in w.tensor]
    fields = " ".join(
        [
            *[f"const io* {x};" for x in w.x],
            *[f"const real* {s};" for s in w.s],
            "const real* checkpoints;",
            *[f"const io* g{y};" for y in w.y],
            *[f"const real* g{s}n;" for s in w.s],
            *[f"io* g{x};" for x in w.x],
            *[f"real* g{s};" for s in w.s],
            *[f"double* {g};" for g in grads],
            w.param_fields(),
            "int64_t T, lanes, inner, every, threads;",
        ]
    )
    state = "\n    ".join(f"real {s}_[BLOCK], {s}_at[CHUNK][BLOCK], g{s}_[BLOCK];" for s in w.s)
    sums = "\n    ".join(f"real {g}_[BLOCK]; for (int l = 0; l < n; ++l) {g}_[l] = 0;" for g in grads)
    arriving = " ".join(f"for (int l = 0; l < n; ++l) g{s}_[l] = a.g{s}n ? a.g{s}n[lane + l] : real(0);" for s in w.s)
    load = " ".join(
        f"std::memcpy({s}_, a.checkpoints + (({j} * saves + first / a.every - 1) * a.lanes + lane), n * sizeof(real));"
        for j, s in enumerate(w.s)
    )
    pointers_x = " ".join(f"const io* {x}_ = a.{x} + at;" for x in w.x)
    recompute = ", ".join(
        [
            *[f"loom_load({x}_[l])" for x in w.x],
            *[f"{s}_[l]" for s in w.s],
            *w.params_at(),
            *w.y,
            *[f"{s}n" for s in w.s],
        ]
    )
    kept = " ".join(f"{s}_at[k + 1][l] = {s}n; {s}_[l] = {s}n;" for s in w.s)
    keep_first = " ".join(f"std::memcpy({s}_at[0], {s}_, n * sizeof(real));" for s in w.s)
    results_fw = " ".join(f"real {v};" for v in [*w.y, *[f"{s}n" for s in w.s]])
    pointers = " ".join(
        [
            pointers_x,
            *[f"const io* g{y}_ = loom_gradient(a.g{y}, at);" for y in w.y],
            *[f"io* g{x}_ = a.g{x} ? a.g{x} + at : unused;" for x in w.x],
        ]
    )
    call = ", ".join(
        [
            *[f"loom_load({x}_[l])" for x in w.x],
            *[f"{s}_at[k][l]" for s in w.s],
            *w.params_at(),
            *[f"loom_load(g{y}_[l])" for y in w.y],
            *[f"g{s}_[l]" for s in w.s],
            *[f"{g}_out" for g in results],
        ]
    )
    outs = " ".join(f"real {g}_out;" for g in results)
    put = " ".join(
        [
            *[f"loom_store(g{x}_[l], {f'g{x}_out' if f'g{x}' in flowing else 'real(0)'});" for x in w.x],
            *[f"g{s}_[l] = {f'g{s}_out' if f'g{s}' in flowing else 'real(0)'};" for s in w.s],
            *[f"{g}_[l] += {g}_out;" for g in grads if g in flowing],
        ]
    )
    rest_call = ", ".join([*w.params_at(), *[f"g{s}_[l]" for s in w.s], *[f"{g}_out" for g in rest]])
    rest_outs = " ".join(f"real {g}_out;" for g in rest)
    rest_sum = " ".join(f"{g}_[l] += {g}_out;" for g in rest if g in grads)
    resting = (
        f"if (!a.{w.s[0]}) for (int l = 0; l < n; ++l) {{ {rest_outs} rest_back({rest_call}); {rest_sum} }}"
        if rest
        else ""
    )
    first_state = " ".join(f"if (a.g{s}) std::memcpy(a.g{s} + lane, g{s}_, n * sizeof(real));" for s in w.s)
    collect = " ".join(
        f"if (sums.{g}.size()) for (int l = 0; l < n; ++l) sums.{g}[{f'{g[1:]}_i[l]' if g[1:] in w.lane else '0'}] += {g}_[l];"
        for g in grads
    )
    members = " ".join(f"std::vector<double> {g};" for g in grads)
    return f"""
struct Backward {{ {fields} }};
struct Sums {{ {members} }};
{_CONSTANT_GRADIENTS}template <bool full> static void backward_block(const Backward& a, Sums& sums, int64_t lane, int64_t base, int count) {{
    const int n = full ? BLOCK : count;
    io unused[BLOCK];
    (void)sums; (void)unused;
    {w.param_setup()}
    {state}
    {sums}
    {arriving}
    const int64_t chunk = a.every ? a.every : a.T, saves = a.every ? (a.T - 1) / a.every : 0;
    (void)saves;
    for (int64_t first = (a.T - 1) / chunk * chunk; first >= 0; first -= chunk) {{
        const int steps = (int)(first + chunk < a.T ? chunk : a.T - first);
        if (first) {{ {load} }}
        else {{
    {_start_state(w)}
        }}
        {keep_first}
        for (int k = 0; k + 1 < steps; ++k) {{
            const int64_t at = base + (first + k) * a.inner;
            {pointers_x}
            #pragma omp simd
            for (int l = 0; l < n; ++l) {{
                {results_fw}
                step({recompute});
                {kept}
            }}
        }}
        for (int k = steps - 1; k >= 0; --k) {{
            const int64_t at = base + (first + k) * a.inner;
            {pointers}
            #pragma omp simd
            for (int l = 0; l < n; ++l) {{
                {outs}
                step_back({call});
                {put}
            }}
        }}
    }}
    {resting}
    {first_state}
    {collect}
}}
{_driver("backward", "Backward", "backward_block", _Sums(w, grads))}
"""


class _Sums:
    """Statements around the blocks that add up the gradients of tensor parameters: per thread, then in thread order."""

    def __init__(self, w: _Writer, grads: list[str]) -> None:
        sizes = {g: f"a.{g[1:]}.count" if g[1:] in w.lane else "1" for g in grads}
        self.all = "std::vector<Sums> all(a.threads);"
        self.mine = "Sums& mine = all[thread]; " + " ".join(
            f"if (a.{g}) mine.{g}.assign({size}, 0.0);" for g, size in sizes.items()
        )
        self.collect = "\n    ".join(
            f"if (a.{g}) for (int64_t i = 0; i < {size}; ++i) {{ double sum = 0; "
            f"for (const Sums& part : all) sum += part.{g}[i]; a.{g}[i] = sum; }}"
            for g, size in sizes.items()
        )


def _driver(name: str, struct: str, block: str, sums: _Sums | None = None) -> str:
    """The exported function: blocks of lanes shared out to threads in a fixed order, so sums are reproducible."""
    setup, collect = (sums.mine, sums.collect) if sums else ("", "")
    argument = "mine, " if sums else ""
    return f"""
#define LOOM_RUN_{name} \\
    const int64_t rows = a.lanes / a.inner, blocks = (a.inner + BLOCK - 1) / BLOCK, total = rows * blocks; \\
    for (int64_t i = total * thread / a.threads; i < total * (thread + 1) / a.threads; ++i) {{ \\
        const int64_t row = i / blocks, start = (i % blocks) * BLOCK, left = a.inner - start; \\
        const int64_t lane = row * a.inner + start, base = row * a.T * a.inner + start; \\
        if (left >= BLOCK) {block}<true>(a, {argument}lane, base, BLOCK); \\
        else {block}<false>(a, {argument}lane, base, (int)left); \\
    }}
extern "C" void loom_{name}(const {struct}* arguments) {{
    const {struct}& a = *arguments;
    {sums.all if sums else ""}
    if (a.threads == 1) {{ const int thread = 0; {setup} LOOM_RUN_{name} }}
    else {{
        #pragma omp parallel for schedule(static, 1) num_threads(a.threads)
        for (int thread = 0; thread < (int)a.threads; ++thread) {{ {setup} LOOM_RUN_{name} }}
    }}
    {collect}
}}
"""
