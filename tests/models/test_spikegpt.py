"""SpikeGPT: sizes, one code path for whole texts and streams, switches, checkpoints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from spikeloom_tests.models.small_spikegpt import B, T, V, text, tiny
from torch import Tensor, nn

from spikeloom import cli
from spikeloom.energy import count
from spikeloom.models import (
    SpikeGPT,
    SpikeGPTConfig,
    create_model,
    describe,
    from_official,
    language_loss,
    list_models,
    load_model,
    model_config,
    save_model,
)
from spikeloom.models.cli import as_json, published_line, usage
from spikeloom.models.official import translate
from spikeloom.models.sizes import parameters, size_of
from spikeloom.neurons import LIF, Stream

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "models" / "spikegpt.md").read_text(encoding="utf-8")


def rates(model: nn.Module, ids: Tensor) -> list[float]:
    """Share of spikes of every LIF."""
    found: list[float] = []
    handles = [
        module.register_forward_hook(lambda m, x, y: found.append(y.mean().item()))
        for module in model.modules()
        if isinstance(module, LIF)
    ]
    model(ids)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [("spikegpt_46m", 47_173_632), ("spikegpt_216m", 215_399_424), ("spikegpt_bookcorpus", 184_349_184)],
)
def test_parameters_are_those_of_the_authors_code(name: str, expected: int) -> None:
    size, config = size_of(name), describe(name).config
    W, C, L = config.vocab_size, config.embed_dim, config.depth
    assert size.parameters == 2 * W * C + L * (13 * C**2 + 11 * C) + 4 * C == expected
    assert size.macs == L * 13 * C**2 + W * C
    assert (size.T, size.shape) == (None, ())


def test_ffn_pre_has_a_channel_mix_more() -> None:
    C = 16
    assert parameters(tiny(ffn_pre=True)) - parameters(tiny()) == 5 * C**2 - 3 * C


@pytest.mark.parametrize(
    "options", [{}, {"ffn_pre": True}, {"depth": 1}, {"embedding": "raw", "rescale_every": 2}], ids=str
)
@pytest.mark.parametrize("cuts", [[1] * T, [5, 1, 6], [T - 1, 1]], ids=len)
@torch.no_grad()
def test_a_stream_is_the_whole_text(options: dict[str, Any], cuts: list[int]) -> None:
    model, ids = tiny(**options), text()
    assert all(0.01 < rate < 0.9 for rate in rates(model, ids))
    whole, stream = model(ids), Stream(model)
    torch.testing.assert_close(torch.cat([stream(piece) for piece in ids.split(cuts)]), whole, rtol=0, atol=1e-10)
    at_once = Stream(model)
    torch.testing.assert_close(at_once(ids, last=True), whole[-1:], rtol=0, atol=1e-10)
    states, expected = stream.state_dict(), at_once.state_dict()
    assert states.keys() == expected.keys()
    for name, value in states.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-10)


@torch.no_grad()
def test_clones_continue_on_their_own_and_texts_do_not_mix() -> None:
    model, ids = tiny(), text()
    stream = Stream(model)
    stream(ids[:7])
    twin = stream.clone()
    first, second = stream(ids[7:]), twin(text(1)[7:])
    torch.testing.assert_close(first, model(ids)[7:])
    torch.testing.assert_close(second, model(torch.cat([ids[:7], text(1)[7:]]))[7:])
    alone = torch.cat([model(ids[:, b : b + 1]) for b in range(B)], 1)
    torch.testing.assert_close(model(ids), alone, rtol=0, atol=1e-10)


@torch.no_grad()
def test_no_token_changes_what_came_before() -> None:
    model, ids = tiny(), text()
    other = ids.clone()
    other[6] = (other[6] + 1) % V
    whole, changed = model(ids), model(other)
    assert torch.equal(whole[:6], changed[:6])
    assert not torch.equal(whole[6], changed[6])
    assert not torch.equal(whole[8], changed[8])


def test_gradients_pass_from_piece_to_piece() -> None:
    model, ids = tiny(), text()
    found = []
    for cuts in ([T], [4, 1, 7]):
        model.zero_grad()
        stream = Stream(model, detach=False)
        logits = torch.cat([stream(piece) for piece in ids.split(cuts)])
        language_loss(logits, text(1)).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(list(model.parameters()))
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_rescaling_is_the_authors_division_of_weights() -> None:
    """By hand: matrices of blocks 2, 3 and 4 divided by 2, 2 and 4, x halved behind blocks 1 and 3."""
    model, plain = tiny(depth=5, rescale_every=2), tiny(depth=5)
    for layer, block in enumerate(plain.blocks):
        for name in ("att.output", "ffn.value"):
            block.get_submodule(name).get_parameter("weight").div_(2 ** (layer // 2))
        if layer % 2:
            block.register_forward_hook(lambda m, x, y: y / 2)
    assert torch.equal(model(text()), plain(text()))
    assert not torch.equal(model(text()), tiny(depth=5)(text()))


@torch.no_grad()
def test_the_embedding_is_a_spike_at_zero() -> None:
    model, raw = tiny(), tiny(embedding="raw")
    ids = text()
    for net in (model, raw):
        net.emb.weight[0, :4] = torch.tensor([0.0, -0.0, 1e-9, -1e-9])
    assert model.binary(model.emb(torch.zeros(1, 1).long()))[0, 0, :4].tolist() == [1, 1, 1, 0]
    raw.emb.weight.copy_((model.emb.weight >= 0).double())
    assert torch.equal(raw(ids), model(ids))


def test_dropout_is_per_token_and_in_training_alone() -> None:
    model = tiny(dropout=0.5)
    block = model.get_submodule("blocks.0")
    kept: list[Tensor] = []
    block.get_submodule("dropout").register_forward_hook(lambda m, x, y: kept.append(y != 0))
    model.train()(text())
    model.eval()(text())
    assert 0.35 < kept[0].double().mean().item() < 0.65
    assert not torch.equal(kept[0][0], kept[0][1])
    assert bool(kept[1].all())


@pytest.mark.parametrize("init", ["orthogonal", "rwkv"])
def test_matrices_by_the_authors_rules(init: Any) -> None:
    model = SpikeGPT(SpikeGPTConfig(vocab_size=64, embed_dim=16, depth=2, init=init))
    block = model.get_submodule("blocks.1")
    norms = {name: p.square().sum(0).sqrt().mean().item() for name, p in block.named_parameters() if p.ndim == 2}
    zeros = {
        "att.key.weight",
        "att.receptance.weight",
        "att.output.weight",
        "ffn.value.weight",
        "ffn.receptance.weight",
    }
    assert {name for name, norm in norms.items() if norm == 0} == (zeros if init == "rwkv" else set())
    assert norms["att.value.weight"] == pytest.approx(1, rel=1e-5)
    assert norms["ffn.key.weight"] == pytest.approx(2 if init == "rwkv" else 1, rel=1e-5)
    assert model.emb.weight.square().sum(0).sqrt().mean().item() == pytest.approx(8e-4, rel=1e-4)
    assert model.head.weight.square().sum(0).sqrt().mean().item() == pytest.approx(0.5 * 2, rel=1e-4)
    language_loss(model(text()), text(1)).backward()
    assert all(p.grad is not None for p in model.parameters())


def official(depth: int = 2, C: int = 8, pre: bool = False) -> dict[str, Tensor]:
    """A state dict with the authors' names and shapes."""
    model = SpikeGPT(SpikeGPTConfig(vocab_size=V, embed_dim=C, depth=depth, ffn_pre=pre))
    state = {}
    for name, value in model.state_dict().items():
        name = re.sub(r"\.(mix|wkv)\.", ".", name)
        name = name.replace("blocks.0.att.", "blocks.0.ffnPre.") if pre else name
        state[name] = value.view(1, 1, C) if "time_mix" in name else value
    return state


