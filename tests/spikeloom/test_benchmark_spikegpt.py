"""benchmarks/spikegpt.py: its options, its parts on the CPU, and the published kernel's algorithm without a GPU."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.kernels.cpu import build

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHIM = (Path(__file__).parents[1] / "kernels" / "cuda_on_cpu.h").read_text()
CPU = torch.device("cpu")
NVCC = shutil.which("nvcc")
DRIVER = """
#define EVERY for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) \\
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
typedef const float* In;
extern "C" void forward(unsigned blocks, unsigned threads, int n, int T, int C, In w, In u, In k, In v, float* y) {
    blockDim.x = threads;
    EVERY wkv_forward(n, T, C, w, u, k, v, y);
}
extern "C" void backward(unsigned blocks, unsigned threads, int n, int T, int C, In w, In u, In k, In v, In g,
                         float* gw, float* gu, float* gk, float* gv) {
    blockDim.x = threads;
    EVERY wkv_backward(n, T, C, w, u, k, v, g, gw, gu, gk, gv);
}
"""

Script = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    """Imports a script, which finds its neighbours as it does when it is run."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield import_module
    finally:
        sys.path.remove(str(BENCHMARKS))


def on_cpu(module: ModuleType) -> Callable[[str, list[Tensor]], None]:
    """What stands in for a launch on a GPU."""

    def launch(name: str, tensors: list[Tensor]) -> None:
        B, T, C = tensors[2].shape
        assert all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
        start = build.load(SHIM + module.source(T) + DRIVER)[name.removeprefix("wkv_")]
        threads = min(C, 32)
        sizes = (ctypes.c_uint(-(-B * C // threads)), ctypes.c_uint(threads), *map(ctypes.c_int, (B * C, T, C)))
        start(*sizes, *(ctypes.c_void_p(t.data_ptr()) for t in tensors))

    return launch


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["wkv", "--only", "loop"], "--only has loop; expected some of spikeloom chunks,spikeloom loop,"),
        (["wkv", "--dtypes", "float64"], "--dtypes has float64; expected some of float32,bfloat16"),
        (["wkv", "--shapes", "12x1024"], "expected --shapes such as 12x1024x768"),
        (["train", "--models", "gpt"], "--models has gpt; expected some of spikegpt_46m,spikegpt_216m,tiny"),
        (["train", "--profile", "--device", "cpu"], "expected --device cuda"),
        (["generate", "--positions", "100,10"], "expected positions from 1, ascending"),
        (["generate", "--positions", "ten"], "and --positions such as 10,1000"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, list) else "",
)
def test_options_that_are_refused(
    script: Script, given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script("spikegpt").parsed(given)
    assert message in " ".join(capsys.readouterr().err.split())


def test_what_runs_by_default(script: Script) -> None:
    parsed = script("spikegpt").parsed
    wkv, train, generate = (parsed([name]) for name in ("wkv", "train", "generate"))
    assert [vars(shape) for shape in wkv.shapes] == [
        {"B": 12, "T": 1024, "C": 768},
        {"B": 8, "T": 1024, "C": 2048},
        {"B": 1, "T": 8192, "C": 768},
    ]
    assert (wkv.dtypes, len(wkv.only)) == (["float32", "bfloat16"], 4)
    assert (train.models, train.dtypes) == (["spikegpt_46m", "spikegpt_216m"], ["bfloat16"])
    assert (train.context, train.batch) == (1024, 12)
    assert generate.positions == [10, 100, 1000, 10000, 60000]


def test_bytes_that_must_move(script: Script) -> None:
    mixers = script("_wkv")
    shape = mixers.Shape(12, 1024, 768)
    assert shape.must_move(mixers.FORWARD, torch.float32) == 3 * 4 * 12 * 1024 * 768
    assert shape.must_move(mixers.BOTH, torch.bfloat16) == 8 * 2 * 12 * 1024 * 768


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 7, 5), (2, 100, 40)], ids=str)
def test_the_published_algorithm_is_the_loop(
    script: Script, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]
) -> None:
    mixers, two_pass = script("_wkv"), script("_wkv_two_pass")
    monkeypatch.setattr(two_pass, "_launch", on_cpu(two_pass))
    for dtype, allowed in ((torch.float32, 2e-6), (torch.bfloat16, 4e-3)):
        case = (mixers.Shape(*shape), dtype, CPU)
        found, expected = mixers.results(mixers.TWO_PASS, *case), mixers.exact(*case)
        for name, a, b in zip(mixers.NAMES, found, expected, strict=True):
            assert a.shape == b.shape
            if name == "y" or shape[1] > 1:
                assert (a - b).norm() <= allowed * b.norm(), name
            elif name != "v":  # the one token's mean is its value, whatever the weights
                assert a.abs().max() <= 1e-6, name


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_the_published_algorithm_compiles(script: Script, tmp_path: Path) -> None:
    code = tmp_path / "code.cu"
    code.write_text(script("_wkv_two_pass").source(1024))
    command = [str(NVCC), "-arch=sm_90", "-std=c++17", "--use_fast_math", "-cubin", "-o", "/dev/null", str(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_operator_with_a_state(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-linear-attention's, by a stand-in of the same signature."""
    mixers = script("_wkv")

    def operator(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        assert state.shape == (2, 3, 1, 5)
        start = tuple(part.squeeze(1).double() for part in state.unbind(1))
        turned = (t.transpose(0, 1).double() for t in (k, v))
        y, _ = mixers.wkv(*turned, state=start, time_decay=w.double(), time_first=u.double())
        return y.transpose(0, 1).to(k.dtype), state

    module = ModuleType("fla.ops.rwkv4")
    module.fused_recurrent_rwkv4 = operator  # type: ignore[attr-defined]
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "fla.ops.rwkv4", module)
    case = (mixers.Shape(2, 9, 5), torch.float32, CPU)
    away = mixers.differences(mixers.results(mixers.FLA, *case), mixers.exact(*case))
    assert list(away) == ["y", "k", "v", "time_decay", "time_first"]
    assert max(away.values()) < 1e-6


def run(script: Script, monkeypatch: pytest.MonkeyPatch, out: Path, *given: str) -> dict[str, Any]:
    """The whole program; the copies that give the bandwidth are left out."""
    spikegpt = script("spikegpt")
    monkeypatch.setattr(spikegpt, "copy_bandwidth", lambda device, repetitions: {"median": 10.0})
    monkeypatch.setattr(sys, "argv", ["spikegpt.py", *given, "--device", "cpu", "--out", str(out)])
    spikegpt.main()
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_wkv_runs(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("wkv", "--shapes", "2x8x4", "--dtypes", "float32", "--repetitions", "3")
    rows = run(script, monkeypatch, tmp_path / "found.json", *given)["rows"]
    assert [row["pass"] for row in rows] == ["forward", "forward+backward"]
    for row in rows:
        loop = row["results"].pop("spikeloom loop")
        assert loop["eager"]["repetitions"] == 3
        assert row["limit_ms"] == pytest.approx(row["bytes"] / 10e9 * 1e3)
        assert max(row["difference"]["spikeloom loop"].values()) < 1e-6
        assert all(found["skipped"] for found in row["results"].values())
    assert "needs a GPU" in capsys.readouterr().out


def test_a_failure_is_a_row_like_others(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    spikegpt, mixers = script("spikegpt"), script("_wkv")
    monkeypatch.setattr(spikegpt, "copy_bandwidth", lambda device, repetitions: {"median": 10.0})
    monkeypatch.setattr(mixers, "missing", lambda name, device: "")
    options = spikegpt.parsed(["wkv", "--device", "cpu", "--shapes", "1x4x2", "--dtypes", "float32"])
    options.only, options.repetitions = [mixers.CHUNKED, mixers.SERIAL], 2
    rows = list(spikegpt.wkv_rows(options, CPU))
    for row in rows:
        assert "do not take k [4, 1, 2]" in row["results"][mixers.CHUNKED]["failure"]
        assert "do not take" in row["difference"][mixers.CHUNKED]["failure"]
        assert "eager" in row["results"][mixers.SERIAL]
    assert len(spikegpt.wkv_table(rows)[1]) == 4


def test_training_runs(script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = ("train", "--models", "tiny", "--context", "12", "--batch", "2", "--repetitions", "2")
    (row,) = run(script, monkeypatch, tmp_path / "found.json", *given)["rows"]
    assert (row["model"], row["dtype"], row["context"], row["batch"]) == ("tiny", "bfloat16", 12, 2)
    row["results"]["spikeloom"]["eager"] |= {"median": 2.0, "low": 1.0, "high": 3.0}
    assert script("spikegpt").train_table([row])[1][0][2:4] == ["2.00 (1.00-3.00)", "12,000"]


def test_a_training_step_trains(script: Script) -> None:
    step = script("_language").train_step("tiny", 12, 2, CPU, torch.float32)
    net, _ = step.keep
    before = [p.detach().clone() for p in net.parameters()]
    step.call()
    assert all(p.grad is None for p in net.parameters())
    moved = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert sum(moved) > len(moved) // 2


def test_a_text_goes_on_without_its_past(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of a state are those of the whole text again; the state that is written in place, as by a graph, too."""
    language = script("_language")
    monkeypatch.setattr(language, "PIECE", 8)
    net = language.network("tiny", CPU).eval()
    ids = torch.randint(64, (21, 2), generator=torch.Generator().manual_seed(1))
    text, placed = (language.Greedy(net, 2, CPU) for _ in range(2))

    class Replay:
        def replay(self) -> None:
            placed.graph = None
            placed._in_place(placed.stream.state)
            placed.graph = self

    with torch.no_grad():
        text.read(ids)
        placed.follow(text)
        places = [tensor.data_ptr() for tensor in language.tensors(placed.stream.state)]
        placed.graph = Replay()
        size, first = text.state_bytes(), text.token[0].tolist()
        timing, said = text.timed(6, CPU)
        assert (placed.timed(6, CPU)[1], timing.repetitions) == (said, 6)
        assert places == [tensor.data_ptr() for tensor in language.tensors(placed.stream.state)]
        assert size == text.state_bytes() == placed.state_bytes()
        whole = torch.cat([ids, torch.tensor([first, *said[:-1]])])
        again = net(whole).argmax(2)[20:]
    assert again.tolist() == [first, *said]


def test_generation_runs(script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = ("generate", "--models", "tiny", "--positions", "3,40", "--tokens", "4")
    rows = run(script, monkeypatch, tmp_path / "found.json", *given)["rows"]
    assert [row["position"] for row in rows] == [3, 40]
    sizes = {row[name] for row in rows for name in ("state_bytes", "state_bytes_behind")}
    assert sizes == {8 + 2 * 7 * 32 * 4}  # the token; per block two last tokens, p, q, o and two membranes of 32 floats
    assert all(row["same_tokens"] and row["results"]["spikeloom"]["eager"]["repetitions"] == 4 for row in rows)
    failed = rows[0] | {"results": {"spikeloom graph": {"failure": "out of memory"}}}
    (line,) = script("spikegpt").generate_table([failed])[1]
    assert (line[2], line[3], line[-1]) == ("3", "", "out of memory")
    weights = 4 * (2 * (13 * 32**2 + 11 * 32) + 4 * 32 + 64 * 32)
    assert rows[0]["limit_ms"] == pytest.approx(weights / 10e9 * 1e3)


def test_kinds_of_layers_and_products(script: Script) -> None:
    kind = script("spikegpt").kind_of(50277)
    assert kind("aten::mm", [[12288, 768], [768, 50277]], "sm90_gemm") == "products: read-out"
    assert kind("aten::mm", [[12288, 768], [768, 3072]], "sm90_gemm") == "products: blocks"
    assert kind("aten::mm", [[50304, 12288], [12288, 768]], "sm90_gemm") == "products: read-out"
    assert kind("_WKVBackward", [], "wkv_gradients") == "WKV"
    assert kind("_TokenLossBackward", [], "token_loss_gradient") == "loss"
    assert kind("_ShiftNorm", [], "shift_norm") == "sum, layer norm and token shift"
    assert kind("aten::copy_", [[3]], "copy") == script("_budget").REST
    kernels = {"gemm_a": {"ms": 1.0, "kernels": 4}, "gemm_b": {"ms": 5.0, "kernels": 2}}
    _, lines = script("_budget").product_lines({"products": kernels, "total_ms": 10.0})
    assert lines == [
        ["gemm_b", "5.00", "50%", "2"],
        ["gemm_a", "1.00", "10%", "4"],
        ["all products", "6.00", "60%", ""],
    ]
