"""Networks and data written in unusual ways: what converts is what the ANN computes, the rest says why not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spikeloom_tests.conversion.nets import settled
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.conversion import (
    QCFS,
    EarlyExit,
    NotConvertibleError,
    compare,
    convert,
    load_converted,
    save_converted,
    with_qcfs,
)
from spikeloom.conversion.activations import Rectify
from spikeloom.conversion.choices import settings
from spikeloom.conversion.cli import network, state_dict
from spikeloom.conversion.quantised import ClippedReLU
from spikeloom.conversion.thresholds import rule_for
from spikeloom.models.files import CheckpointError


class Net(nn.Module):
    """A forward as a function of the module and the images; a convolution, a linear layer, an activation."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.run = run
        self.c, self.l, self.clip = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 36, 5), ClippedReLU(3.0)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def pictures() -> Tensor:
    return torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def plain() -> nn.Module:
    return Net(lambda s, x: s.l(F.relu(s.c(x)).flatten(1)))


def close(ann: nn.Module, images: Tensor, folder: Path) -> None:
    """Converted, at many steps, it is the ANN, and the same from a file."""
    net = convert(ann, images.split(4), method="channel_max", T=1024)
    with torch.no_grad():
        expected = ann(images[:4].clone())
        found = net(images[:4])
        assert (found.mean(0) - expected).abs().max() < 0.01 * expected.abs().max()
        save_converted(net, folder)
        assert torch.equal(load_converted(folder)(images[:4]), found)


FORMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "reshape": lambda s, x: s.l(F.relu(s.c(x)).reshape(x.shape[0], 2, 2, 36).transpose(1, 2).reshape(x.shape[0], -1)),
    "reshape_tuple": lambda s, x: s.l(F.relu(s.c(x)).reshape((-1, 144))),
    "permute_named": lambda s, x: s.l(torch.permute(F.relu(s.c(x)), dims=(0, 2, 3, 1)).flatten(1)),
    "layout": lambda s, x: s.l(F.relu(s.c(x)).contiguous(memory_format=torch.channels_last).flatten(1)),
    "named": lambda s, x: s.l(s.clip(x=s.c(input=x)).flatten(1)),
    "in_place_on_images": lambda s, x: s.l(F.relu(s.c(x.sub_(0.5).div_(2.0))).flatten(1)),
    "unread": lambda s, x: (F.relu(s.c(x)).tanh_, s.l(F.relu(s.c(x)).flatten(1)), F.relu(x))[1],
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_convert(name: str, tmp_path: Path) -> None:
    images = pictures()
    before = images.clone()
    close(Net(FORMS[name]), images, tmp_path / "net")
    assert torch.equal(images, before)


def test_what_does_not_reach_the_logits_is_left_out() -> None:
    net = convert(Net(lambda s, x: (F.relu(s.c(x)), s.l(F.relu(s.c(x)).flatten(1)))[1]), pictures().split(2), T=2)
    (line,) = {y.where.split(":")[1] for y in net.report.layers}
    assert [y.name for y in net.report.layers] == [f"relu test_odd_networks.py:{line}#2"]


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda s, x: s.l(F.relu(s.c(x) - s.c(x).mean(0)).flatten(1)), "over the batch axis"),
        (lambda s, x: s.l((F.relu(s.c(x)) - 9 * x.mean()).flatten(1)), "over the batch axis"),
        (lambda s, x: s.l(F.relu(s.c(x)).flatten(1)).unsqueeze(-1).squeeze(), r"\[5\] for 1 image; .*every size"),
        (lambda s, x: (F.relu(s.c(x)), s.l(s.c(x).flatten(1)))[1], r"reaches the logits \(relu does not\)"),
    ],
    ids=["batch_mean", "mean_of_all", "squeeze", "no_site"],
)
def test_forms_that_do_not(run: Callable[[Any, Tensor], Tensor], says: str) -> None:
    with pytest.raises(NotConvertibleError, match=f"(?s){says}"):
        convert(Net(run), pictures().split(2))


@pytest.mark.parametrize(
    ("wrapped", "says"),
    [
        (lambda: nn.DataParallel(plain()), "model.module"),
        (lambda: torch.compile(plain()), "model._orig_mod"),
        (lambda: torch.jit.trace(plain(), pictures()[:2]), "TorchScript"),
        (lambda: plain().forward, "got method; expected a network"),
    ],
    ids=["parallel", "compiled", "script", "function"],
)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore:.torch.jit:FutureWarning")
def test_wrappers_say_what_to_pass(wrapped: Callable[[], Any], says: str) -> None:
    with pytest.raises(NotConvertibleError, match=says):
        convert(wrapped(), pictures().split(2))


