"""Max-Former and MS-QKFormer: sizes, formulas, every embedding and mixer, energy, the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from spikeloom_tests.models.maxformer_oracle import Oracle, official, random, tiny
from torch import Tensor, nn

from spikeloom import Stream
from spikeloom.energy import Totals, count
from spikeloom.models import MaxFormerConfig, create_model, describe, list_models
from spikeloom.models.maxformer import MIXERS, MaxFormer
from spikeloom.models.maxformer_embed import EMBEDS, Embed
from spikeloom.models.official import translate
from spikeloom.models.sizes import size_of
from spikeloom.synapses import Conv2d

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models" / "max_former.md"
MEASURED = {  # parameters, and multiply-accumulates of one step in millions: of weights, of attention
    "maxformer_cifar_4_384": (6_568_282, 973.803, 4.719),
    "maxformer_dvs_2_256": (1_455_626, 387.746, 0.524),
    "maxformer_10_384": (16_237_240, 5241.167, 67.437),
    "maxformer_10_512": (28_653_480, 9300.333, 89.915),
    "maxformer_10_768": (63_992_200, 20886.829, 134.873),
    "ms_qkformer_cifar_4_384": (6_706_234, 1511.280, 4.719),
    "ms_qkformer_dvs_2_256": (1_504_138, 506.989, 0.524),
    "ms_qkformer_10_384": (16_473_688, 5831.237, 67.437),
    "ms_qkformer_10_512": (29_079_336, 10337.571, 89.915),
    "ms_qkformer_10_768": (64_962_760, 23194.122, 134.873),
}


@pytest.mark.parametrize("name", MEASURED)
def test_sizes_are_those_of_the_authors_code(name: str) -> None:
    size, (parameters, weights, attention) = size_of(name), MEASURED[name]
    assert size.parameters == parameters
    assert size.macs / 1e6 == pytest.approx(weights + attention, abs=1.1e-3)


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("maxformer_cifar_4_384", 100, 6_602_932),
        ("maxformer_dvs_2_256", 11, 1_455_883),
        ("ms_qkformer_cifar_4_384", 100, 6_740_884),
        ("ms_qkformer_dvs_2_256", 11, 1_504_395),
    ],
)
def test_sizes_with_other_classes(name: str, classes: int, parameters: int) -> None:
    assert size_of(name, num_classes=classes).parameters == parameters


@pytest.mark.parametrize(
    ("name", "embeds", "stages", "head"),
    [
        ("maxformer_cifar_4_384", [47_856, 517_248, 2_066_688], [75_168, 300_096, 3_557_376], 3_850),
        ("maxformer_dvs_2_256", [101_888, 919_040], [35_072, 397_056], 2_570),
        ("maxformer_10_384", [130_992, 517_248, 2_066_688], [80_160, 606_336, 12_450_816], 385_000),
    ],
)
def test_parts_are_those_of_the_authors_code(name: str, embeds: list[int], stages: list[int], head: int) -> None:
    with torch.device("meta"):
        model: Any = create_model(name)
    for parts, expected in ((model.embeds, embeds), (model.stages, stages), ([model.head], [head])):
        assert [sum(p.numel() for p in part.parameters()) for part in parts] == expected


def test_all_variants_are_known() -> None:
    assert set(list_models("maxformer_*") + list_models("ms_qkformer_*")) == set(MEASURED)


def compare_gradients(model: Any, weights: dict[str, Tensor]) -> None:
    """Our gradients with those of the oracle's weights."""
    parameters = dict(model.named_parameters())
    for key, weight in weights.items():
        base, _, part = translate("maxformer", key, model.state_dict()).partition("#")
        if base in parameters:
            ours = parameters[base].grad
            ours = ours.chunk(3)[int(part)] if part else ours
            assert weight.grad is not None
            torch.testing.assert_close(ours.reshape(weight.shape), weight.grad, rtol=1e-7, atol=1e-9)
            assert key.endswith("bias") or weight.grad.abs().max() > 1e-6, f"{key} has no part in the output"


def leaves(model: Any) -> dict[str, Tensor]:
    """Weights under the official names that take gradients of their own."""
    found = {key: value.detach().clone() for key, value in official(model).items()}
    return {key: value.requires_grad_(value.is_floating_point()) for key, value in found.items()}


