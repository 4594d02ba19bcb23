"""Image augmentation: crop, flip, erasing, mixing with soft targets, and RandAugment against Pillow."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from spikeloom.datasets import (
    RandAugment,
    cutmix,
    flip_images,
    mixup,
    one_hot_smoothed,
    random_crop,
    random_erase,
)
from spikeloom.datasets.rand_augment import GEOMETRIC, SPIKFORMER_OPERATIONS, TIMM_OPERATIONS


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(B: int = 40, C: int = 3, H: int = 16, W: int = 20) -> Tensor:
    """Smooth uint8 pictures with some structure."""
    coarse = torch.rand(B, C, 4, 5, generator=seeded(9))
    return (torch.nn.functional.interpolate(coarse, (H, W), mode="bilinear") * 255).to(torch.uint8)


ALL = RandAugment.parse("rand-m9-n2-mstd0.5-inc1")
CHANGES: dict[str, Callable[[torch.Generator], Tensor]] = {
    "crop": lambda g: random_crop(pictures(), 4, g),
    "flip": lambda g: flip_images(pictures(), g),
    "erase": lambda g: random_erase(pictures().float(), g, 0.5, "pixel"),
    "mixup": lambda g: mixup(pictures().float(), one_hot_smoothed(torch.arange(40), 40), 0.5, g)[0],
    "cutmix": lambda g: cutmix(pictures().float(), one_hot_smoothed(torch.arange(40), 40), 1.0, g)[1],
    "rand": lambda g: ALL(pictures(), g),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_only_the_given_generator_decides(change: Callable[[torch.Generator], Tensor]) -> None:
    torch.manual_seed(1)
    first = change(seeded(3))
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(first, change(seeded(3)))
    assert torch.equal(state, torch.random.get_rng_state())
    assert any(not torch.equal(first, change(seeded(seed))) for seed in range(4, 9))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_is_a_window_of_the_padded_image(dtype: torch.dtype) -> None:
    images = pictures(B=200).to(dtype)
    cropped = random_crop(images, 2, seeded(0), fill=7)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), value=7)
    offsets = set()
    for image, around in zip(cropped, padded, strict=True):
        windows = {(y, x): around[:, y : y + 16, x : x + 20] for y in range(5) for x in range(5)}
        found = [offset for offset, window in windows.items() if torch.equal(image, window)]
        assert len(found) == 1
        offsets.add(found[0])
    assert len(offsets) == 25
    assert cropped.dtype == dtype
    assert torch.equal(random_crop(images, 0, seeded(0)), images)


def test_flip_is_per_image() -> None:
    images = pictures()
    flipped = flip_images(images, seeded(5))
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, images, strict=True)]
    untouched = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, untouched, strict=True))
    assert 8 < sum(mirrored) < 32


def test_erased_boxes_have_the_stated_areas() -> None:
    images = torch.ones(2000, 1, 64, 64)
    erased = random_erase(images, seeded(0), 0.25)[:, 0] == 0
    area = erased.sum((1, 2)) / 64**2
    hit = area > 0
    assert 0.21 < hit.float().mean() < 0.29
    assert 0.015 < area[hit].min() < 0.04
    assert 0.3 < area[hit].max() < 0.345
    height, width = erased.any(2).sum(1)[hit], erased.any(1).sum(1)[hit]
    assert torch.equal(height * width, erased.sum((1, 2))[hit])  # one full box
    aspect = height / width
    assert aspect.min() < 0.4
    assert aspect.max() > 2.5
    assert abs(aspect.log().mean()) < 0.1


def test_erasing_with_pixels_is_normal_noise_in_every_channel() -> None:
    erased = random_erase(torch.full((200, 3, 32, 32), 9.0), seeded(0), 1.0, "pixel")
    box = erased != 9
    assert torch.equal(box[:, 0], box[:, 2])
    assert abs(erased[box].mean()) < 0.02
    assert abs(erased[box].std() - 1) < 0.02
    assert torch.equal(random_erase(erased, seeded(0), 0.0), erased)


def test_soft_targets() -> None:
    targets = one_hot_smoothed(torch.tensor([2, 0]), 4, 0.1)
    assert torch.allclose(targets, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]))
    assert one_hot_smoothed(torch.tensor([1]), 3, 0).tolist() == [[0, 1, 0]]
    with pytest.raises(ValueError, match="Labels span 0 to 4; expected 0 to 3"):
        one_hot_smoothed(torch.tensor([0, 4]), 4)


def test_mixup_blends_inputs_and_targets_alike() -> None:
    inputs = torch.eye(6).view(6, 1, 1, 6)
    mixed, targets = mixup(inputs, torch.eye(6), 0.5, seeded(0))
    assert torch.allclose(mixed.view(6, 6), targets)
    assert torch.allclose(targets.sum(1), torch.ones(6))
    share = float(targets[0, 0])
    assert 0 < share < 1
    assert torch.allclose(targets, torch.eye(6) * share + torch.eye(6).flip(0) * (1 - share))


def test_mixup_of_event_frames_mixes_samples_not_steps() -> None:
    frames = torch.rand(4, 6, 2, 5, 5, generator=seeded(1))
    mixed, targets = mixup(frames, torch.eye(6), 0.5, seeded(0), batch_axis=1)
    share = float(targets[0, 0])
    assert torch.allclose(mixed, frames * share + frames.flip(1) * (1 - share))


def test_shares_follow_the_beta_distribution_and_the_probability() -> None:
    generator = seeded(0)
    eye = torch.eye(2)
    shares = torch.tensor([float(mixup(eye, eye, 0.5, generator)[1][0, 0]) for _ in range(1500)])
    assert abs(shares.mean() - 0.5) < 0.03
    assert abs(shares.var() - 0.125) < 0.01  # of Beta(1/2, 1/2)
    kept = [mixup(eye, eye, 0.5, generator, 0.3)[0] is eye for _ in range(1000)]
    assert 640 < sum(kept) < 760


def test_cutmix_pastes_a_box_and_mixes_by_its_area() -> None:
    inputs = torch.zeros(4, 3, 32, 32)
    inputs[:2] = 1
    seen = set()
    for seed in range(30):
        mixed, targets = cutmix(inputs, torch.eye(4), 1.0, seeded(seed))
        pasted = mixed[0, 0] == 0
        area = float(pasted.float().mean())
        rows, columns = pasted.any(1).sum(), pasted.any(0).sum()
        assert int(rows * columns) == int(pasted.sum())
        assert torch.equal(mixed[3, 1] == 1, pasted)
        assert torch.allclose(targets[0], torch.tensor([1 - area, 0, 0, area]), atol=1e-6)
        seen.add(round(area, 3))
    assert len(seen) > 20
    frames = torch.rand(3, 4, 2, 8, 8, generator=seeded(1))
    mixed, targets = cutmix(frames, torch.eye(4), 1.0, seeded(1), batch_axis=1)
    changed = (mixed != frames).any(4).any(3).any(2)  # [T, B]
    assert torch.equal(changed, changed[:1].expand(3, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y, g: mixup(x.byte(), y, 0.5, g), "expected floating point"),
        (lambda x, y, g: mixup(x, y[:2], 0.5, g), r"expected floating \[4, K\]"),
        (lambda x, y, g: mixup(x, y.long(), 0.5, g), r"expected floating \[4, K\]"),
        (lambda x, y, g: cutmix(x, y, 0.0, g), "alpha is 0.0"),
        (lambda x, y, g: mixup(x, y, 0.5, g, 1.5), "probability is 1.5"),
        (lambda x, y, g: random_erase(x.byte(), g), "erase after normalising"),
        (lambda x, y, g: random_erase(x, g, mode="rand"), "mode is 'rand'"),
        (lambda x, y, g: random_crop(x[0], 4, g), r"expected \[B, C, H, W\]"),
        (lambda x, y, g: random_crop(x, -1, g), "padding is -1"),
        (lambda x, y, g: ALL(x, g), r"expected uint8 \[B, C, H, W\]"),
        (lambda x, y, g: RandAugment(fill=(1, 2))(x.byte(), g), "fill has 2 values for 3 channels"),
    ],
)
def test_bad_arguments_are_refused(call: Callable[..., object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(4, 3, 8, 8), torch.eye(4), seeded(0))


def test_setting_strings() -> None:
    small = RandAugment.parse("rand-m9-n1-mstd0.4-inc1", operations=SPIKFORMER_OPERATIONS, mean=(0.4914, 0.4822, 1.0))
    assert (small.magnitude, small.layers, small.magnitude_std, small.increasing) == (9, 1, 0.4, True)
    assert small.fill == (125, 123, 255)
    assert small.operations == ("Equalize", "Rotate", "ShearX", "TranslateX", "TranslateY")
    large = RandAugment.parse("rand-m9-mstd0.5-inc1")
    assert (large.layers, large.magnitude_max, large.fill, len(large.operations)) == (2, 10, (128,), 15)
    plain = RandAugment.parse("rand-mstd101-mmax12-inc0")
    assert (plain.magnitude, plain.magnitude_std, plain.magnitude_max) == (10, float("inf"), 12)
    assert not plain.increasing
    for text in ("augmix-m3", "rand-m9-q1", "rand-m", "rand9", "rand-m9-w0"):
        with pytest.raises(ValueError, match="expected 'rand' and sections"):
            RandAugment.parse(text)
    with pytest.raises(ValueError, match="'rand-m9-m3' has a section twice"):
        RandAugment.parse("rand-m9-m3")
    for text in ("rand-n1.5", "rand-ninf"):
        with pytest.raises(ValueError, match="expected a whole number of operations"):
            RandAugment.parse(text)
    with pytest.raises(ValueError, match=r"operations has \['Blur'\]"):
        RandAugment(operations=("Blur",))


def pillow(name: str, image: Tensor, v: float, sign: float, increasing: bool) -> Tensor:
    """The rules of the setting strings, by Pillow."""
    Image, ImageEnhance, ImageOps = (
        pytest.importorskip(f"PIL.{module}") for module in ("Image", "ImageEnhance", "ImageOps")
    )
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    kind = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    factor = max(0.1, 1 + 0.9 * v * sign) if increasing else 1.8 * v + 0.1

    bits = 4 - int(4 * v) if increasing else int(4 * v)

    def move(*matrix: float) -> object:
        return picture.transform(picture.size, kind[0], matrix, resample=kind[1], fillcolor=(128,) * 3)

    changes: dict[str, Callable[[], object]] = {
        "ShearX": lambda: move(1, 0.3 * v * sign, 0, 0, 1, 0),
        "ShearY": lambda: move(1, 0, 0, 0.3 * v * sign, 1, 0),
        "TranslateX": lambda: move(1, 0, 0.45 * v * sign * picture.size[0], 0, 1, 0),
        "TranslateY": lambda: move(1, 0, 0, 0, 1, 0.45 * v * sign * picture.size[1]),
        "Rotate": lambda: picture.rotate(30 * v * sign, resample=kind[1], fillcolor=(128,) * 3),
        "AutoContrast": lambda: ImageOps.autocontrast(picture),
        "Equalize": lambda: ImageOps.equalize(picture),
        "Invert": lambda: ImageOps.invert(picture),
        # 0 bits are black; recent versions of Pillow do not take them
        "Posterize": lambda: ImageOps.posterize(picture, bits) if bits else Image.new("RGB", picture.size),
        "Solarize": lambda: ImageOps.solarize(picture, 256 - int(256 * v) if increasing else int(256 * v)),
        "SolarizeAdd": lambda: picture.point([min(255, i + int(110 * v)) if i < 128 else i for i in range(256)] * 3),
        "Color": lambda: ImageEnhance.Color(picture).enhance(factor),
        "Contrast": lambda: ImageEnhance.Contrast(picture).enhance(factor),
        "Brightness": lambda: ImageEnhance.Brightness(picture).enhance(factor),
        "Sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(factor),
    }
    numpy = pytest.importorskip("numpy")
    return torch.from_numpy(numpy.array(changes[name]())).permute(2, 0, 1)


@pytest.mark.parametrize("name", TIMM_OPERATIONS)
@pytest.mark.parametrize("magnitude", [0, 3, 9, 10])
@pytest.mark.parametrize("increasing", [True, False])
def test_each_operation_equals_pillows(name: str, magnitude: int, increasing: bool) -> None:
    augment = RandAugment(
        magnitude, 1, increasing=increasing, operations=(name,), interpolation="bilinear", probability=1.0
    )
    images = pictures(B=6)
    ours = augment(images, seeded(0)).int()
    far, signs = 0.0, set()
    for image, result in zip(images, ours, strict=True):
        errors = {s: (pillow(name, image, magnitude / 10, s, increasing).int() - result).abs() for s in (1.0, -1.0)}
        sign = min(errors, key=lambda s: float(errors[s].float().mean()))
        signs.add(sign)
        far = max(far, float((errors[sign] > 2).float().mean()))
    # rounding; where a source lies on the image's very edge, inside or outside may differ
    assert far <= (0.02 if name in GEOMETRIC else 0)
    if name in GEOMETRIC and magnitude > 0:
        assert signs == {1.0, -1.0}


@pytest.mark.parametrize("increasing", [True, False])
def test_magnitudes_above_ten_are_clamped_operation_by_operation(increasing: bool) -> None:
    images = pictures(B=4)

    def at(name: str, magnitude: float) -> Tensor:
        strong = RandAugment(magnitude, 1, 0.0, 20, increasing, (name,), interpolation="bilinear", probability=1.0)
        return strong(images, seeded(0))

    assert torch.equal(at("Posterize", 20), images * 0 if increasing else images)
    assert torch.equal(at("Solarize", 20), 255 - images if increasing else images)
    assert torch.equal(at("SolarizeAdd", 20), torch.where(images < 128, images + 128, images))
    every = RandAugment.parse(f"rand-m15-n4-mmax20-inc{int(increasing)}")
    assert every(pictures(B=200), seeded(0)).shape == (200, 3, 16, 20)


def test_half_of_the_operations_are_applied_and_all_occur() -> None:
    images = pictures(B=1).expand(1000, 3, 16, 20)
    inverted = RandAugment(operations=("Invert",), layers=1)(images, seeded(0))
    assert 430 < sum(torch.equal(image, 255 - images[0]) for image in inverted) < 570
    results = RandAugment.parse("rand-m9-n1-inc1")(images, seeded(0))
    kinds = {tuple(image.flatten().tolist()) for image in results}
    assert len(kinds) >= 21  # untouched, 5 without sign, 2 for each of 9 with sign, bilinear and bicubic apart


def test_noise_on_the_magnitude_is_clamped() -> None:
    image = torch.full((4000, 1, 2, 2), 100, dtype=torch.uint8)
    noisy = RandAugment(9, 1, magnitude_std=0.5, operations=("SolarizeAdd",), probability=1.0)(image, seeded(0))
    added = noisy[:, 0, 0, 0].int() - 100
    assert added.max() == 110  # never more than magnitude 10
    assert abs(added.float().mean() - 98.5) < 1
    assert 0.015 < (added == 110).float().mean() < 0.032  # 2.3 % of a normal lie above two deviations
    uniform = replace(ALL, magnitude_std=float("inf"), layers=1, operations=("SolarizeAdd",), probability=1.0)
    spread = uniform(image, seeded(0))[:, 0, 0, 0].int() - 100
    assert spread.min() == 0
    assert spread.max() in (98, 99)
    assert abs(spread.float().mean() - 49) < 2


def test_grey_images_and_bicubic() -> None:
    grey = pictures(C=1)
    assert ALL(grey, seeded(0)).shape == grey.shape
    shifted = RandAugment(10, 1, operations=("TranslateX",), interpolation="bicubic", probability=1.0)
    result = shifted(pictures(), seeded(0))  # 0.45 * 20 = 9 whole pixels: exact, and 9 columns of fill
    for image, moved in zip(pictures(), result, strict=True):
        left = torch.equal(moved[:, :, :11], image[:, :, 9:]) and bool((moved[:, :, 11:] == 128).all())
        right = torch.equal(moved[:, :, 9:], image[:, :, :11]) and bool((moved[:, :, :9] == 128).all())
        assert left or right


def test_without_torchvision_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2.functional", None)
    with pytest.raises(ImportError, match=r"pip install 'spikeloom\[images\]'"):
        RandAugment(operations=("Equalize",))
    assert RandAugment(operations=GEOMETRIC)(pictures(), seeded(0)).shape == pictures().shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cpu_generator_serves_the_gpu_alike() -> None:
    images = pictures()
    assert torch.equal(random_crop(images, 4, seeded(3)), random_crop(images.cuda(), 4, seeded(3)).cpu())
    assert torch.equal(flip_images(images, seeded(3)), flip_images(images.cuda(), seeded(3)).cpu())
    real = images.float()
    assert torch.equal(random_erase(real, seeded(3), 0.5), random_erase(real.cuda(), seeded(3), 0.5).cpu())
    difference = ALL(images, seeded(3)).int() - ALL(images.cuda(), seeded(3)).cpu().int()
    assert (difference.abs() > 1).float().mean() < 0.01  # rounding of interpolated values, and edges