def test_images_of_another_shape_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"does not take 2 images of the calibration set, torch.float32 \[2, 1, 6, 6\]"
    ):
        convert(plain(), pictures()[:, :1].split(2))


def test_hooks_stay_with_the_ann() -> None:
    ann: Any = plain()
    calls: list[int] = []
    ann.c.register_forward_hook(lambda *given: calls.append(1))
    net = convert(ann, pictures().split(2), T=2)
    count = len(calls)
    net(pictures()[:2])
    assert 0 < count == len(calls)
    ann.c.register_forward_hook(lambda module, given, result: 2 * result)
    with pytest.raises(NotConvertibleError, match=r"c \(.*is the first.*a hook that changes values"):
        convert(ann, pictures().split(2))


def test_sums_of_a_large_layer_do_not_overflow_in_float16() -> None:
    current = torch.rand(64, 2, 64, 64)
    thetas = []
    for dtype in (torch.float32, torch.float16):
        rule = rule_for(Rectify(), 1, settings("ltb"))
        assert rule.observe(current.to(dtype)).dtype == dtype
        thetas.append(rule.value())
    torch.testing.assert_close(*thetas, rtol=1e-3, atol=0)


@pytest.mark.parametrize("front", [True, False], ids=["folded", "apart"])
def test_a_normalisation_in_float32_in_a_network_of_float16(front: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    layers = [nn.Conv2d(3, 4, 3), *([norm, nn.ReLU()] if front else [nn.ReLU(), norm])]
    ann = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 5)).half().eval()
    norm.float()
    images = pictures().half()
    net = convert(ann, images.split(4), method="channel_max", T=256)
    with torch.no_grad():
        expected = ann(images[:4]).float()
        found = net(images[:4])
        assert (found.float().mean(0) - expected).abs().max() < 0.05 * expected.abs().max()
        save_converted(net, tmp_path / "net")
        assert torch.equal(load_converted(tmp_path / "net")(images[:4]), found)


def test_synchronised_normalisation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    norm = nn.SyncBatchNorm(4)
    norm.running_mean.normal_()  # type: ignore[union-attr]
    close(
        nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval(), pictures(), tmp_path
    )


def test_compare_takes_labels_as_they_come() -> None:
    ann, images = plain(), pictures()
    net = convert(ann, images.split(2), T=4)
    labels = ann(images).argmax(1)
    expected = compare(ann, net, [(images, labels)])
    assert expected.ann_accuracy == 1
    for given in (labels.tolist(), np.asarray(labels), labels.int()):
        assert compare(ann, net, [(images, given), (images[:0], labels[:0])]) == expected
    for wrong in (labels[:, None], F.one_hot(labels), labels[:1]):
        with pytest.raises(ValueError, match=r"for 32 images; expected class numbers \[32\]"):
            compare(ann, net, [(images, wrong)])


def test_compare_leaves_images_and_types_alone() -> None:
    images = pictures()
    before = images.clone()
    ann = Net(lambda s, x: s.l(F.relu(s.c(x.mul_(3.0))).flatten(1)))
    net = convert(ann, images.split(2), method="channel_max", T=64)
    found = compare(ann, net, [images], steps=[64])
    assert torch.equal(images, before)
    assert found.error[0] < 0.05
    wide = compare(ann, copy.deepcopy(net).double(), [images], steps=[64])
    assert wide.error[0] == pytest.approx(found.error[0], rel=0.2)


def test_the_check_holds_few_values_at_once() -> None:
    from spikeloom.conversion.build import build
    from spikeloom.conversion.faithful import _Checked

    layers = [part for _ in range(20) for part in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())]
    ann = nn.Sequential(*layers, nn.Flatten(), nn.Linear(108, 5)).eval()
    checked = _Checked(ann, build(ann))
    held = []
    run_node = checked.run_node
    checked.run_node = lambda n: (run_node(n), held.append(len(checked.values)))[0]  # type: ignore[method-assign]
    checked.run(pictures()[:2])
    assert len(held) == 44
    assert max(held) <= 2


