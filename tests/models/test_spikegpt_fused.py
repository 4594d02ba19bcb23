"""SpikeGPT with its fused passes is SpikeGPT: the CUDA kernels on the CPU, and on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from spikeloom_tests.kernels.test_shift_norm import OnCpu
from spikeloom_tests.kernels.test_token_loss_kernel import OnCpu as LossOnCpu
from spikeloom_tests.models.small_spikegpt import stir, text, tiny
from torch import Tensor, nn

from spikeloom.energy import count
from spikeloom.kernels.shift_norm import fused as kernels
from spikeloom.kernels.token_loss import fused as loss_kernels
from spikeloom.models import SpikeGPT, SpikeGPTClassifier, SpikeGPTConfig, language_loss, read_out, spikegpt, token_loss
from spikeloom.models import spikegpt_fused as passes
from spikeloom.neurons import Neuron, Stream, neuron
from spikeloom.spiking_attention import gates


class Gpu(torch.Tensor):
    is_cuda = True


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Every fused path on the CPU, where nothing else speaks against it; the answers of `fuses`, call by call."""
    asked: list[bool] = []

    def fuses(x: Tensor, *rest: Any) -> bool:
        asked.append(passes.fuses(x.as_subclass(Gpu), *rest))
        return asked[-1]

    monkeypatch.setattr(spikegpt, "fuses", fuses)
    monkeypatch.setattr(passes, "takes", lambda *given: True)
    monkeypatch.setattr(gates, "fuses", lambda *given: True)
    monkeypatch.setattr(kernels, "Kernel", OnCpu)
    monkeypatch.setattr(kernels, "_processors", lambda device: 1)
    kernels._kernel.cache_clear()
    yield asked
    kernels._kernel.cache_clear()


def results(model: nn.Module, *, bf16: bool = False) -> dict[str, Tensor]:
    """Logits, loss and gradients of one step, in double precision."""
    ids = text()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(ids)
        loss = language_loss(logits, text(1)) if logits.ndim == 3 else logits.float().square().mean()
    grads = torch.autograd.grad(loss, list(model.parameters()))
    found = {"logits": logits, "loss": loss} | dict(zip(dict(model.named_parameters()), grads, strict=True))
    return {name: t.detach().double() for name, t in found.items()}


def agree(found: dict[str, Tensor], expected: dict[str, Tensor], limit: float) -> None:
    for name, wanted in expected.items():
        assert ((found[name] - wanted).norm() <= limit * wanted.norm() + 1e-9).item(), name


def both(monkeypatch: pytest.MonkeyPatch, model: nn.Module, asked: list[bool], *, bf16: bool = False) -> Any:
    found = results(model, bf16=bf16)
    assert asked == [True]
    with monkeypatch.context() as patch:
        patch.setattr(spikegpt, "fuses", lambda *given: False)
        patch.setattr(gates, "fuses", lambda *given: False)
        return found, results(model, bf16=bf16)


@pytest.mark.parametrize("options", [{}, {"ffn_pre": True}, {"depth": 1}, {"embedding": "raw"}], ids=str)
def test_a_step_in_single_precision(fused: list[bool], monkeypatch: Any, options: dict[str, Any]) -> None:
    agree(*both(monkeypatch, tiny(**options).float(), fused), 1e-4)


