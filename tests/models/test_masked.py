"""Masked pre-training: the sparse stem, tokens, positions, targets and loss, each by its definition."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom.models import MaskedAutoencoder, MaskedConfig, SpikformerV2, SpikformerV2Config
from spikeloom.models.masked import Reconstruction, normalised_patches, reconstruction_loss
from spikeloom.models.masked_decoder import Decoder, positions
from spikeloom.models.masked_stem import Kept, masked_stem, random_kept

GRID = (2, 3)
B = 4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images() -> Tensor:
    return 3 * torch.rand(B, 2, 16, 24, generator=seeded(), dtype=torch.float64)


def encoder(**options: Any) -> SpikformerV2:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "depth": 2, "stages": 3, "T": 1, "num_classes": 0}
    model = SpikformerV2(SpikformerV2Config(in_channels=2, **{**defaults, **options})).double()
    for name, parameter in model.named_parameters():
        if name.endswith("fire.bias"):
            nn.init.constant_(parameter, 1.5)
    return model


def autoencoder(**options: Any) -> MaskedAutoencoder:
    return MaskedAutoencoder(encoder(), MaskedConfig(decoder_dim=16, decoder_depth=1, **options)).double()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("join", ["add", "iand"])
def test_with_nothing_hidden_the_sparse_stem_is_the_dense_one(join: str, training: bool) -> None:
    dense = encoder(join=join)
    with torch.no_grad():
        for _ in range(40):
            dense(images())  # running statistics with which every layer fires
    dense.train(training)
    sparse = copy.deepcopy(dense)
    kept = random_kept(B, GRID, 0.0, seeded())
    frames = dense.frames(images())
    expected, found = dense.stem(frames), masked_stem(sparse.stem, frames, kept)
    assert 0.05 < expected.mean() < 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    for (name, one), other in zip(dense.stem.named_buffers(), sparse.stem.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9, msg=name)
    cotangent = torch.randn(expected.shape, generator=seeded(1), dtype=torch.float64)
    (expected * cotangent).sum().backward()
    (found * cotangent).sum().backward()
    for (name, one), other in zip(dense.stem.named_parameters(), sparse.stem.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-9, msg=name)


def test_hidden_places_stay_zero_through_the_stem() -> None:
    model = encoder().train()
    kept = random_kept(B, GRID, 0.5, seeded())
    hidden = ~kept.mask.unflatten(1, GRID)
    x = model.frames(images())
    for depth in (1, 2, 3):
        found = masked_stem(model.stem[:depth], x, kept)
        side = found.shape[-1] // GRID[1]
        assert side == 8 >> depth
        at = hidden.repeat_interleave(side, 1).repeat_interleave(side, 2)[None, :, None].expand_as(found)
        assert not found[at].any()
        assert found[~at].any()


def test_nothing_hidden_is_seen() -> None:
    """Neither values of hidden pixels nor the statistics know them; what is kept is all that matters."""
    kept = random_kept(B, GRID, 0.5, seeded())
    at = ~kept.map(8)[:, None].expand(-1, 2, -1, -1)
    changed = torch.where(at, torch.rand(images().shape, generator=seeded(5), dtype=torch.float64) * 100, images())
    one, other = encoder(), encoder()
    assert torch.equal(
        masked_stem(one.stem, one.frames(images()), kept), masked_stem(other.stem, other.frames(changed), kept)
    )
    for a, b in zip(one.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)


def test_statistics_are_of_kept_places_alone() -> None:
    model = encoder().train()
    kept = random_kept(B, GRID, 0.5, seeded())
    frames = model.frames(images())
    down = model.stem[0].down
    current = down.synapse(frames * kept.map(8)[:, None])[0].detach()
    values = current.movedim(1, 3)[kept.map(4)]  # [places, C]
    assert len(values) == B * 3 * 16
    masked_stem(model.stem, frames, kept)
    torch.testing.assert_close(down.fire.running_mean, 0.1 * values.mean(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(down.fire.running_var, 0.9 + 0.1 * values.var(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("grid", "ratio", "count"), [((14, 14), 0.75, 49), ((14, 14), 0.5, 98), (GRID, 0.6, 2)])
def test_masks(grid: tuple[int, int], ratio: float, count: int) -> None:
    kept = random_kept(64, grid, ratio, seeded(1))
    assert kept.patches.shape == (64, count)
    assert kept.mask.sum(1).tolist() == [count] * 64
    noise = torch.rand(64, grid[0] * grid[1], generator=seeded(1))
    assert torch.equal(kept.mask, noise.argsort(1).argsort(1) < count)
    assert torch.equal(kept.patches, random_kept(64, grid, ratio, seeded(1)).patches)
    assert not torch.equal(kept.patches, random_kept(64, grid, ratio, seeded(2)).patches)
    assert 0 < kept.mask.float().mean(0).min() <= kept.mask.float().mean(0).max() < 1  # every patch is hidden at times
    for side in (1, 2):
        at = kept.map(side).flatten(1)
        assert torch.equal(at, torch.zeros_like(at).scatter(1, kept.places(side), True))


def test_hidden_tokens_are_the_mask_token_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = autoencoder(ratio=0.5)
    seen: list[Tensor] = []
    model.encoder.blocks.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    kept = random_kept(B, GRID, 0.5, seeded(3))
    tokens = model.encode(model.encoder.frames(images()), kept)
    assert tokens.shape == (B, 6, 16)
    (x,) = seen
    assert torch.equal(x[0][~kept.mask], model.mask_token.expand(B * 3, -1))
    assert x[0][kept.mask].unique().tolist() == [0, 1, 2]


def test_patches_are_read_row_by_row_and_normalised_by_themselves() -> None:
    x = images()
    found = normalised_patches(x, 8)
    assert found.shape == (B, 6, 128)
    patch = x[2, :, 8:16, 16:24]  # row 1, column 2 of the grid: number 5
    values = [float(patch[c, i, j]) for i in range(8) for j in range(8) for c in range(2)]
    mean = sum(values) / 128
    variance = sum((v - mean) ** 2 for v in values) / 127
    expected = torch.tensor([(v - mean) / math.sqrt(variance + 1e-6) for v in values], dtype=torch.float64)
    torch.testing.assert_close(found[2, 5], expected, rtol=1e-9, atol=1e-9)
    assert not normalised_patches(torch.full((1, 1, 8, 8), 7.0), 8).any()
    assert normalised_patches(images().to(torch.bfloat16), 8).dtype == torch.float32


def test_the_loss_ignores_what_was_visible() -> None:
    model = autoencoder()
    result = model(images(), seeded())
    assert isinstance(result, Reconstruction)
    assert result.prediction.shape == result.target.shape == (B, 6, 128)
    assert result.kept.sum(1).tolist() == [1] * B  # int(6 * 0.25)
    result.prediction.retain_grad()
    loss = reconstruction_loss(result)
    loss.backward()
    grad = result.prediction.grad
    assert grad is not None
    assert not grad[result.kept].any()
    assert grad[~result.kept].all()
    error = (result.prediction - result.target).detach()
    by_hand = [float(error[b, p].square().sum() / 128) for b in range(B) for p in range(6) if not result.kept[b, p]]
    assert loss.item() == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-12)
    changed = result._replace(prediction=torch.where(result.kept[..., None], 1e6, result.prediction))
    assert torch.equal(reconstruction_loss(changed), loss)


def test_every_parameter_learns_and_the_encoder_keeps_its_names() -> None:
    model = autoencoder(ratio=0.5)
    model.loss(images(), seeded()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    inner = {name.removeprefix("encoder.") for name in model.state_dict() if name.startswith("encoder.")}
    assert inner == set(encoder().state_dict())
    outer = {name.partition(".")[0] for name in model.state_dict()}
    assert outer == {"encoder", "decoder", "norm", "mask_token"}
    assert model.loss(images(), seeded(7)) == model.loss(images()[None], seeded(7))
    assert model.loss(images(), seeded(7)) != model.loss(images(), seeded(8))


def test_positions_tell_x_first_then_y() -> None:
    table = positions((2, 3), 8)
    assert table.shape == (6, 8)
    row, column = 1, 2
    angles = [(place, rate) for place in (column, row) for rate in (1.0, 10_000**-0.5)]
    expected = [
        wave(place * rate) for pair in (angles[:2], angles[2:]) for wave in (math.sin, math.cos) for place, rate in pair
    ]
    torch.testing.assert_close(table[5], torch.tensor(expected, dtype=torch.float64))


def test_the_decoder_is_a_pre_norm_vision_transformer() -> None:
    torch.manual_seed(0)
    decoder = Decoder(5, 7, dim=8, depth=2, heads=2).double()
    theirs = nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).double()
    tokens = torch.randn(3, 6, 5, generator=seeded(), dtype=torch.float64)
    z = decoder.embed(tokens) + positions((2, 3), 8)
    for block in decoder.blocks:
        nn.init.normal_(block.qkv.weight)  # attention that differs from place to place
        theirs.self_attn.in_proj_weight.data.copy_(block.qkv.weight)
        theirs.self_attn.in_proj_bias.data.zero_()
        for own, other in (
            (block.proj, theirs.self_attn.out_proj),
            (block.mlp[0], theirs.linear1),
            (block.mlp[2], theirs.linear2),
        ):
            other.load_state_dict(own.state_dict())
        z = theirs(z)
    found = decoder(tokens, (2, 3))
    assert found.shape == (3, 6, 7)
    torch.testing.assert_close(found, decoder.out(decoder.norm(z)), rtol=1e-10, atol=1e-10)
    qkv = [name for name, _ in decoder.named_parameters() if "qkv" in name]
    assert qkv == ["blocks.0.qkv.weight", "blocks.1.qkv.weight"]


def test_the_default_decoder_is_that_of_the_description() -> None:
    with torch.device("meta"):
        model = MaskedAutoencoder(SpikformerV2(SpikformerV2Config(T=1, num_classes=0)))
    assert model.masking.ratio == 0.75
    assert (model.decoder.dim, len(model.decoder.blocks), model.decoder.blocks[0].heads) == (256, 4, 4)
    assert model.decoder.out.out_features == 16 * 16 * 3


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_an_impossible_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="expected the share of patches to hide, 0 <= ratio < 1"):
        MaskedConfig(ratio=ratio)
    with pytest.raises(ValueError, match="expected the share of patches to hide"):
        random_kept(1, GRID, ratio, seeded())


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keeps none of the 6 patches of a 2 x 3 grid; lower it to at most 0\.833"):
        random_kept(1, GRID, 0.9, seeded())
    with pytest.raises(ValueError, match="None of 6 patches is hidden"):
        autoencoder(ratio=0.0).loss(images(), seeded())
    with pytest.raises(ValueError, match="multiples of 8"):
        autoencoder()(images()[..., :20], seeded())
    with pytest.raises(ValueError, match=r"with 4 time steps; it works on one"):
        autoencoder()(images()[:, None], seeded())
    with pytest.raises(ValueError, match="decoder_depth=0"):
        MaskedConfig(decoder_depth=0)
    with pytest.raises(ValueError, match="dim=6; expected a multiple of 4"):
        Decoder(4, 4, dim=6, heads=2)
    assert Kept(torch.tensor([[1, 4]]), GRID).mask.tolist() == [[False, True, False, False, True, False]]
