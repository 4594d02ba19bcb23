"""Selective scan: the CPU kernel and the operator against the plain recurrence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spikeloom_tests.kernels.scan_cases import Case, Found, agree, cotangents, through
from torch import Tensor
from torch.library import opcheck

from spikeloom.kernels.scan import selective_scan
from spikeloom.kernels.scan.mixing import _in_slices

CASES = [
    Case(),
    Case(n=16, L=130, B=2, C=2),
    Case(d=40, n=16, L=64, B=0, C=0, reverse=20),
    Case(n=1, L=1, gate=False),
    Case(n=3, L=20, gate=False, extras=False, state=False, softplus=False),
    Case(n=9, L=29, B="fixed", C="fixed", gate=False, reverse=6),
    Case(L=29, B=0, C="fixed", gate=False),
    Case(L=29, B="fixed", C=3, reverse=3),
    Case(d=12, n=20, L=70, B=2, C=3),
    Case(b=1, d=2, n=300, L=60),
]
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
opcheck_reads_gradients = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning"
)


def expected_of(given: dict[str, Tensor], case: Case) -> Found:
    return through(selective_scan, {k: t.double() for k, t in given.items()}, case, backend="reference")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernel_is_the_recurrence(case: Case) -> None:
    given = case.tensors()
    agree(through(selective_scan, given, case), expected_of(given, case), TOLERANCES[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_storage_types(dtype: torch.dtype) -> None:
    """The state is float32; the gradients have the types of their inputs."""
    case = Case(n=16, L=80, reverse=3)
    given = case.tensors(dtype)
    for backend in ("auto", "reference"):
        found = through(selective_scan, given, case, backend=backend)
        assert found["y"].dtype == dtype
        assert found["last"].dtype == torch.float32
        assert all(found[f"grad {k}"].dtype == t.dtype for k, t in given.items())
        agree(found, expected_of(given, case), TOLERANCES[dtype])


def test_gradients_by_differences() -> None:
    case = Case(b=1, d=2, n=2, L=5, reverse=1)
    leaves = [t.requires_grad_() for t in case.tensors().values()]

    def call(*tensors: Tensor) -> Any:
        given = dict(zip(case.tensors(), tensors, strict=True))
        return selective_scan(**given, delta_softplus=True, return_last_state=True, reversed_channels=1)

    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize("cut", [1, 20, 36])
def test_pieces_with_the_state_are_one_call(cut: int) -> None:
    """Gradients through the state included."""
    case = Case()

    def pieces(initial_state: Tensor, return_last_state: bool, **given: Any) -> Any:
        def part(at: slice, state: Tensor) -> Any:
            cut_up = {k: t[..., at] if k in ("u", "delta", "z", "B", "C") else t for k, t in given.items()}
            return selective_scan(**cut_up, initial_state=state, return_last_state=True)

        first, middle = part(slice(0, cut), initial_state)
        second, end = part(slice(cut, None), middle)
        return torch.cat([first, second], -1), end

    agree(through(pieces, case.tensors(), case), through(selective_scan, case.tensors(), case), 1e-11)


def test_reversed_channels_are_those_of_reversed_tokens() -> None:
    case = Case(gate=False, reverse=6)
    given = case.tensors()
    flipped = {k: t.flip(-1) if k in ("u", "delta", "B", "C") else t for k, t in given.items()}
    y, last = selective_scan(**given, delta_softplus=True, return_last_state=True, reversed_channels=6)
    twin, end = selective_scan(**flipped, delta_softplus=True, return_last_state=True)
    assert torch.equal(y, twin.flip(-1))
    assert torch.equal(last, end)


def test_more_states_in_slices() -> None:
    """How a GPU computes more states than its kernel holds."""
    case = Case(n=40, L=20, reverse=3)

    def sliced(**given: Any) -> Any:
        del given["return_last_state"]
        softplus, reverse = given.pop("delta_softplus"), given.pop("reversed_channels")
        order = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
        return _in_slices(*(given[k] for k in order), softplus, reverse)

    given = case.tensors(torch.float32)
    agree(through(sliced, given, case), expected_of(given, case), TOLERANCES[torch.float32])


def test_any_layout() -> None:
    case = Case(reverse=3)
    given = case.tensors()
    turned = {k: t.mT.contiguous().mT if t.ndim > 1 else t for k, t in given.items()}
    turned["z"] = given["z"].repeat(1, 1, 2)[..., : case.L]
    assert not turned["u"].is_contiguous()

    def uncloned(**_: Any) -> Any:
        leaves = {k: t.requires_grad_() for k, t in turned.items()}
        y, last = selective_scan(**leaves, delta_softplus=True, return_last_state=True, reversed_channels=3)
        return y, last

    y, last = uncloned()
    expected = through(selective_scan, given, case)
    torch.testing.assert_close(y, expected["y"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, expected["last"], rtol=1e-12, atol=1e-12)
    of_y, of_last = cotangents(case)
    grads = torch.autograd.grad((y, last), list(turned.values()), (of_y, of_last))
    for name, found in zip(turned, grads, strict=True):
        torch.testing.assert_close(found, expected[f"grad {name}"], rtol=1e-11, atol=1e-11)


def test_only_wanted_gradients() -> None:
    case = Case()
    given = case.tensors()
    whole = through(selective_scan, given, case)
    for name in given:
        leaves = {k: t.clone().requires_grad_(k == name) for k, t in given.items()}
        found = through(lambda **kw: selective_scan(**kw), leaves, case)
        assert torch.equal(found[f"grad {name}"], whole[f"grad {name}"])
        y = selective_scan(**leaves, delta_softplus=True)
        assert isinstance(y, Tensor)
        y.sum().backward()
        assert [k for k, t in leaves.items() if t.grad is not None] == [name]


def test_extreme_rates_and_steps() -> None:
    """Rates down to -1e4 and steps up to 50, past the bend of the softplus: finite in float32."""
    case = Case(L=100, n=16)
    given = case.tensors()
    given["A"][0] = -1e4
    given["delta"][:, :, ::3] = 50.0
    agree(through(selective_scan, given, case), expected_of(given, case), 1e-11)
    found = through(selective_scan, {k: t.float() for k, t in given.items()}, case)
    assert all(bool(t.isfinite().all()) for t in found.values())
    agree(found, expected_of(given, case), 1e-4)


def test_a_softplus_is_linear_above_20() -> None:
    u, A = torch.ones(1, 1, 3), -torch.ones(1, 1)
    delta = torch.tensor([[[19.5, 20.5, 30.0]]], dtype=torch.float64).requires_grad_()
    ones = torch.ones(1, 1, dtype=torch.float64)
    y = selective_scan(u.double(), delta, A.double(), ones, ones, delta_softplus=True)
    assert isinstance(y, Tensor)
    assert y[0, 0, 2].item() == 30.0 + torch.exp(torch.tensor(-30.0, dtype=torch.float64)).item() * y[0, 0, 1].item()
    assert y[0, 0, 0].item() == pytest.approx(torch.nn.functional.softplus(torch.tensor(19.5).double()).item(), 1e-14)


def test_a_nan_reaches_everything_behind_it() -> None:
    case = Case(gate=False)
    for dtype in (torch.float32, torch.float64):
        for backend in ("auto", "reference"):
            given = case.tensors(dtype)
            given["delta"][0, 0, 7] = torch.nan
            y = selective_scan(**given, delta_softplus=True, backend=backend)
            assert isinstance(y, Tensor)
            assert bool(y[0, 0, :7].isfinite().all())
            assert bool(y[0, 0, 7:].isnan().all())
            assert bool(y[0, 1:].isfinite().all())


def test_a_long_sequence() -> None:
    case = Case(b=1, d=2, n=16, L=16384, gate=False)
    given = case.tensors(torch.float32)
    y = selective_scan(**given, delta_softplus=True)
    first = {k: t[..., :9000] if k in ("u", "delta", "B", "C") else t for k, t in given.items()}
    beginning = selective_scan(**first, delta_softplus=True)
    assert isinstance(y, Tensor)
    assert torch.equal(y[..., :9000], beginning)
    double = {k: t.double() for k, t in given.items()}
    agree(through(selective_scan, given, case), through(selective_scan, double, case), 1e-4)
    with torch.no_grad():
        expected = selective_scan(**double, delta_softplus=True, backend="reference")
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    case, threads = Case(d=40, n=16, L=50), torch.get_num_threads()
    given, found = case.tensors(torch.float32), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(through(selective_scan, given, case))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


@opcheck_reads_gradients
@pytest.mark.parametrize("case", [CASES[0], CASES[4], CASES[7]], ids=str)
def test_opcheck(case: Case) -> None:
    given = {k: t.requires_grad_() for k, t in case.tensors().items()}
    given["u"] = given["u"].detach().mT.contiguous().mT.requires_grad_()
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
    tensors = [given.get(k) for k in names]
    for keep in (True, False):
        opcheck(torch.ops.spikeloom.selective_scan.default, (*tensors, case.softplus, case.reverse, keep))
    y = torch.ones(given["u"].shape, dtype=torch.float64)
    plain = [None if t is None else t.detach() for t in tensors]
    wanted = "".join("01"[t is not None] for t in tensors)
    backward = torch.ops.spikeloom.selective_scan_backward.default
    opcheck(backward, (y.detach(), None, y.new_empty(0), *plain, case.softplus, case.reverse, wanted))


def test_a_second_derivative_is_refused_by_the_kernel_alone() -> None:
    case = Case(L=3)
    given = case.tensors()
    u = given["u"].requires_grad_()
    y = selective_scan(**given)
    assert isinstance(y, Tensor)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(y.sum(), u, create_graph=True)
    y = selective_scan(**given, backend="reference")
    assert isinstance(y, Tensor)
    delta = given["delta"].requires_grad_()
    first = torch.autograd.grad(selective_scan(**given, backend="reference").sum(), u, create_graph=True)[0]  # type: ignore[union-attr]
    assert torch.autograd.grad(first.sum(), delta)[0].abs().sum().item() > 0


def test_forward_mode_is_refused_by_the_kernel_alone() -> None:
    given = Case(L=3).tensors()

    def tangent(**options: str) -> Any:
        def run(u: Tensor) -> Any:
            return selective_scan(**given | {"u": u}, **options)  # type: ignore[arg-type]

        return torch.func.jvp(run, (given["u"],), (given["u"],))[1]

    assert tangent(backend="reference").abs().sum().item() > 0
    with pytest.raises(NotImplementedError, match=r"selective_scan.*backend='reference'"):
        tangent()


def test_many_states_fit_the_stack() -> None:
    """Tiles of 64 tokens of so many states would not."""
    case = Case(b=1, d=17, n=16384, L=6, gate=False, state=False)
    given = {k: t.requires_grad_() for k, t in case.tensors().items()}
    found = [selective_scan(**given, delta_softplus=True, backend=backend) for backend in ("auto", "reference")]
    (ours, of_u), (theirs, expected) = ((y, torch.autograd.grad(y.sum(), given["u"])[0]) for y in found)  # type: ignore[union-attr]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(of_u, expected, rtol=1e-10, atol=1e-9)


WRONG = {
    "no token": ({"u": (2, 6, 0), "delta": (2, 6, 0)}, "L >= 1"),
    "u has two axes": ({"u": (6, 5)}, r"u \[6, 5\]"),
    "delta is shorter": ({"delta": (2, 6, 4)}, "delta"),
    "z is shorter": ({"z": (2, 6, 4)}, "z"),
    "A of other channels": ({"A": (5, 4)}, r"\[6, n\]"),
    "A has no state": ({"A": (6, 0)}, "n >= 1"),
    "B of other states": ({"B": (2, 3, 5)}, "B"),
    "C of other tokens": ({"C": (2, 4, 4)}, "C"),
    "groups that do not divide": ({"B": (2, 4, 4, 5)}, "divisor of 6"),
    "D of other channels": ({"D": (5,)}, "D"),
    "bias of other channels": ({"delta_bias": (5,)}, "delta_bias"),
    "state of other states": ({"initial_state": (2, 6, 3)}, "initial_state"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused(what: str) -> None:
    shapes, message = WRONG[what]
    given: dict[str, tuple[int, ...]] = {"u": (2, 6, 5), "delta": (2, 6, 5), "A": (6, 4), "B": (2, 4, 5), "C": (6, 4)}
    with pytest.raises(ValueError, match=message):
        selective_scan(**{k: torch.zeros(s) for k, s in (given | shapes).items()})  # type: ignore[arg-type]


def test_types_and_directions_that_do_not_fit_are_refused() -> None:
    given = Case(gate=False).tensors(torch.float32)
    with pytest.raises(ValueError, match="dtype of u"):
        selective_scan(**given | {"delta": given["delta"].bfloat16()})
    with pytest.raises(ValueError, match="complex64"):
        selective_scan(**given | {"A": given["A"].to(torch.complex64)})
    with pytest.raises(ValueError, match="int64"):
        selective_scan(**{k: t.long() for k, t in given.items()})
    with pytest.raises(ValueError, match="last half"):
        selective_scan(**given, reversed_channels=2)
    with pytest.raises(ValueError, match="backend"):
        selective_scan(**given, backend="gpu")
