"""SpikMamba: sizes, samples, fixed steps and places, options, starting values, event frames, the page."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom.energy import count
from spikeloom.models import SpikMamba, SpikMambaConfig, create_model, describe, list_models, registry
from spikeloom.models.drop_path import DropPath
from spikeloom.models.fixed_frames import frames_of_clip
from spikeloom.models.sizes import size_of
from spikeloom.synapses import NormNeuron

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models" / "spikmamba.md"
SIZES = {
    "spikmamba_2_256": 2_898_732,
    "spikmamba_2_256_forward": 2_809_644,
    "spikmamba_paf_2_256": 2_824_202,
    "spikmamba_gesture_2_256": 2_824_459,
    "spikmamba_efaction_2_256": 2_854_528,
    "spikmamba_fine_2_256": 2_991_648,
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiny(**options: Any) -> Any:
    """A network of 3 frames of 8 x 12 pixels, 2 x 3 tokens, whose neurons fire; float64, in evaluation."""
    torch.manual_seed(0)
    given = {"input_size": (8, 12), "patch_size": 4, "T": 3, "embed_dim": 16, "num_heads": 2, "depth": 2}
    config = SpikMambaConfig(**{**given, "num_classes": 5, "mlp_ratio": 2.0, "d_state": 4, **options})
    model = SpikMamba(config).double()
    norms = [module for module in model.modules() if isinstance(module, NormNeuron)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.constant_(norm.weight, 2.0)
    with torch.no_grad():
        model(random(3, 4, config.in_channels, 8, 12))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str) -> None:
    assert size_of(name).parameters == SIZES[name]


def test_every_variant_is_measured() -> None:
    assert set(list_models("spikmamba_*")) - set(list_models("spikmamba_official_*")) == SIZES.keys()


def test_samples_are_apart_and_calls_start_from_rest() -> None:
    model, x = tiny(), random(3, 4, 3, 8, 12)
    logits = model(x)
    assert logits.shape == (3, 4, 5)
    assert torch.equal(model(x), logits)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(x[:, order]), logits[:, order], rtol=1e-10, atol=1e-10)
    for i in range(4):
        torch.testing.assert_close(model(x[:, i : i + 1])[:, 0], logits[:, i], rtol=1e-10, atol=1e-10)


def test_nothing_in_evaluation_can_blow_up() -> None:
    """Whatever running statistics are, spikes leave; and normalised tokens have a norm of at most sqrt(C)."""
    model, x = tiny(), random(3, 4, 3, 8, 12)
    for norm in (module for module in model.modules() if isinstance(module, NormNeuron)):
        norm.running_var.zero_()
        norm.running_mean.add_(random(norm.num_features) - 0.5)
    bound = (model.head.weight * model.norm_f.weight).norm(dim=1) * 16**0.5 + model.head.bias.abs()
    for scale in (0.0, 1.0, 1e6):
        logits = model(scale * x)
        assert bool((logits.abs() <= bound).all())
    assert bound.max() < 1


def test_the_window_of_a_frame_is_no_window() -> None:
    x = random(3, 2, 3, 8, 12)
    assert torch.equal(tiny(window=(2, 3))(x), tiny()(x))
    assert not torch.equal(tiny(window=(2, 1))(x), tiny()(x))


def test_one_direction_is_causal() -> None:
    forward, both, x = tiny(bidirectional=False), tiny(), random(3, 2, 3, 8, 12)
    other = x.clone()
    other[2] = 1 - other[2]
    assert torch.equal(forward(other)[:2], forward(x)[:2])
    assert not torch.equal(both(other)[:2], both(x)[:2])


def test_steps_and_places_are_fixed() -> None:
    model = tiny()
    with pytest.raises(ValueError, match=r"T=2 steps and was built for T=3, .* pass x.transpose"):
        model(random(2, 3, 3, 8, 12))
    with pytest.raises(ValueError, match="8 x 16 pixels and was built for 8 x 12"):
        model(random(3, 2, 3, 8, 16))
    with pytest.raises(ValueError, match="12 x 8 pixels"):
        model(random(2, 3, 12, 8))
    with pytest.raises(ValueError, match="set_steps got T=2, but SpikMamba was built for 3 steps"):
        model.set_steps(2)
    model.set_steps(3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": (2, 2)}, r"window=\(2, 2\) on a grid of 2 x 3"),
        ({"input_size": (8, 10)}, "multiples of patch_size=4"),
        ({"input_size": (0, 8)}, "sides >= 1"),
        ({"embed_dim": 18, "num_heads": 2}, "multiple of 4"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"depth": 0}, "depth=0"),
        ({"d_state": 0}, "d_state=0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"drop_rate": 1.0}, r"drop_rate=1\.0"),
        ({"drop_path_rate": -0.1}, r"drop_path_rate=-0\.1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_impossible_configurations_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tiny(**options)


def test_options() -> None:
    x = random(3, 2, 2, 8, 12)
    model = tiny(in_channels=2, spiking_ffn=True, readout_norm=False)
    assert isinstance(model.norm_f, nn.Identity)
    assert isinstance(model.blocks[0].mlp.fc1.fire, NormNeuron)
    assert model(x).shape == (3, 2, 5)


def test_clips_of_video_models() -> None:
    clip = random(2, 3, 4, 8, 12)
    assert torch.equal(frames_of_clip(clip)[1, 0, 2], clip[0, 2, 1])
    with pytest.raises(ValueError, match=r"\[B, C, T, H, W\]"):
        frames_of_clip(clip[0])


def test_starting_values() -> None:
    torch.manual_seed(0)
    model: Any = create_model("spikmamba_2_256")
    block = model.blocks[0]
    for linear in (block.sla.qk, block.sla.act_proj, block.mamba.in_proj, block.mamba.out_proj, block.mlp.fc1):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert linear.bias is None or not linear.bias.any()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model.temporal_pos_embedding.any()
    for net in (model, copy.deepcopy(model)):
        marked = {
            name.rpartition(".")[2] for name, p in net.named_parameters() if getattr(p, "_no_weight_decay", False)
        }
        assert marked == {"pos_embed", "temporal_pos_embedding", "A_log", "A_b_log", "D", "D_b"}
    for suffix in ("", "_b"):
        dt = getattr(block.mamba, f"dt_proj{suffix}")
        assert dt.bias.max() < -2, "inverse softplus of time steps below 0.1"
        assert dt.weight.abs().max().item() == pytest.approx(0.25, rel=0.01), "16^-1/2"


def test_drop_path_takes_whole_samples_at_all_steps() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.5)
    kept = drop(torch.ones(3, 64, 4, 2))
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(kept, kept[:1, :, :1, :1].expand_as(kept))
    assert torch.equal(drop.eval()(kept), kept)
    model = tiny(depth=3, drop_path_rate=0.2)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.1, 0.2])


def test_recomputed_blocks_have_the_same_gradients() -> None:
    x, gradients = random(3, 2, 3, 8, 12), []
    for recompute in (False, True):
        model = tiny().train()
        model.set_recompute(recompute)
        model(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_what_spikes() -> None:
    model = tiny().float()
    fired: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, NormNeuron):
            module.register_forward_hook(lambda m, given, out, name=name: fired.update({name: out}))
    with torch.no_grad(), count(model, strict=True) as run:
        model(random(3, 2, 3, 8, 12).float())
    parts = ("sla.qk_bn", "sla.attn_bn", "mamba.in_bn", "mamba.out_bn")
    assert fired.keys() == {"patch_embed.proj_bn", *(f"blocks.{i}.{part}" for i in range(2) for part in parts)}
    for name, spikes in fired.items():
        assert not (spikes * (1 - spikes)).any(), name
        assert spikes.any(), name
    counted = run.counts()
    assert not counted.uncounted
    kinds = {layer.name: layer.kind for layer in counted.layers}
    adds = {layer.name for layer in counted.layers if layer.is_param and layer.kind != "float"}
    assert adds == {f"blocks.{i}.mamba.{conv}" for i in range(2) for conv in ("conv1d", "conv1d_1")}, "all else: MAC"
    assert {kinds[name] for name in adds} == {"binary"}
    spiking = {entry.name for entry in counted.aux if getattr(entry, "spiking", False)}
    assert spiking == fired.keys()


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    model, x = tiny().float(), random(3, 2, 3, 8, 12).float()
    expected = model(x)
    with torch.backends.cudnn.flags(allow_tf32=False):
        torch.testing.assert_close(model.cuda()(x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-5)


def test_blocks_of_the_page_run_and_print_what_it_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    compared = 0
    text = PAGE.read_text(encoding="utf-8")
    for block, printed in re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", text, re.S | re.M):
        exec(block, names)
        out = capsys.readouterr().out
        if printed:
            assert out == printed, block
            compared += 1
    assert compared >= 3


def test_the_table_of_the_page_is_that_of_the_package() -> None:
    rows = dict(re.findall(r"^\| `(spikmamba_\w+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.M))
    assert rows.keys() == set(list_models("spikmamba_*"))
    for name, row in rows.items():
        cells = row.split(" | ")
        size = size_of(name)
        assert cells[0] == f"{size.parameters:,}", name
        assert cells[1] == str(size.T), name
        for result in describe(name).published:
            assert f"{result.dataset} {result.accuracy:g}" in cells[-1], name