def test_event_ms_qkformer_by_its_formulas() -> None:
    """No published code runs this network."""
    model = tiny("ms_qkformer_dvs_2_256", T=3).double().train()
    weights = leaves(model)
    x = random(2, 3, 2, 32, 48).double().transpose(0, 1)
    oracle = Oracle(weights)
    u = oracle.qka(oracle.max_plus(x, "patch_embed1"), "stage1.0", 4)
    u = oracle.one_max(oracle.mlp(u, "stage1.0"), "patch_embed2")
    expected = oracle.head(oracle.mlp(oracle.ssa(u, "stage2.0", 4, 0.5), "stage2.0"))
    logits = model(x).mean(0)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    cotangent = random(*logits.shape).double()
    logits.backward(cotangent)
    expected.backward(cotangent)
    compare_gradients(model, weights)


def test_pooling_by_its_formulas() -> None:
    """Average pooling in an embedding, and as a mixer, which no file of the authors' code covers for two stages."""
    options = {"embeds": ("max_plus", "avg"), "mixers": ("avg", "max"), "depths": (2, 1), "T": 2}
    model = tiny("maxformer_dvs_2_256", **options).double().train()
    weights = leaves(model)
    x = random(2, 2, 2, 32, 32).double()
    oracle = Oracle(weights)
    u = oracle.max_plus(x, "patch_embed1")
    for i in range(2):
        u = nn.functional.avg_pool2d(u.flatten(0, 1), 3, 1, 1, count_include_pad=False).view(u.shape)
        u = oracle.mlp(u, f"stage1.{i}")
    u = oracle.avg(u, "patch_embed2")
    u = nn.functional.max_pool2d(u.flatten(0, 1), 3, 1, 1).view(u.shape)
    expected = oracle.head(oracle.mlp(u, "stage2.0"))
    logits = model(x).mean(0)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    logits.square().sum().backward()
    expected.square().sum().backward()
    compare_gradients(model, weights)


@pytest.mark.parametrize("embed", EMBEDS)
def test_every_embedding_in_every_stage(embed: Any) -> None:
    """In the first stage one that reads spikes has a neuron in front; in the second one may read membranes."""
    for embeds in ((embed, "max"), ("orig", embed)):
        config = MaxFormerConfig(
            embed_dim=32, num_heads=4, depths=(1, 1), embeds=embeds, mixers=("identity", "dwc1"), T=2
        )
        model = MaxFormer(config).train()
        stride = EMBEDS[embeds[0]].stride * EMBEDS[embeds[1]].stride
        assert model.stride == stride
        assert (model.input_lif is None) == EMBEDS[embeds[0]].real
        x = random(2, 3, 2 * stride, 4 * stride).requires_grad_()
        model(x).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        for s, e in enumerate(embeds):
            assert model.embeds[s].convs.keys() == {link.name for link in (*EMBEDS[e].main, EMBEDS[e].shortcut)}


def test_an_embedding_without_a_neuron_behind_gives_the_same_stream() -> None:
    spikes, u = (random(2, 2, 8, 8, 8) > 0.5).float(), random(2, 2, 8, 8, 8)
    for name in EMBEDS:
        with_neuron, without = (Embed(name, 8, 16, last=last) for last in (False, True))  # type: ignore[arg-type]
        without.load_state_dict(
            {key.replace(".fire.", ".norm."): v for key, v in with_neuron.state_dict().items()}, False
        )
        fired, stream = with_neuron.eval()(spikes, u)
        silent, same = without.eval()(spikes, u)
        assert silent is None
        assert fired is not None
        torch.testing.assert_close(stream, same)


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_streams_is_counted_and_learns(mixer: Any) -> None:
    options = {"mixers": (mixer, mixer, mixer), "depths": (2, 1, 1)}
    model = tiny(T=None, **options).double()
    x = random(5, 2, 3, 8, 12).double()
    stream = Stream(model)
    with torch.no_grad():
        chunks = torch.cat([stream(chunk) for chunk in x.split([1, 2, 2])])
        torch.testing.assert_close(chunks, model(x), rtol=1e-10, atol=1e-10)
        with count(model, strict=True) as run:
            model(x)
    counts = run.counts()
    assert not counts.uncounted
    kinds = {layer.name: layer.kind for layer in counts.layers if layer.is_param}
    assert kinds.pop("embeds.0.convs.proj.synapse") == "float"
    assert set(kinds.values()) == {"binary"}
    model.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_all_convolutions_but_the_first_accumulate_spikes() -> None:
    model = tiny()
    x = random(2, 3, 16, 16)
    with torch.no_grad(), count(model, strict=True) as run:
        model(x.expand(4, *x.shape))
    counts = run.counts()
    totals, first = Totals(counts), "embeds.0.convs.proj.synapse"
    sop = {layer.name: int(layer.sop.sum()) for layer in counts.layers if layer.is_param}
    assert totals.mac_effective.sum() == sop[first]
    assert len(sop) == 9 + 4 * 2 + 1 + 2 * 2 + 1
    assert all(getattr(entry, "folds_into", "none") for entry in counts.aux)  # no normalisation is left over
    # an image that a neuron turns into spikes in front needs no multiplication
    spiking = tiny(embeds=("max", "max", "max"))
    x = 3 * random(2, 3, 16, 16)
    with torch.no_grad(), count(spiking, strict=True) as run:
        spiking(x.expand(4, *x.shape))
    assert Totals(run.counts()).mac_effective.sum() == 0