def test_a_classifier(fused: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    agree(*both(monkeypatch, SpikeGPTClassifier.of(tiny().float(), 3), fused), 1e-4)


def test_a_step_under_autocast(fused: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gate and product are rounded once, not twice, so that some spikes may differ."""
    model = tiny().float()
    found, expected = both(monkeypatch, model, fused, bf16=True)
    assert abs(found["loss"] - expected["loss"]) < 0.02
    agree({"logits": found["logits"]}, {"logits": expected["logits"]}, 0.2)


def test_under_autocast_it_is_nothing_but_the_mixtures_in_half(fused: list[bool], monkeypatch: Any) -> None:
    """With the same gates on both sides what is left is the order of sums in a normalisation."""
    monkeypatch.setattr(gates, "fuses", lambda *given: False)
    agree(*both(monkeypatch, tiny().float(), fused, bf16=True), 0.03)


def test_a_padded_read_out_and_the_loss_that_reads_it(fused: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """All fused paths of a step together: the gradient of the logits is read where the loss has written it."""
    monkeypatch.setattr(gates, "fuses", lambda *given: False)
    model, places = tiny().float(), []
    expected = results(model, bf16=True)
    whole_rows = read_out.whole_rows

    def watched(grad: Tensor, width: int) -> Tensor:
        rows = whole_rows(grad, width)
        places.append(rows.data_ptr() == grad.data_ptr())
        assert not rows[:, grad.shape[2] :].any()
        return rows

    monkeypatch.setattr(read_out, "whole_rows", watched)
    monkeypatch.setattr(read_out, "pads", lambda *given: True)
    monkeypatch.setattr(token_loss, "takes", lambda *given: True)
    monkeypatch.setattr(loss_kernels, "Kernel", LossOnCpu)
    loss_kernels._kernel.cache_clear()
    found = results(model, bf16=True)
    loss_kernels._kernel.cache_clear()
    assert (places, fused) == ([True], [True, True])
    agree(found, expected, 0.01)


def test_dropout_is_the_module_s(fused: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """By modules that apply the masks that were drawn."""
    model, masks = tiny(dropout=0.4).float().train(), []
    dropped = passes._dropped

    def recorded(spikes: Tensor, dropout: nn.Dropout) -> Any:
        added = dropped(spikes, dropout)
        masks.append(added.kept)
        return added

    monkeypatch.setattr(passes, "_dropped", recorded)
    found = results(model)
    assert fused == [True]
    assert len(masks) == 3
    assert all(0.4 < mask.float().mean() < 0.8 for mask in masks)

    class Mask(nn.Module):
        def __init__(self, mask: Tensor) -> None:
            super().__init__()
            self.mask = mask

        def forward(self, x: Tensor) -> Tensor:
            return x * self.mask / 0.6

    for block, mask in zip(model.blocks, masks, strict=True):
        block.dropout = Mask(mask)
    monkeypatch.setattr(spikegpt, "fuses", lambda *given: False)
    agree(found, results(model), 1e-4)


@torch.no_grad()
def test_who_hooks_a_module_sees_it_run(fused: list[bool]) -> None:
    model, ids = tiny().float(), text()
    whole = model(ids)
    stream = Stream(model)
    pieces = torch.cat([stream(piece) for piece in ids.split([5, 1, 6])])
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-4)
    seen: list[float] = []
    handle = model.get_submodule("blocks.1.lif1").register_forward_hook(lambda m, x, y: seen.append(y.mean().item()))
    model(ids)
    handle.remove()
    assert len(seen) == 1
    assert fused == [True] + [False] * 4
    model(ids)
    assert fused[-1]


@torch.no_grad()
def test_modules_of_another_kind_run_themselves(fused: list[bool]) -> None:
    class Louder(nn.LayerNorm):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    ids = text()
    for name, module in (("blocks.1.ln2", Louder(16)), ("ln_out", Louder(16)), ("blocks.0.dropout", nn.Identity())):
        model = tiny().float()
        model.set_submodule(name, module)
        model(ids)
        assert not fused[-1], name
    model = tiny().float()
    model.get_submodule("blocks.2.ffn.mix").backend = "reference"
    model(ids)
    assert not fused[-1]
    model = tiny().float()
    model.blocks[1].dropout.p = 1.0
    model.train()(ids)
    assert not fused[-1]
    model = tiny().float()
    asked = len(fused)
    model.blocks[1] = nn.Sequential(model.blocks[1])
    model(ids)
    assert len(fused) == asked


@neuron(state={"last": 0.0})
def other_three(x: Any, last: Any, *, time_mix_k: Any, time_mix_v: Any, time_mix_r: Any) -> Any:
    return x * time_mix_k, last * time_mix_v, x * time_mix_r, x


@torch.no_grad()
def test_what_was_changed_in_a_module_is_computed(fused: list[bool]) -> None:
    ids = text()

    def another_shift(model: Any) -> None:
        mix = model.blocks[1].att.mix
        given = {name: getattr(mix, name) for name in ("time_mix_k", "time_mix_v", "time_mix_r")}
        model.blocks[1].att.mix = Neuron(other_three, **given)

    def another_forward(model: Any) -> None:
        model.blocks[1].att.forward = lambda x: 3 * x

    def another_order(model: Any) -> None:
        model.blocks = nn.ModuleList([model.blocks[1], model.blocks[0], model.blocks[2]])

    for change in (another_shift, another_forward, another_order):
        model = tiny().float()
        before = model(ids)
        assert fused[-1]
        change(model)
        after = model(ids)
        assert not fused[-1], change.__name__
        assert not torch.allclose(before, after)
    model = tiny().float()
    for backend, fuses in (("cuda", True), ("cpu", False)):  # which the module of a GPU's tensor refuses
        model.blocks[1].att.mix.backend = backend
        model(ids)
        assert fused[-1] == fuses


@torch.no_grad()
def test_rescaling_is_left_to_the_modules(fused: list[bool]) -> None:
    tiny(rescale_every=2).float()(text())
    assert fused == [False]


def test_energy_is_counted_on_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of watched operators and neurons nothing is fused."""
    model = tiny().float()
    asked: list[bool] = []
    for module in (gates, read_out):
        name = "fuses" if module is gates else "pads"
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, real=real: asked.append(real(*given)) or asked[-1])
    monkeypatch.setattr(gates, "is_plain", lambda t: True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(read_out, "FEWEST", 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert read_out.pads(torch.zeros(1, 1, 16), model.head.weight)  # but for who watches
        asked.clear()
        with count(model, strict=True):
            model(text())
    assert asked
    assert not any(asked)


def fresh(**options: Any) -> SpikeGPT:
    torch.manual_seed(0)
    model = SpikeGPT(SpikeGPTConfig(vocab_size=1003, embed_dim=128, depth=2, **options)).cuda().train()
    stir(model)
    return model


@pytest.mark.gpu
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_a_step_on_a_gpu(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh(dropout=0.0)
    ids = torch.randint(1003, (129, 4), generator=torch.Generator().manual_seed(1)).cuda()
    found, asked = [], []
    for module, name in ((spikegpt, "fuses"), (gates, "fuses"), (read_out, "pads"), (token_loss, "takes")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, real=real: asked.append(real(*given)) or asked[-1])
    for serves, half in ((True, bf16), (False, bf16), (False, False)):
        if not serves:
            monkeypatch.setattr(spikegpt, "fuses", lambda *given: False)
            monkeypatch.setattr(gates, "fuses", lambda *given: False)
            monkeypatch.setattr(read_out, "pads", lambda *given: False)
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            logits = model(ids[:-1])
        loss = language_loss(logits, ids[1:])
        if serves:
            assert asked == [True] * 7 + [bf16, True]  # the blocks, three gates or squares in each of two, logits, loss
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for one, other, exact in zip(*found, strict=True):
        assert bf16 or ((one - other).norm() / other.norm()).item() < 1e-3
        # half precision turns spikes: the fused step is as near to single precision as the modules' is
        assert (one - exact).norm() <= 1.5 * (other - exact).norm() + 0.02 * exact.norm()


@pytest.mark.gpu
def test_a_graph_draws_a_new_mask_every_time() -> None:
    model = fresh(dropout=0.5)
    ids = torch.randint(1003, (129, 4), generator=torch.Generator().manual_seed(1)).cuda()

    def step() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            loss = language_loss(model(ids[:-1]), ids[1:])
        loss.backward()
        return loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
            model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    losses = []
    for _ in range(3):
        graph.replay()
        losses.append(loss.item())
    assert len(set(losses)) == 3
    assert all(0 < value < 20 for value in losses)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