@pytest.mark.parametrize("pre", [False, True])
def test_official_checkpoints_need_no_configuration(pre: bool) -> None:
    state = official(pre=pre)
    assert len(state) == 6 + 18 * 2 - (4 if pre else 0)
    model = from_official("spikegpt", {}, {f"module.{key}": value for key, value in state.items()}, rescale_every=6)
    assert isinstance(model, SpikeGPT)
    kind = {"model_type": "RWKV-ffnPre" if pre else "RWKV", "n_layer": 2, "n_embd": 8, "vocab_size": V, "ctx_len": 1024}
    assert from_official("spikegpt", kind, state).state_dict().keys() == model.state_dict().keys()
    assert (model.config.depth, model.config.ffn_pre, model.config.rescale_every) == (2, pre, 6)
    for key, value in state.items():
        ours = model.state_dict()[translate("spikegpt", key, model.state_dict())]
        assert torch.equal(ours, value.reshape(ours.shape))


def test_checkpoints_that_do_not_fit_are_explained() -> None:
    state = official()
    with pytest.raises(
        ValueError, match=r"has n_layer=18, model_type='RWKV-ffnPre', but .* n_embd=8, n_layer=2, model"
    ):
        from_official("spikegpt", {"n_layer": 18, "model_type": "RWKV-ffnPre"}, state)
    with pytest.raises(ValueError, match=r"no matrix emb.weight or no blocks"):
        from_official("spikegpt", {}, {"head.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"no argument of the official class \(nearest: n_layer\)"):
        from_official("spikegpt", {"n_layers": 2}, state)
    short = {key: value for key, value in state.items() if key != "blocks.1.att.time_decay"}
    with pytest.raises(ValueError, match=r"1 entries missing: blocks\.1\.att\.time_decay\."):
        from_official("spikegpt", {}, short)
    with pytest.raises(ValueError, match=r"1 entries too many: blocks\.1\.ffn\.gate\."):
        from_official("spikegpt", {}, {**state, "blocks.1.ffn.gate": torch.zeros(1)})


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([[0], [V]]), rf"token id {V}; expected ids from 0 to {V - 1} \(vocab_size={V}\)"),
        (torch.tensor([[-1], [3]]), "token id -1"),
        (torch.zeros(0, 1, dtype=torch.long), r"got \[0, 1\] of torch.int64; expected token ids \[T, B\]"),
        (torch.zeros(4, dtype=torch.long), r"One text is ids.unsqueeze\(1\)"),
        (torch.zeros(4, 1), "of torch.float32"),
        ("text", "got a str"),
    ],
    ids=["large", "negative", "empty", "axes", "floating", "text"],
)
def test_wrong_ids_are_explained(ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny()(ids)


@pytest.mark.parametrize(
    "wrong",
    [{"vocab_size": 0}, {"depth": 0}, {"embed_dim": 1}, {"rescale_every": -1}, {"dropout": 1.0}, {"embedding": "real"}],
    ids=str,
)
def test_impossible_configurations_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        create_model("spikegpt_46m", **wrong)


def test_it_learns_a_repeated_text_and_its_neurons_fire() -> None:
    torch.manual_seed(0)
    words = torch.tensor([ord(c) % 32 for c in "the cat sat on the mat. a dog ran to the red barn. "] * 8)
    model = SpikeGPT(SpikeGPTConfig(vocab_size=32, embed_dim=64, depth=2))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.99))
    start = torch.arange(16) * 7
    ids = torch.stack([words[s : s + 65] for s in start.tolist()], 1)
    for _ in range(60):
        optimiser.zero_grad()
        loss = language_loss(model(ids[:-1]), ids[1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    assert loss.item() < 0.5
    with torch.no_grad():
        assert all(0.01 < rate < 0.6 for rate in rates(model.eval(), ids))


def test_every_operation_is_counted_and_no_product_reads_spikes() -> None:
    model = tiny().float()
    with torch.no_grad(), count(model, strict=True) as run:
        counted = model(text())
    found = run.counts()
    assert not found.uncounted
    assert len(found.layers) == 7 * 3 + 1
    assert sum(layer.dense_exact for layer in found.layers) == 3 * 13 * 16**2 + V * 16
    assert {layer.kind for layer in found.layers} == {"float"}
    with torch.no_grad():
        torch.testing.assert_close(counted, model(text()))


def test_files_sizes_and_words_of_the_registry(tmp_path: Path) -> None:
    assert list_models("spikegpt_[!c]*") == ["spikegpt_216m", "spikegpt_46m", "spikegpt_bookcorpus"]
    line = published_line(describe("spikegpt_46m").published).replace("\xa0", " ")
    assert line == "paper: enwik8 1.283 bits per character*, 1.262 bits per character* (context 3072)"
    assert "perplexity" in published_line(describe("spikegpt_216m").published)
    names: dict[str, Any] = {"ids": text()}
    lines = usage("spikegpt_46m", size_of("spikegpt_46m")).replace(
        '_46m"', f'_46m", vocab_size={V}, embed_dim=8, depth=1'
    )
    exec(lines, names)
    assert names["logits"].shape == (T, B, V)
    model = create_model("spikegpt_46m", vocab_size=V, embed_dim=8, depth=1, rescale_every=6).eval()
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert torch.equal(again(text()), model(text()))
    assert model_config(again) == model_config(model)


def test_commands_know_that_it_reads_token_ids(capsys: pytest.CaptureFixture[str]) -> None:
    assert as_json("spikegpt_46m")["input"] == {"T": None}
    assert cli.main(["models", "spikegpt_46m"]) == 0
    printed = capsys.readouterr().out
    for line in ("T tokens: token ids [T, B]", "44.00 M per time step", "1.283 bits per character  context 1024"):
        assert line in printed
    assert cli.main(["energy", "spikegpt_46m"]) == 1
    assert "spikegpt_46m reads token ids, and random frames are none" in capsys.readouterr().err


def test_compiles_without_graph_break() -> None:
    model = tiny(depth=1).float()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(text()), model(text()))
    torch.compiler.reset()


def test_half_precision_keeps_states_in_single() -> None:
    model = tiny().float()
    stream = Stream(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert bool(stream(text()).isfinite().all())
    assert {value.dtype for value in stream.state_dict().values()} == {torch.float32}


def test_the_page_runs_and_prints_what_it_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", PAGE, re.DOTALL | re.M)
    assert len(blocks) >= 3
    for code, printed in blocks:
        exec(code, names)
        assert capsys.readouterr().out == printed


def test_the_page_lists_every_variant() -> None:
    for name in list_models("spikegpt*"):
        (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", PAGE, re.M)
        assert f"{size_of(name).parameters:,}" in row
        for published in describe(name).published:
            assert f"{published.accuracy:g}" in row