def test_weights_start_as_in_the_authors_code() -> None:
    torch.manual_seed(0)
    imagenet: Any = create_model("maxformer_10_384", depths=(1, 1, 1))
    convs = [m for m in imagenet.modules() if isinstance(m, Conv2d)]
    for layer in (*convs, imagenet.stages[2][0].mlp.fc1.synapse):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert layer.bias is None or not layer.bias.any()
    bound = 384**-0.5  # torch's, of a linear map
    for layer in (imagenet.stages[2][0].mixer.qkv.synapse, imagenet.stages[2][0].mixer.proj.synapse, imagenet.head):
        assert 0.9 * bound < layer.weight.abs().max().item() <= bound
    cifar: Any = create_model("maxformer_cifar_4_384")
    assert cifar.head.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not cifar.head.bias.any()
    assert cifar.stages[2][0].mlp.fc1.synapse.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_images_and_frames() -> None:
    event = tiny("maxformer_dvs_2_256", T=3)
    x = random(2, 2, 16, 32)
    assert torch.equal(event(x), event(x.expand(3, *x.shape)))  # counts of events without a time axis are shown T times
    headless = tiny(num_classes=0)
    features = headless(random(2, 3, 8, 8))
    assert features.shape == (4, 2, 32)
    assert set(features.unique().tolist()) <= {0.0, 1.0}
    with pytest.raises(ValueError, match="multiples of 16"):
        event(random(2, 2, 24, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 36}, "embed_dim is 36; expected a multiple of 8"),
        ({"num_heads": 7}, "dim=384 and num_heads=7"),
        ({"depths": (1, 1)}, r"depths=\(1, 1\).*one entry per stage"),
        ({"depths": (1, 0, 1)}, r"depths=\(1, 0, 1\).* must be >= 1"),
        ({"embeds": ("orig", "max", "pool")}, r"embeds\[2\] is 'pool'"),
        ({"mixers": ("identity", "dwc4", "ssa")}, r"mixers\[1\] is 'dwc4'"),
        ({"mlp_ratio": 0.0}, "mlp_ratio is 0.0"),
        ({"scale": 0.0}, "scale=0.0"),
    ],
    ids=["embed_dim", "num_heads", "stages", "depth", "embeds", "mixers", "mlp_ratio", "scale"],
)
def test_impossible_configurations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("maxformer_cifar_4_384", **options)


def test_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    compared = 0
    blocks = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", PAGE.read_text("utf-8"), re.S | re.M)
    for block, printed in blocks:
        exec(block, names)
        out = capsys.readouterr().out
        if printed:
            assert out == printed, block
            compared += 1
    assert compared >= 2


def test_the_table_of_the_page_is_that_of_the_package() -> None:
    rows = {line.split("`")[1]: line for line in PAGE.read_text("utf-8").splitlines() if re.match(r"\| `\w+_\d", line)}
    assert rows.keys() >= MEASURED.keys()
    for name in MEASURED:
        size, row = size_of(name), rows[name]
        assert f"| {size.parameters:,}" in row, name
        assert f"| {size.T} | {' x '.join(map(str, size.shape))} |" in row, name
        for result in describe(name).published:
            assert re.search(rf"\b{result.accuracy:g}0?\b", row), (name, result)