def test_files_and_checkpoints_as_users_have_them(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("from torch import nn\nnet = nn.Sequential(nn.Linear(2, 2), nn.ReLU())\n")
    (tmp_path / "mine.py").write_text("from beside_it import net\n\ndef make():\n    return net\n")
    for name in ("make", "net"):
        assert isinstance(network(f"{tmp_path / 'mine.py'}:{name}", None), nn.Sequential)
    held = {f"_orig_mod.module.{key}": value for key, value in nn.Linear(2, 2).state_dict().items()}
    torch.save(held, tmp_path / "parallel.pth")
    assert set(state_dict(tmp_path / "parallel.pth")) == {"weight", "bias"}


@pytest.mark.parametrize(
    "run",
    [
        lambda s, x: (lambda y: s.l((F.relu_(y) + y).flatten(1)))(s.c(x)),
        lambda s, x: (lambda y: (F.relu(y, True), s.l(y.flatten(1)))[1])(s.c(x)),
        lambda s, x: (lambda y: (y.clamp_(min=0), s.l(y.flatten(1)))[1])(s.c(x)),
    ],
    ids=["sum", "function", "method"],
)
def test_qcfs_in_the_place_of_what_changes_its_input(run: Callable[[Any, Tensor], Tensor]) -> None:
    with pytest.raises(
        NotConvertibleError, match=r"test_odd_networks.py:.*works in place on a value that is read again"
    ):
        with_qcfs(Net(run))


def test_qcfs_in_the_place_of_relus_in_place() -> None:
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 5))
    assert "qcfs_0" in dict(with_qcfs(ann).named_modules())
    assert with_qcfs(Net(lambda s, x: s.l(s.c(x).relu_().flatten(1))))(pictures()).shape == (32, 5)


def test_a_batch_without_images() -> None:
    net = convert(plain(), pictures().split(2), T=3)
    assert net(pictures()[:0]).shape == (3, 0, 5)
    assert net(pictures()[:0].expand(4, 0, 3, 6, 6)).shape == (4, 0, 5)


def test_early_exit_beyond_the_steps_that_thresholds_were_made_for() -> None:
    ann, images = plain(), pictures()
    labels = ann(images).argmax(1)
    exits = EarlyExit(convert(ann, images.split(2), method="mse", T=4))
    exits.calibrate([(images, labels)], T=4)
    with pytest.warns(UserWarning, match=r"T=8, but .* 'mse' were made for T = 4"):
        exits.calibrate([(images, labels)], T=8)


def test_a_damaged_list_of_operations(tmp_path: Path) -> None:
    save_converted(convert(plain(), pictures().split(2), T=2), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"$": "relu"', '"$": "gone"'))
    with pytest.raises(CheckpointError, match=r"operation \w+ reads gone, which is not there"):
        load_converted(tmp_path)


def test_many_layers_of_levels_convert_with_images() -> None:
    """In float32 the ANN gives an image other logits alone than in a batch, by more than a tenth."""
    torch.manual_seed(0)
    layers = [
        part
        for i in range(16)
        for part in (nn.Conv2d(48 if i else 3, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48), QCFS(L=2, theta=2.0))
    ]
    images = torch.randn(8, 3, 12, 12)
    ann = settled(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 5)), images)
    assert convert(ann, [images], method="qcfs", T=2).report.images == 8
    batch = Net(lambda s, x: s.l((s.q(s.c(x)) - s.q(s.c(x)).mean(0)).flatten(1)))
    batch.q = QCFS(L=2, theta=2.0)
    with pytest.raises(NotConvertibleError, match="over the batch axis"):
        convert(batch, pictures().split(2), method="qcfs")


def test_axes_of_images_where_none_were_given() -> None:
    def made(*front: nn.Module) -> nn.Module:
        return nn.Sequential(*front, QCFS(L=4), nn.Linear(8, 5)).eval()

    net = convert(made(nn.Flatten(), nn.Linear(108, 8)), method="qcfs", T=3)
    assert net(pictures()[:2]).shape == (3, 2, 5)
    assert net(pictures()[:2].expand(6, 2, 3, 6, 6)).shape == (6, 2, 5)
    assert convert(made(nn.Linear(108, 8)), method="qcfs", T=3).input_ndim == 2
    tokens = nn.Sequential(nn.Linear(6, 8), QCFS(L=4), nn.Flatten(), nn.Linear(48, 5)).eval()
    with pytest.raises(ValueError, match=r"not known how many axes they have; pass a batch"):
        convert(tokens, method="qcfs")
    assert convert(tokens, [torch.randn(4, 6, 6)], method="qcfs", T=3)(torch.randn(2, 6, 6)).shape == (3, 2, 5)
